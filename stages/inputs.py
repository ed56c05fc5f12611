"""What several stages read from earlier ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from data.files import read_records
from data.records import Ranking
from data.sets import read_set, set_file

T = TypeVar("T")


def evenly(items: Sequence[T], count: int | None) -> list[T]:
    """`count` items spread evenly over the whole, in order; all of them where there are fewer or no count is given."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def rankings(data: Path, labels: Path, split: str) -> list[Ranking]:
    """The labeler's rankings and those that came with the data, as far as there are any."""
    brought = read_set(data, "rankings", split) if set_file(data, "rankings", split).is_file() else []
    file = labels / f"rankings_{split}.jsonl"
    return [*brought, *(read_records(file, Ranking) if file.is_file() else [])]
