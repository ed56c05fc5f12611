"""The data card: a README for the sets that the Hugging Face Hub and `datasets.load_dataset(folder, "sft")` read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.language import UNDETERMINED
from data.records import SPLITS
from data.sets import SETS, TEXT_SPLITS, set_file
from reports.data import head
from reports.data_tables import removals
from reports.formats import share
from reports.page import render

HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test", "heldout": "heldout"}
MAIN_LANGUAGES = 0.01
"""Minimum share of a language that is named in the card's metadata."""
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def write_card(facts: Mapping[str, Any], run_name: str, folder: Path) -> None:
    """Writes `folder/README.md`, for the sets that have been written there."""
    sizes, languages = facts["rows"], facts["languages"]["prompts"]
    files = configs(sizes)
    text = render(
        "card.md.j2",
        "markdown.j2",
        facts=facts,
        head=head(facts),
        run_name=run_name,
        quoted_name=json.dumps(run_name),
        configs=files,
        digests={name: digest([folder / file for file in splits.values()]) for name, splits in files.items()},
        languages=[
            name
            for name, count in languages.items()
            if name != UNDETERMINED and count >= MAIN_LANGUAGES * sum(languages.values())
        ],
        size_category=next((name for limit, name in SIZES.items() if sum(sizes.values()) < limit), "n>10M"),
        splits=HUB_SPLITS,
        removals=removals(facts),
        share=share,
    )
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


def configs(sizes: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """By set: the file of each of its splits that has rows, under the hub's name of the split. Sets without rows are
    not there.
    """
    found = {
        name: {HUB_SPLITS[one]: set_file(Path(), name, one).as_posix() for one in splits if sizes[f"{name}_{one}"]}
        for name, splits in (*((name, SPLITS) for name in SETS), ("texts", TEXT_SPLITS))
    }
    return {name: files for name, files in found.items() if files}
