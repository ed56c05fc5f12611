"""The data stage: three sets of prompts from the sources, split by user, with a count of what each rule removed.

python -m stages.data --config configs/demo.yaml
"""

import json
from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.manifest import file_digest, model_digests
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Builds and writes the sets."""
    from data.build import build, write
    from data.tokenize import encode_completion, encode_prompt
    from modeling.load import base_model_place, load_tokenizer

    place = base_model_place(config.model)
    tokenizer = load_tokenizer(place, config.model)
    built = build(
        config.data,
        lambda prompt: len(encode_prompt(tokenizer, prompt)),
        lambda completion: len(encode_completion(tokenizer, completion)),
    )
    refuse_if_too_long(config, longest_prompt=max(len(encode_prompt(tokenizer, p)) for rows in built.rm.values() for p in rows), place=place)
    write(built, out)
    sizes = built.sizes()
    report = {"rows": sizes, "removed": built.removed, "skipped_rows": built.skipped_rows}
    (out / "counts.json").write_text(json.dumps(report, indent=2) + "\n")
    for rule, count in built.removed.items():
        if count:
            print(f"data: {count} prompts removed: {rule}")
    for sentence in built.skipped_rows[:5]:
        print(f"data: skipped {sentence}")
    if len(built.skipped_rows) > 5:
        print(f"data: skipped {len(built.skipped_rows) - 5} more malformed rows, listed in counts.json")
    shown = ("sft_train", "rm_train", "rl_train", "rm_valid", "rm_test")
    return {name: sizes[name] for name in shown} | {"removed": sum(built.removed.values()), "skipped": len(built.skipped_rows)}


def refuse_if_too_long(config: RunConfig, longest_prompt: int, place: str) -> None:
    """Raises ValueError, hours before it would matter, when some stage's answers would not fit the model's context."""
    from modeling.load import context_length, read_settings

    context = context_length(read_settings(place, config.model))
    for name in ("samples", "ppo", "evaluate"):
        count = getattr(config, name).max_new_tokens
        if longest_prompt + count > context:
            raise ValueError(
                f"the longest prompt has {longest_prompt} tokens and {name}.max_new_tokens={count}, more than the model's context of {context}: "
                "lower that or data.max_prompt_tokens"
            )


def external(config: RunConfig) -> dict[str, str]:
    """Digests of the files that users brought."""
    from data.sources import source_files

    named = [*config.data.demonstrations, *config.data.prompts, *config.data.rankings, *config.data.pretraining]
    files = [file for name in named if name != "wikipedia" for file in source_files(name)]
    return {str(file): file_digest(file) for file in files} | model_digests(config.model.base, config.model.chat_template)


STAGE = Stage("data", sections=("data", "model"), after=(), work=work, external=external)

if __name__ == "__main__":
    stage_main(STAGE, "Builds the SFT, RM and RL prompt sets.")
