"""What row functions share: checks of values, conversations, ranks, and the converters of each role.

A row function maps one published row to fields of a record (data/records.py). It returns None to leave the row out and
raises ValueError, in a sentence without file and line, if the row is malformed.
"""

import hashlib
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypeVar
from uuid import UUID

from data.messages import Message, conversation
from data.records import Demonstration, Prompt, Ranking

Role = Literal["demonstrations", "prompts", "rankings", "pretraining"]
"""The list of the data section in which a source is named."""
Row = Mapping[str, Any]
Fields = dict[str, Any]
RowFunction = Callable[[Row], Fields | None]
Convert = Callable[[Sequence[Row]], Iterable[Fields]]
"""Rows that belong together (usually one) to the fields of each of their records."""
Answers = Sequence[tuple[str, int | None]]
"""(text, rank from 1, or None if not ranked) of each answer to a prompt."""
T = TypeVar("T")
ROUNDED = re.compile(r"-?[0-9](\.[0-9]+)?[eE]\+[0-9]+")
"""How Python, pandas and Excel write a large number; a hash such as 6e960637 has no sign."""
RANKING_KEYS = {item.name for item in fields(Ranking)}
ANSWER_KEYS = {item.name for kind in (Demonstration, Ranking) for item in fields(kind)} - {
    item.name for item in fields(Prompt)
}


def first(*functions: RowFunction) -> Convert:
    """The converter of rows that stand alone, or of the first row of a group.

    A record has the fields of all functions; where two give the same field, the earlier function's counts.
    """

    def convert(rows: Sequence[Row]) -> list[Fields]:
        found = [fields for function in functions if (fields := function(rows[0])) is not None]
        return [dict(ChainMap(*found))] if len(found) == len(functions) else []

    return convert


def roles(
    prompt: RowFunction, demonstration: RowFunction | None = None, ranking: RowFunction | None = None
) -> dict[Role, Convert]:
    """The converters of a format by role, from the fields of a prompt and what a demonstration or a ranking adds."""
    converters: dict[Role, Convert] = {"demonstrations": first(demonstration, prompt)} if demonstration else {}
    return converters | {"prompts": first(prompt)} | ({"rankings": first(ranking, prompt)} if ranking else {})


def answer_roles(prompt: RowFunction, answers: Callable[[Row], Answers]) -> dict[Role, Convert]:
    """The same where a demonstration adds the best of ranked answers, and a ranking all of them."""
    return roles(prompt, lambda row: best(answers(row)), lambda row: ranked(answers(row)))


def prompt_of(function: RowFunction) -> RowFunction:
    """The prompt of demonstrations or rankings."""
    return lambda row: None if (fields := function(row)) is None else without(fields, *ANSWER_KEYS)


def without(row: Row, *keys: str) -> Fields:
    return {key: value for key, value in row.items() if key not in keys}


def need(row: Row, key: str, kind: type[T], what: str | None = None) -> T:
    """The value under a key. Raises ValueError if it is missing or of another type."""
    if key not in row:
        raise ValueError(f"missing key {key!r}; found {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key!r} must be {what or kind.__name__}, found {type(value).__name__}")
    return value


def optional(row: Row, key: str, default: T, what: str | None = None) -> T:
    """The value under a key, or the default if it is missing or null. Raises ValueError if it is of another type."""
    return default if row.get(key) is None else need(row, key, type(default), what)


def identifier(row: Row, key: str, default: str | None = None) -> str:
    """An id as text; tables store ids as numbers or UUIDs, as floats if some are missing. Raises ValueError as `need`.

    pandas writes such floats to CSV as `1.0`, which must be the same user as the 1 of another file.
    """
    value = row.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+\.0", value):
        return value.removesuffix(".0")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        value = int(value) if abs(value) < 2**53 else repr(value)
    if isinstance(value, str) and ROUNDED.fullmatch(value):
        raise ValueError(f"{key!r} is {value}, a large id that a table has rounded: write ids as text")
    return str(value) if type(value) in (int, str) else need(row, key, str)


def objects(row: Row, key: str, requirement: str) -> list[Row]:
    """The list of objects under a key. Raises ValueError with the requirement if an item is no object."""
    items: list[Row] = need(row, key, list)
    if not all(isinstance(item, dict) for item in items):
        raise ValueError(requirement)
    return items


def answered(row: Row, key: str) -> tuple[list[Message], str]:
    """(prompt, answer) of a conversation. Raises ValueError unless it ends with the assistant's turn."""
    turns = conversation(need(row, key, list, "a list of messages"), key)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise ValueError(f"{key!r} must be a prompt followed by the assistant's answer")
    return turns[:-1], turns[-1]["content"]


def opening_id(messages: Sequence[Message]) -> str:
    """A hash of the first user message, as the user's id: all prefixes of a conversation share it, and so a split."""
    opening = next((message["content"] for message in messages if message["role"] == "user"), "")
    return hashlib.sha256(opening.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def dense_ranks(scores: Sequence[float | None]) -> list[int | None]:
    """1 for the highest score, 2 for the next lower one, and so on; equal scores tie, and no score is no rank."""
    order = sorted({score for score in scores if score is not None}, reverse=True)
    return [None if score is None else order.index(score) + 1 for score in scores]


def ranked(answers: Answers) -> Fields | None:
    """The fields of a ranking; None if fewer than two answers have a rank."""
    if sum(rank is not None for _, rank in answers) < 2:
        return None
    return {"completions": [text for text, _ in answers], "ranks": [rank for _, rank in answers]}


def best(answers: Answers) -> Fields | None:
    """The best ranked answer that is not empty, as the fields of a demonstration; None if there is none."""
    found = [(rank, text) for text, rank in answers if rank is not None and text]
    return {"completion": min(found, key=lambda answer: answer[0])[1]} if found else None


def prompt_among(values: Row, answers: Iterable[str]) -> Any:
    """The prompt among values: `prompt`, or else the only text or conversation that is not an answer."""
    others = {key: value for key, value in values.items() if key not in answers and isinstance(value, str | list)}
    if "prompt" not in others and len(others) != 1:
        raise ValueError(
            f"one text must be the prompt: name it 'prompt' (found {', '.join(map(repr, others)) or 'none'})"
        )
    found = others.get("prompt", next(iter(others.values())))
    return conversation(found, "prompt") if isinstance(found, list) else found


def timestamp(row: Row, *keys: str) -> float:
    """Seconds since 1970 of the first of these keys that has a time in ISO 8601 (UTC without a time zone); 0 if none
    has one. Raises ValueError for anything else.
    """
    for key in keys:
        if text := optional(row, key, "", "a time"):
            try:
                found = datetime.fromisoformat(text)
            except ValueError:
                raise ValueError(f"{key!r} must be a time such as 2026-01-31T12:00:00Z, found {text!r}") from None
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return 0.0


def label_rankings(labels: Callable[[Row], list[Fields]]) -> Convert:
    """The rankings among the labels of a row that another labeling tool wrote."""

    def convert(rows: Sequence[Row]) -> list[Fields]:
        return [
            {key: value for key, value in label["task"].items() if key in RANKING_KEYS}
            | {"ranks": label["ranks"], "labeler_id": label["labeler_id"]}
            for label in labels(rows[0])
            if label["ranks"]
        ]

    return convert


def usable(label: Fields) -> list[Fields]:
    """The label with dense ranks, in a list that is empty if nothing was judged. A single rank compares nothing, and
    the ranks and ratings of a skipped task are dropped.
    """
    if label["skipped"]:
        label |= {"ranks": [], "ratings": []}
    ranks = label["ranks"] if sum(rank is not None for rank in label["ranks"]) > 1 else []
    kept = dense_ranks([None if rank is None else -rank for rank in ranks])
    return [label | {"ranks": kept}] if ranks or label["skipped"] or label["demonstration"] else []
