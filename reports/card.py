"""The data card: a README for the sets that the Hugging Face Hub and `datasets.load_dataset(folder, "sft")` read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.language import UNDETERMINED
from data.records import SPLITS
from data.sets import SETS, TEXT_SPLITS, set_file
from reports.data import head, removals
from reports.page import Cell, Table, environment, number, share

HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test", "heldout": "heldout"}
HOLDS = {
    "sft": "prompts with a demonstration",
    "rm": "prompts whose answers are to be ranked; some with a demonstration",
    "rl": "prompts that users sent, without answers",
    "rankings": "prompts with several answers and their order",
    "texts": "plain text for the pretraining mix",
}
COLUMNS = {
    "prompt": ("sft, rm, rl, rankings", "the prompt: a string, or messages of `role` and `content`"),
    "prompt_id": ("sft, rm, rl, rankings", "unique id of the prompt"),
    "source": ("sft, rm, rl, rankings", "`labeler`: written for training; `api`: sent by a user"),
    "kind": ("sft, rm, rl, rankings", "`plain`, `few_shot` or `user_based`, of labeler prompts"),
    "user_id": ("sft, rm, rl, rankings", "who wrote it"),
    "organisation_id": ("sft, rm, rl, rankings", "the user's organisation"),
    "use_case": ("sft, rm, rl, rankings", "one of the paper's ten"),
    "dataset": ("all", "the source that the row came from"),
    "completion": ("sft, rm", "the demonstration"),
    "completions": ("rankings", "the answers"),
    "ranks": ("rankings", "of each answer: 1 is best, equal is a tie, null is not ranked"),
    "preferences": ("rankings", "instead of ranks: judged pairs [better, worse] as indices into completions"),
    "ties": ("rankings", "beside preferences: pairs found equal"),
    "labeler_id": ("rankings", "who ranked"),
    "labeler": ("rankings", "`human`, `simulated` or `llm`"),
    "complete": ("rankings", "of each answer: whether it ended by itself"),
    "ratings": ("rankings", "of each answer: the labeler's other ratings, as JSON"),
    "text": ("texts", "the document"),
}
MAIN_LANGUAGES = 0.01
"""Share from which a language is named in the card's head."""
SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def write_card(facts: Mapping[str, Any], run_name: str, folder: Path) -> None:
    """Writes `folder/README.md`, for the sets that have been written there."""
    sizes = facts["rows"]
    files = configs(sizes)
    shown = {
        "run_name": run_name,
        "quoted_name": json.dumps(run_name),
        "head": head(facts),
        "configs": files,
        "digests": {name: digest([folder / file for file in splits.values()]) for name, splits in files.items()},
        "languages": main_languages(facts["languages"]["prompts"]),
        "size_category": next((name for limit, name in SIZE_CATEGORIES if sum(sizes.values()) < limit), "n>10M"),
        "sizes": sizes_table(sizes),
        "sources": sources_table(facts),
        "rules": rules_table(facts),
        "columns": Table(
            ["Column", "Sets", "Holds"], [[f"`{name}`", *about] for name, about in COLUMNS.items()], words=(1, 2)
        ),
        "engine": facts["settings"]["personal_data"],
        "group": facts["settings"]["group_by"],
    }
    text = environment().get_template("card.md.j2").render(shown)
    (folder / "README.md").write_text(text, encoding="utf-8")


def digest(files: Sequence[Path]) -> str:
    """A digest of the files, in 16 hexadecimal digits.

    It is in the card because `datasets` caches a local folder under its name and its card: without it, the cache of
    another run's folder `data`, or of earlier data, would be used.
    """
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()[:16]


def configs(sizes: dict[str, int]) -> dict[str, dict[str, str]]:
    """By set: the file of each of its splits that has rows, under the hub's name of the split. Sets without rows are
    not there.
    """
    found = {}
    for name, splits in (*((name, SPLITS) for name in SETS), ("texts", TEXT_SPLITS)):
        files = {
            HUB_SPLITS[split]: set_file(Path(), name, split).as_posix() for split in splits if sizes[f"{name}_{split}"]
        }
        if files:
            found[name] = files
    return found


def main_languages(found: Mapping[str, int]) -> list[str]:
    """ISO 639-1 codes, the most common first."""
    least = MAIN_LANGUAGES * sum(found.values())
    return [name for name, count in found.items() if name != UNDETERMINED and count >= least]


def sizes_table(sizes: dict[str, int]) -> Table:
    """Rows by set and split."""
    body: list[list[Cell]] = [
        [f"`{name}`", HOLDS[name], *(number(sizes.get(f"{name}_{split}")) for split in HUB_SPLITS)]
        for name in (*SETS, "texts")
    ]
    return Table(["Set", "Holds", *HUB_SPLITS.values()], body, words=(1,))


def sources_table(facts: Mapping[str, Any]) -> Table:
    """The sources of the rows, with the licence that each format states."""
    body: list[list[Cell]] = [
        [
            *(source[key] for key in ("name", "role", "place", "about")),
            number(source["read"]),
            number(sum(source["kept"].values())),
        ]
        for source in facts["sources"]
    ]
    return Table(["Source", "Used for", "Place", "About", "Read", "Kept"], body, words=(1, 2, 3))


def rules_table(facts: Mapping[str, Any]) -> Table:
    """What curation removed."""
    body: list[list[Cell]] = [
        [rule.replace("_", " "), facts["rules"][rule], kind, number(count), share(count, read)]
        for kind, rule, count, read in removals(facts)
    ]
    return Table(["Rule", "Meaning", "Of", "Removed", "Share"], body, words=(1, 2))
