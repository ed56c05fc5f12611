"""Tasks and labels as files that Label Studio imports: its tasks and a labeling interface.

The interface ranks with a bucket for each rank, so that answers can tie or stay unranked.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from data.records import Samples, to_row
from data.sources.label_studio import UNRANKED
from labeling.ratings import CHOICES, QUALITY, chosen
from labeling.web.forms import SKIP_REASONS
from labeling.web.store import Saved


def files_of(tasks: Iterable[tuple[Samples, list[Saved]]]) -> dict[str, str]:
    """File name -> content."""
    listed = list(tasks)
    most = max((len(samples.completions) for samples, _ in listed), default=2)
    rows = [task_of(samples, labels, most) for samples, labels in listed]
    return {"label_studio.json": json.dumps(rows, ensure_ascii=False, indent=1), "label_studio.xml": interface(most)}


def task_of(samples: Samples, labels: list[Saved], most: int) -> dict[str, Any]:
    """A task; the interface shows `most` answers, of which missing ones are empty."""
    texts = samples.completions + [""] * (most - len(samples.completions))
    data: dict[str, Any] = {"prompt": samples.text} | {f"answer_{n}": text for n, text in enumerate(texts, start=1)}
    data["items"] = [{"id": str(n), "title": str(n), "body": text} for n, text in enumerate(samples.completions, 1)]
    data["record"] = {key: value for key, value in to_row(samples).items() if key != "completions"}
    return {"data": data, "annotations": [annotation_of(saved) for saved in labels]}


def annotation_of(saved: Saved) -> dict[str, Any]:
    """An annotation. Its labeler and time are in the Ranker's `meta`, because Label Studio imports only annotators that
    are its users, and no times.
    """
    label = saved.label
    ranks = label.ranks or [None] * len(saved.samples.completions)
    buckets: dict[str, list[str]] = {}
    for number, rank in enumerate(ranks, start=1):
        buckets.setdefault(UNRANKED if rank is None else str(rank), []).append(str(number))
    results = [region("rank", "answers", "ranker", {"ranker": buckets})]
    results[0]["meta"] = {"labeler_id": saved.name, "saved": saved.saved, "seconds": label.seconds}
    for number, rating in enumerate(label.ratings, start=1):
        if rating:
            results.append(region(f"quality-{number}", f"answer-{number}", "rating", {"rating": rating["quality"]}))
        if flags := chosen(rating):
            results.append(region(f"flags-{number}", f"answer-{number}", "choices", {"choices": flags}))
    if label.skipped:
        results.append(region("skipped", "prompt", "choices", {"choices": [label.skipped]}))
    if label.demonstration:
        results.append(region("demonstration", "prompt", "textarea", {"text": [label.demonstration]}))
    times = {"lead_time": label.seconds, "was_cancelled": bool(label.skipped), "ground_truth": False}
    return {"result": results, **times}


def region(name: str, of: str, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """One of the results of an annotation."""
    return {"id": name, "from_name": name, "to_name": of, "type": kind, "value": value}


def interface(most: int) -> str:
    """The labeling interface for up to `most` answers."""
    view = ElementTree.Element("View")

    def add(tag: str, parent: ElementTree.Element = view, **attributes: str) -> ElementTree.Element:
        return ElementTree.SubElement(parent, tag, attributes)

    add("Style").text = ".htx-text, .htx-ranker-item { white-space: pre-wrap }"
    add("Text", name="prompt", value="$prompt")
    for number in range(1, most + 1):
        answer = f"answer-{number}"
        add("Header", value=f"Answer {number}")
        add("Text", name=answer, value=f"$answer_{number}")
        add("Rating", name=f"quality-{number}", toName=answer, maxRating=str(max(QUALITY)))
        flags = add("Choices", name=f"flags-{number}", toName=answer, choice="multiple")
        for value, meaning in CHOICES.items():
            add("Choice", flags, value=value, hint=meaning)
    add("List", name="answers", value="$items", title="Not ranked")
    ranker = add("Ranker", name="rank", toName="answers")
    for number in range(1, most + 1):
        add("Bucket", ranker, name=str(number), title=f"Rank {number}")
    reasons = add("Choices", name="skipped", toName="prompt", choice="single")
    for reason in SKIP_REASONS:
        add("Choice", reasons, value=reason)
    add("TextArea", name="demonstration", toName="prompt", maxSubmissions="1", rows="6", placeholder="A better answer")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"
