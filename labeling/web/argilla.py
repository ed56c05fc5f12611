"""Tasks and labels as folders that Argilla's `Dataset.from_disk` reads: settings and records.

A ranking question has the same options in all records of a dataset, so there is one dataset for each number of answers.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from data.records import Samples, to_row
from labeling.ratings import CHOICES, QUALITY, chosen
from labeling.web.forms import SKIP_REASONS
from labeling.web.people import hashed
from labeling.web.store import Label, Saved

MAX_ANSWERS, MAX_MESSAGES, MAX_LENGTH = 50, 500, 20_000
"""Argilla's maximum numbers of options of a ranking question, messages of a field, and characters of a message."""


def files_of(tasks: Iterable[tuple[Samples, list[Saved]]]) -> dict[str, str]:
    """File name -> content. Raises ValueError for a task that Argilla cannot hold."""
    datasets: dict[int, list[dict[str, Any]]] = defaultdict(list)
    people: dict[str, str] = {}
    for samples, labels in tasks:
        datasets[len(samples.completions)].append(record_of(samples, labels))
        people |= {saved.name: user_id(saved.name) for saved in labels}
    found: dict[str, Any] = {"users.json": people}
    for count, records in sorted(datasets.items()):
        name = f"answers-{count}"
        found[f"{name}/.argilla/dataset.json"] = {"name": name, "status": "draft"}
        found[f"{name}/.argilla/settings.json"] = settings(count)
        found[f"{name}/records.json"] = records
    return {name: json.dumps(value, ensure_ascii=False, indent=1) for name, value in found.items()}


def record_of(samples: Samples, labels: list[Saved]) -> dict[str, Any]:
    """A record with the responses of its labelers, whose names and times are in the metadata."""
    row, count = to_row(samples), len(samples.completions)
    if count > MAX_ANSWERS:
        raise ValueError(f"a task has {count} answers, and Argilla ranks at most {MAX_ANSWERS}")
    if len(samples.messages) > MAX_MESSAGES:
        raise ValueError(f"a prompt has {len(samples.messages)} messages, and Argilla allows at most {MAX_MESSAGES}")
    if odd := [size for message in samples.messages if not 1 <= (size := len(message["content"])) <= MAX_LENGTH]:
        raise ValueError(f"a message of a prompt has {odd[0]:,} characters, and Argilla allows 1 to {MAX_LENGTH:,}")
    responses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for saved in labels:
        of_user = {"user_id": user_id(saved.name), "status": status(saved.label)}
        for question, value in values(saved.label).items():
            responses[question].append({"value": value, **of_user})
    about = {
        user_id(saved.name): {"labeler_id": saved.name, "saved": saved.saved, "seconds": saved.label.seconds}
        for saved in labels
    }
    metadata = {"record": {key: value for key, value in row.items() if key != "completions"}, "labels": about}
    answers = {f"answer-{n}": text for n, text in enumerate(samples.completions, start=1)}
    return {
        "id": hashed(json.dumps(row, sort_keys=True))[:16], "fields": {"prompt": samples.messages, **answers},
        "metadata": metadata, "suggestions": {}, "responses": responses, "vectors": {},
    }  # fmt: skip


def user_id(name: str) -> str:
    """Argilla's users have UUIDs."""
    return str(uuid5(NAMESPACE_URL, name))


def status(label: Label) -> str:
    """Argilla submits only rankings of all answers; other labels are drafts."""
    if label.skipped:
        return "discarded"
    return "submitted" if label.ranks and None not in label.ranks else "draft"


def values(label: Label) -> Mapping[str, Any]:
    """The answer to each question."""
    found: dict[str, Any] = {"skipped": label.skipped, "demonstration": label.demonstration}
    ranked = [(n, rank) for n, rank in enumerate(label.ranks, start=1) if rank is not None]
    found["ranking"] = [{"value": f"answer-{n}", "rank": rank} for n, rank in ranked]
    for n, rating in enumerate(label.ratings, start=1):
        found |= {f"quality-{n}": rating.get("quality"), f"flags-{n}": chosen(rating)}
    return {question: value for question, value in found.items() if value}


def settings(count: int) -> dict[str, Any]:
    """Fields and questions of a dataset."""
    numbers = range(1, count + 1)
    ranking = [{"value": f"answer-{n}", "text": f"Answer {n}"} for n in numbers]
    quality = [{"value": value} for value in QUALITY]
    flags = [{"value": value, "text": meaning} for value, meaning in CHOICES.items()]
    reasons = [{"value": reason, "text": reason} for reason in SKIP_REASONS]
    questions = [item("ranking", "ranking", options=ranking)]
    for n in numbers:
        questions.append(item(f"quality-{n}", "rating", required=False, options=quality))
        questions.append(item(f"flags-{n}", "multi_label_selection", required=False, options=flags))
    questions.append(item("skipped", "label_selection", required=False, options=reasons))
    questions.append(item("demonstration", "text", required=False, use_markdown=False))
    fields = [item("prompt", "chat", use_markdown=False)]
    fields += [item(f"answer-{n}", "text", use_markdown=False) for n in numbers]
    guidelines = "Rank the answers, 1 for the best; answers of the same rank tie. To skip a record, discard it."
    return {
        "guidelines": guidelines, "fields": fields, "questions": questions, "vectors": [], "metadata": [],
        "allow_extra_metadata": True,
    }  # fmt: skip


def item(name: str, kind: str, required: bool = True, **more: Any) -> dict[str, Any]:
    """A field or question."""
    return {"name": name, "title": name, "required": required, "settings": {"type": kind, **more}}
