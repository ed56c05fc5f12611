"""Small files of prompts, and the sets that they become: what the tests of curation share."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.annotate import Annotator
from data.build import Built, write
from data.config import DataConfig
from data.records import SPLITS, Prompt
from data.sets import SETS, SetName, read_set, set_file

WORDS = [
    "amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "ledge", "marsh",
    "north", "oasis", "petal",
    "quartz", "ridge", "slope", "tundra",
]  # fmt: skip


def words(texts: Iterable[Any]) -> list[int]:
    return [len((text.text if isinstance(text, Prompt) else text).split()) for text in texts]


def annotator(config: DataConfig) -> Annotator:
    """Counts words as tokens, and takes an @ for personal data."""
    return Annotator(config, words, words, lambda text: "@" in text)


def rows(file: Path, count: int, start: int = 0, **extra: Any) -> str:
    """`count` prompts of 20 users; every third from the api."""
    lines = []
    for number in range(start, start + count):
        row = {
            "prompt": f"{WORDS[number % 20]} number {number} please",
            "user_id": f"user {number % 20}",
            "prompt_id": f"p{number}",
        }
        lines.append(row | {"source": "api" if number % 3 == 0 else "labeler"} | extra)
    return written(file, lines)


def written(file: Path, lines: Iterable[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


class Sets:
    """All sets as records, through the files."""

    def __init__(self, built: Built, folder: Path) -> None:
        write(built, folder)
        self.folder = folder
        self.by_split: dict[str, dict[str, list[Any]]] = {
            name: {
                split: read_set(folder, name, split) if set_file(folder, name, split).is_file() else []
                for split in SPLITS
            }
            for name in SETS
        }

    def __getitem__(self, name: SetName) -> dict[str, list[Any]]:
        return self.by_split[name]

    def everything(self, name: SetName) -> list[Any]:
        return [record for split in SPLITS for record in self[name][split]]
