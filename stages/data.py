"""Builds the SFT, RM and RL sets of prompts, split by user, and reports what was read, kept and removed.

python -m stages.data --config configs/demo.yaml
python -m stages.data --config configs/oasst.yaml --dry_run
"""

import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.records import Prompt
from stages.config import RunConfig
from stages.inputs import answering, refuse_too_long
from stages.manifest import file_digest, model_digests
from stages.readers import reader_digests, readers
from stages.runner import RunFolder, Stage, stage_main

if TYPE_CHECKING:
    from data.build import Built

FOR_PEOPLE = ("facts.json", "report.html", "report.md", "report_pictures", "README.md")


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes the sets, counts.json, facts.json, the data card and the report."""
    from data.build import write
    from reports.card import write_card
    from reports.data import write_data_report
    from reports.data_warnings import warnings
    from reports.dry_run import skipped_lines

    scratch = out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    built, of_tokenizer = curated(config, scratch)
    write(built, out)
    facts = described(built, of_tokenizer, config)
    counts = {name: facts[name] for name in ("rows", "removed", "skipped", "skipped_rows")}
    for name, content in (("counts", counts), ("facts", facts)):
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    write_card(facts, config.run_name, out)
    write_data_report(facts, config.run_name, out)
    shutil.rmtree(scratch)
    for kind, rules in facts["removed"].items():
        for rule, count in rules.items():
            if count:
                print(f"data: {count} {kind} removed: {rule}")
    for sentence in warnings(facts):
        print(f"data: warning: {sentence}")
    # The log is private, so personal data in malformed rows is not masked here.
    for line in skipped_lines(built.bad.examples, built.bad.count):
        print(f"data: skipped: {line}")
    shown = ("sft_train", "rm_train", "rl_train", "rm_valid", "rm_test", "rankings_train")
    return {name: facts["rows"][name] for name in shown} | {
        "removed": sum(sum(rules.values()) for rules in facts["removed"].values()),
        "skipped": facts["skipped"],
        "report": str(run.stage("data") / "report.html"),
    }


def dry_run(config: RunConfig) -> None:
    """Prints the sources, what each rule would remove and the sizes of the sets."""
    from reports.dry_run import plan

    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as scratch:
        print(plan(described(*curated(config, Path(scratch)), config)))


def described(built: "Built", of_tokenizer: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Statistics of the data, with the agreement of labelers, and what `curated` found out about the tokenizer."""
    from data.facts import facts_of
    from labeling.agreement import agreement, judged_prompts

    return facts_of(built, config.data) | {"agreement": agreement(judged_prompts(built))} | of_tokenizer


def curated(config: RunConfig, scratch: Path) -> tuple["Built", dict[str, Any]]:
    """(the curated sources, the tokenizer's `untrained_prompt` and `spelled` in plain text). Raises ValueError if a
    prompt leaves no room for the answers of later stages.
    """
    import datasets

    from data.annotate import Annotator
    from data.build import build
    from data.control_tokens import spelled
    from data.language import refuse_unknown
    from data.presidio import detector
    from data.sources.reading import all_sources
    from data.tokenize import check_prompt, count_answer_tokens, count_prompt_tokens, untrained_prompt
    from modeling.load import base_model_place, load_tokenizer, read_settings
    from stages.inputs import refuse_long_texts

    if not sys.stderr.isatty():  # datasets would write a line to the log for each update of a bar
        datasets.disable_progress_bars()
    # Names and paths are checked before a model is downloaded.
    all_sources(config.data)
    refuse_unknown(config.data.languages)
    find = None if config.data.personal_data == "off" else detector(config.data.personal_data)
    place = base_model_place(config.model)
    tokenizer = load_tokenizer(place, config.model)
    refuse_long_texts(config, read_settings(place, config.model))
    annotator = Annotator(
        config.data,
        prompt_tokens=partial(count_prompt_tokens, tokenizer),
        answer_tokens=partial(count_answer_tokens, tokenizer),
        personal=find,
    )
    others = readers(config)

    def check(prompt: Prompt) -> None:
        check_prompt(tokenizer, prompt)
        for reader in others:
            reader.check_template(prompt)

    built = build(annotator, scratch, check)
    refuse_too_little_text(config, built, tokenizer)
    longest = int(built.pool.left()["prompt_tokens"].max())
    refuse_too_long(config, dict.fromkeys(answering(config), longest), read_settings(place, config.model))
    texts = (row["text"] for split in built.documents.splits for row in built.documents.rows(split))
    return built, {"untrained_prompt": untrained_prompt(tokenizer), "spelled": spelled(tokenizer, texts)}


def refuse_too_little_text(config: RunConfig, built: "Built", tokenizer: Any) -> None:
    """Raises ValueError if a split of the plain text is too short for a pretraining example."""
    from data.tokenize import pretraining_chunks

    length = config.data.pretraining_tokens
    for split in built.documents.splits:
        texts = (row["text"] for row in built.documents.rows(split))
        try:
            pretraining_chunks(tokenizer, texts, length, limit=1)
        except ValueError as error:
            raise ValueError(
                f"the {split} split of the pretraining text is too short for one example of "
                f"data.pretraining_tokens={length}: lower that, or add text to data.pretraining"
            ) from error


def external(config: RunConfig) -> dict[str, str]:
    """Digests of the user's files, and the pinned commits of Hub data sets."""
    from data.sources.reading import all_sources

    found = all_sources(config.data)
    files = {file for source in found if source.name != "wikipedia" for file in source.files}
    hub = {f"{source.hub} {source.split}": str(source.settings.revision) for source in found if source.hub is not None}
    return (
        {str(file): file_digest(file) for file in sorted(files)}
        | hub
        | model_digests(config.model.base, config.model.chat_template)
        | reader_digests(config)
    )


STAGE = Stage(
    "data", sections=("data", "model"), after=(), work=work, external=external, for_people=FOR_PEOPLE, dry_run=dry_run
)  # fmt: skip

if __name__ == "__main__":
    stage_main(STAGE, "Builds the SFT, RM and RL prompt sets.")
