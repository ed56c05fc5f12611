"""Small data, curated for real: what the tests of the report look at."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data.annotate import Annotator
from data.build import Built, build, write
from data.config import DataConfig
from data.facts import facts_of
from data.personal_data import find
from data.sets import set_file
from labeling.agreement import agreement, judged_prompts

ANSWERED = 60
WORDS = (
    "amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "ledge", "marsh",
    "north", "oasis", "petal",
    "quartz", "ridge", "slope", "tundra",
)  # fmt: skip


def count_words(texts: Sequence[Any]) -> list[int]:
    return [len((text if isinstance(text, str) else text.text).split()) for text in texts]


def demonstrations(count: int = ANSWERED, users: int = 30) -> list[dict[str, Any]]:
    """Prompts of some users, every third from a labeler, of unequal lengths, some with a use case."""
    found = []
    for number in range(count):
        row = {"prompt": f"{WORDS[number % 20]} {number} please tell me" + " more" * (number % 7)}
        row |= {"completion": "so it is" + " and so" * (number % 4), "source": "labeler" if number % 3 == 0 else "api"}
        row["user_id"] = f"user {int((number / count) ** 1.5 * users)}"
        found.append(row | ({"use_case": ("chat", "generation", "extract")[number % 3]} if number % 2 else {}))
    return found


def prompts(count: int, start: int = 1000, **extra: Any) -> list[dict[str, Any]]:
    """Prompts of one user each."""
    return [
        {"prompt": f"{WORDS[number % 20]} {number} and nothing else", "user_id": f"other {number}"} | extra
        for number in range(start, start + count)
    ]


def twins(count: int) -> list[dict[str, Any]]:
    """Near-duplicates of as many prompts, all by one user."""
    return [row | {"prompt": row["prompt"] + "!", "user_id": "copycat"} for row in prompts(count)]


def rankings(count: int, **extra: Any) -> list[dict[str, Any]]:
    """Rankings of one user each."""
    row = {"completions": ["short", "a bit longer"], "ranks": [1, 2], "labeler_id": "anna"}
    return [
        {"prompt": f"{number} {WORDS[number % 20]} ranked", "user_id": f"ranker {number}"} | row | extra
        for number in range(count)
    ]


def file_of(path: Path, rows: Sequence[Any]) -> str:
    """JSON Lines of the rows; a string among them stands as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def made(folder: Path, rows: dict[str, Sequence[Any]] | None = None, **settings: Any) -> tuple[Built, DataConfig]:
    """Curated data of JSON Lines by role; without demonstrations, the ones above."""
    folder.mkdir(exist_ok=True)
    given = {"demonstrations": demonstrations()} | (rows or {})
    (folder / "text.md").write_text("one two three " * 50)
    files: dict[str, list[str]] = {role: [file_of(folder / f"{role}.jsonl", found)] for role, found in given.items()}
    config = DataConfig(
        **({"pretraining": [str(folder / "text.md")], "valid_fraction": 0.2, "test_fraction": 0.2} | files | settings)
    )
    return build(Annotator(config, count_words, count_words, find), folder), config


def written(built: Built, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of every file that the stage writes, read without this project's help."""
    write(built, folder)
    names = [(name, split) for name in ("sft", "rm", "rl", "rankings") for split in ("train", "valid", "test")]
    files = {f"{name}_{split}": set_file(folder, name, split) for name, split in names}
    return {name: pq.read_table(file).to_pylist() if file.is_file() else [] for name, file in files.items()}


def described(folder: Path, rows: dict[str, Sequence[Any]] | None = None, **settings: Any) -> dict[str, Any]:
    """The statistics of curated data, as the data stage writes them."""
    built, config = made(folder, rows, **settings)
    return facts_of(built, config) | {"agreement": agreement(judged_prompts(built))}
