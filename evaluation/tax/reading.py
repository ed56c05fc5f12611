"""Reads the items of a benchmark from a user's file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from data.files import read_rows
from data.sources.convert import need

T = TypeVar("T")
Row = dict[str, Any]


def read_items(place: str, parse: Callable[[str, Row], T]) -> list[T]:
    """`parse(file:line, row)` of every row; `file:line` is prepended to the message of its ValueError."""
    found = []
    for at, row in read_rows(Path(place)):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"expected an object with keys, found {type(row).__name__}")
            found.append(parse(at, row))
        except ValueError as error:
            raise ValueError(f"{at}: {error}") from None
    return found


def text_of(row: Row, key: str) -> str:
    """The text under a key. Raises ValueError if there is none."""
    text = need(row, key, str, "a string").strip()
    if not text:
        raise ValueError(f"{key!r} is empty")
    return text
