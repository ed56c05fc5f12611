"""Label Studio's JSON export of rankings: a `Ranker` over a `List` of answers.

Buckets called 1, 2 and so on are ranks: answers in the same bucket tie, and those left in the list (`_`) have no rank.
A Ranker without buckets gives a strict order. Ratings `quality-1`, choices `flags-1`, the choice `skipped` and the text
`demonstration` are those of the labeling interface that `make label` exports.
"""

from typing import Any

from data.sources.convert import Fields, Row, identifier, need, objects, optional, prompt_among, timestamp, usable

UNRANKED = "_"
"""Label Studio's name for the list from which answers are dragged into buckets."""


def labels(row: Row) -> list[Fields]:
    """The labels of a task, one for each annotation in which somebody judged or skipped it."""
    data = need(row, "data", dict, "an object")
    annotations = objects(row, "annotations", "each of 'annotations' must be an object") if "annotations" in row else []
    if not annotations:
        return []
    lists = [key for key, value in data.items() if isinstance(value, list) and value and all(map(_is_item, value))]
    if len(lists) != 1:
        raise ValueError(f"'data' must have one list of answers, objects with 'id', found {len(lists)}")
    items = {str(item["id"]): _text(item) for item in data[lists[0]]}
    record = data["record"] if isinstance(data.get("record"), dict) else {"prompt": prompt_among(data, lists)}
    task = record | {"completions": list(items.values())}
    if len(items) < len(data[lists[0]]):
        raise ValueError(f"two answers in {lists[0]!r} have the same 'id'")
    return [label for one in annotations for label in usable({"task": task} | _label(one, list(items)))]


def _is_item(value: object) -> bool:
    return isinstance(value, dict) and "id" in value


def _text(item: Row) -> str:
    """What Label Studio shows of an item: its body, or else its title."""
    key = next((key for key in ("body", "html", "title") if item.get(key) is not None), "body")
    return need(item, key, str)


def _label(annotation: Row, ids: list[str]) -> Fields:
    results = objects(annotation, "result", "each of 'result' must be an object")
    if any(one.get("type") == "pairwise" for one in results):
        raise ValueError("a Pairwise result does not say which answer was on the left: use a Ranker")
    values = {str(one.get("from_name")): need(one, "value", dict) for one in results}
    rankers = [one for one in results if one.get("type") == "ranker"]
    if len(rankers) > 1:
        raise ValueError("an annotation must have one Ranker result, found several")
    meta: Fields = optional(rankers[0], "meta", {}, "an object") if rankers else {}
    reason = next(iter(_listed(values, "skipped", "choices")), "")
    return {
        "labeler_id": optional(meta, "labeler_id", "") or _name(annotation.get("completed_by")),
        "saved": meta.get("saved", timestamp(annotation, "updated_at", "created_at")),
        "seconds": meta.get("seconds", annotation.get("lead_time") or 0.0),
        "skipped": (reason or "other") if annotation.get("was_cancelled") else reason,
        "demonstration": "\n".join(_listed(values, "demonstration", "text")),
        "ranks": _ranks(rankers[0], ids) if rankers else [],
        "ratings": [_rating(values, number) for number in range(1, len(ids) + 1)],
    }


def _name(person: object) -> str:
    """The annotator's name: Label Studio gives a number, or an object with an e-mail address."""
    if isinstance(person, dict):
        return optional(person, "email", "") or f"user {identifier(person, 'id', default='?')}"
    return f"user {person}" if type(person) is int else "?"


def _listed(values: Row, name: str, kind: str) -> list[str]:
    found: Any = values.get(name, {}).get(kind, [])
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{kind!r} of {name!r} must be a list of texts")
    return found


def _rating(values: Row, number: int) -> Fields:
    quality, flags = values.get(f"quality-{number}", {}).get("rating"), _listed(values, f"flags-{number}", "choices")
    return ({"quality": quality} if quality else {}) | {
        flag.removeprefix("no "): not flag.startswith("no ") for flag in flags
    }


def _ranks(result: Row, ids: list[str]) -> list[int | None]:
    """The rank of each answer; older versions wrote the order as a list."""
    ranker = need(result, "value", dict).get("ranker")
    buckets = ranker if isinstance(ranker, dict) else {str(result.get("from_name")): ranker}
    groups = {name: _listed({name: buckets}, name, name) for name in buckets if name != UNRANKED}
    if list(groups) == [str(result.get("from_name"))]:
        groups = {str(rank): [one] for rank, one in enumerate(next(iter(groups.values())), start=1)}
    if strange := [name for name in groups if not (name.isascii() and name.isdigit())]:
        raise ValueError(f"the bucket {strange[0]!r} is not a rank: call the buckets 1, 2 and so on, 1 for the best")
    placed = [(one, int(name)) for name, members in groups.items() for one in members]
    if len(dict(placed)) < len(placed) or not dict(placed).keys() <= set(ids):
        raise ValueError("the Ranker result has an answer twice, or one that is not in the list")
    return [dict(placed).get(one) for one in ids]
