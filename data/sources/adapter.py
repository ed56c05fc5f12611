"""What an adapter is: how one published format becomes rows of this project's records.

An adapter is a handful of pure functions from published rows to ours, one for each role that the data can play. Opening
files, the Hub, renaming columns, checking the result and saying where a mistake stands is `reading.py`'s part, the same
for all of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Role = Literal["demonstrations", "prompts", "rankings", "pretraining"]
"""What a run takes a source for: the list of the data section that names it."""

Row = Mapping[str, Any]
Convert = Callable[[Sequence[Row]], Iterable[dict[str, Any]]]
"""Published rows that belong together (most often a single one) to rows of our records: those of a Demonstration or
FewShot, a Prompt, a Ranking or a Document (data/records.py). Raises ValueError, in a sentence without the place, for a
row that is not of the published form."""

T = TypeVar("T")


@dataclass(frozen=True)
class Adapter:
    """A published format."""

    name: str
    """What `format` of a source names."""
    about: str
    """A short description of the data, name first, with the licence."""
    convert: Mapping[str, Convert]
    """By role; a role that the data cannot play is not there."""
    hub: str | None = None
    """Where it is published; read when a source names no place."""
    subset: str | None = None
    """The Hub data set's configuration, where it has several."""
    split: str = "train"
    """The Hub data set's split that is read unless the source names another."""
    source: Literal["labeler", "api"] | None = None
    """Who wrote the prompts; a source's own setting comes first. Default: api."""
    group: Callable[[Row], object] | None = None
    """Rows with the same value are converted together; without it each row by itself."""
    adjacent: bool = True
    """Whether rows of a group follow one another. Where they do not, the whole file is held in memory to gather
    them.
    """
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By role: the files to read when the place is a folder. Default: all of its data files."""
    keys: tuple[tuple[str, ...], ...] = ()
    """Sets of keys that identify a row of this format when another was expected."""

    anywhere: bool = False
    """Whether this is a format of many data sets rather than one data set: any Hub data set may be its place."""


def need(row: Row, key: str, kind: type[T], what: str | None = None) -> T:
    """The value under a key. Raises ValueError when it is missing or of another type."""
    if key not in row:
        raise ValueError(f"missing key {key!r}; found {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key!r} must be {what or kind.__name__}, found {type(value).__name__}")
    return value


def identifier(row: Row, key: str) -> str:
    """An id as text; tables store ids as numbers, and as floats where some are missing.

    Raises ValueError when it is missing or empty.
    """
    value = row.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return need(row, key, str)
    return str(value)


def together(convert: Convert) -> Convert:
    """The converter for rows that belong together, with rows that are no JSON objects refused before it sees them."""

    def checked(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, found {type(row).__name__}")
        return convert(rows)

    return checked


def single(convert: Callable[[Row], Iterable[dict[str, Any]]]) -> Convert:
    """The converter for formats whose rows stand alone, each of them an object."""
    return together(lambda rows: convert(rows[0]))
