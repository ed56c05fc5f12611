"""Argilla's records with a RankingQuestion whose options have the names of the fields that hold the answers.

Two layouts are read: a list of responses, each with the values of all questions, as the server returns it
(`GET /api/v1/datasets/{id}/records?include=responses`) and version 1 wrote it; and responses by question, as
`to_json` of version 2 writes them. Questions `quality-1`, `flags-1`, `skipped` and `demonstration` are those that
`make label` exports.
"""

from collections.abc import Mapping
from typing import Any

from data.sources.convert import Fields, Row, need, objects, optional, prompt_among, timestamp, usable

NO_RANKS = (
    "the ranks are missing: version 2 of Argilla's Python client leaves them out when it downloads records, so the "
    "order is unknown; save what its server returns instead (docs/labeling.md)"
)


def labels(row: Row) -> list[Fields]:
    """The labels of a record, one for each user who submitted or discarded it.

    Drafts are left out, except those that `make label` exported: Argilla submits only rankings of all answers.
    """
    fields = need(row, "fields", dict, "an object")
    metadata: Row = optional(row, "metadata", {}, "an object")
    ours: Row = optional(metadata, "labels", {}, "an object")
    users = _by_user(row)
    rankings = {user: _ranking(found["values"], fields) for user, found in users.items()}
    record = metadata["record"] if isinstance(metadata.get("record"), dict) else None
    ranked = {name for ranking in rankings.values() for name in ranking}
    names = [name for name in fields if (name.startswith("answer-") if record else name in ranked)]
    if len(names) < 2:
        return []
    task = record or {"prompt": prompt_among(fields, names)}
    task |= {"completions": [need(fields, name, str) for name in names]}
    found = []
    for user, given in users.items():
        about: Row = optional(ours, user, {}, "an object")
        values = given["values"]
        reason = optional(values, "skipped", "") or ("other" if given["status"] == "discarded" else "")
        if given["status"] == "draft" and not about:
            continue
        found += usable({
            "task": task,
            "labeler_id": about.get("labeler_id", user),
            "saved": about.get("saved", timestamp(given, "updated_at", "inserted_at")),
            "seconds": about.get("seconds", 0.0),
            "skipped": reason if given["status"] == "discarded" or not rankings[user] else "",
            "demonstration": optional(values, "demonstration", ""),
            "ranks": [rankings[user].get(name) for name in names],
            "ratings": [_rating(values, number) for number in range(1, len(names) + 1)],
        })  # fmt: skip
    return found


def _by_user(row: Row) -> dict[str, Fields]:
    """User -> status, times and the user's responses by question."""
    users: dict[str, Fields] = {}
    if not isinstance(row.get("responses"), dict):
        for one in objects(row, "responses", "each of 'responses' must be an object") if row.get("responses") else []:
            given: Row = optional(one, "values", {}, "an object")
            values = {question: need(given, question, dict, "an object").get("value") for question in given}
            users[str(one.get("user_id"))] = {**one, "status": one.get("status"), "values": values}
        return users
    for question in row["responses"]:
        for one in objects(row["responses"], question, f"each of the responses to {question!r} must be an object"):
            user = users.setdefault(str(one.get("user_id")), {"status": one.get("status"), "values": {}})
            user["values"][question] = one.get("value")
    return users


def _ranking(values: Row, fields: Row) -> Mapping[str, int | None]:
    """Name of the field -> rank, of the ranking question; empty if it is not answered."""
    lists: list[list[Any]] = [value for value in values.values() if isinstance(value, list) and value]
    if any(all(isinstance(one, str) and one in fields for one in value) for value in lists):
        raise ValueError(NO_RANKS)
    rankings = [value for value in lists if all(isinstance(one, dict) and "value" in one for one in value)]
    if not rankings:
        return {}
    if len(rankings) > 1:
        raise ValueError("a response must answer one ranking question, found several")
    found = {need(one, "value", str): one.get("rank") for one in rankings[0]}
    if strange := found.keys() - fields.keys():
        raise ValueError(f"the ranking has the option {min(strange)!r}, but the record has no field of this name")
    if not all(rank is None or type(rank) is int for rank in found.values()):
        raise ValueError("each 'rank' must be a whole number or null")
    return found


def _rating(values: Row, number: int) -> Fields:
    quality, flags = values.get(f"quality-{number}"), optional(values, f"flags-{number}", list[Any]())
    if not all(isinstance(flag, str) for flag in flags):
        raise ValueError(f"'flags-{number}' must be a list of texts")
    return ({"quality": quality} if quality else {}) | {
        flag.removeprefix("no "): not flag.startswith("no ") for flag in flags
    }
