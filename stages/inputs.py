"""What several stages read from earlier ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from data.jsonl import read_records, read_rows
from data.records import Demonstration, Prompt, Ranking, parse

T = TypeVar("T")


def evenly(items: Sequence[T], count: int | None) -> list[T]:
    """`count` items spread evenly over the whole, in order; all of them where there are fewer or no count is given."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def rm_prompts(data: Path, split: str) -> list[Prompt]:
    """The prompts to rank answers for, as demonstrations where they have one."""
    rows = [row for _, row in read_rows(data / f"rm_{split}.jsonl")]
    return [parse(row, Demonstration if "completion" in row else Prompt) for row in rows]


def rankings(run_data: Path, labels: Path, split: str) -> list[Ranking]:
    """The labeler's rankings and those that came with the data, as far as there are any."""
    files = [run_data / f"rankings_{split}.jsonl", labels / f"rankings_{split}.jsonl"]
    return [ranking for file in files if file.is_file() for ranking in read_records(file, Ranking)]
