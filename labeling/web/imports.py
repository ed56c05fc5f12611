"""Reads labels for the store from its own exports, Label Studio and Argilla."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.files import read_rows
from data.lines import STOP
from data.records import Ranking, Samples, parse
from data.sources import argilla, label_studio
from data.sources.convert import Fields, Row, need, optional
from labeling.web.forms import form_of, label_of
from labeling.web.people import check_name
from labeling.web.store import Label, Saved

FORMATS: dict[str, tuple[str, Callable[[Row], list[Fields]]]] = {
    "own": ("labels.jsonl", lambda row: [dict(row)]),
    "label-studio": ("label_studio.json", label_studio.labels),
    "argilla": ("records.json", argilla.labels),
}
"""Format -> the file that is read in a folder, and the labels of one of its rows."""
LATEST = 32_503_680_000
"""Maximum number of seconds in a label: the year 3000 as a time of saving."""


def read_labels(place: Path, form: str) -> list[Saved]:
    """The labels of a file, or of the files of a folder. Raises ValueError, with the place of the row, if a row
    is malformed.
    """
    name, labels = FORMATS[form]
    files = sorted(place.rglob(name)) if place.is_dir() else [place]
    if not files:
        raise ValueError(f"{place}: the folder has no {name}")
    found: list[Saved] = []
    for file in files:
        for where, row in read_rows(file):
            try:
                if not isinstance(row, dict):
                    raise ValueError(f"expected a JSON object, found {type(row).__name__}")
                found += map(saved_of, labels(row))
            except ValueError as error:
                STOP(where, str(error))
    return found


def saved_of(row: Row) -> Saved:
    """A row of `labels.jsonl` as the store keeps it. Raises ValueError if the web app would not have saved it."""
    task = need(row, "task", dict, "an object")
    completions = need(task, "completions", list)
    samples = parse({"complete": [True] * len(completions)} | task, Samples)
    ranks, ratings, gold = (optional(row, key, list[Any]()) for key in ("ranks", "ratings", "gold"))
    for order in (ranks, gold):  # parsing a Ranking checks the ranks and ratings
        answers = {"prompt": samples.prompt, "completions": completions, "complete": samples.complete}
        parse(answers | {"ranks": order or [None] * len(completions), "ratings": ratings or None}, Ranking)
    saved, seconds = (_number(row, key) for key in ("saved", "seconds"))
    given = Label(ranks, ratings, optional(row, "skipped", ""), optional(row, "demonstration", ""))
    label = label_of(form_of(given), len(completions), seconds)
    return Saved(check_name(need(row, "labeler_id", str)), samples, label, saved, gold or None)


def _number(row: Row, key: str) -> float:
    value: Any = row.get(key)
    if type(value) not in (int, float) or not 0 <= value <= LATEST:
        raise ValueError(f"{key!r} must be a number of seconds from 0 to {LATEST:,}")
    return float(value)
