"""From the web app's labels to records, and what they say about the labelers."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import Any

from data.records import Demonstration, Prompt, Ranking, to_row
from labeling.agreement import agreement, judgment
from labeling.web.conversations import Conversations
from labeling.web.store import Label, Store

SOFT_CUT = 0.75
"""Agreement with the right ranks of gold tasks from which a labeler passes the screening; the paper's soft cut-off for
agreement on sensitive speech (B.1)."""


def rankings_of(store: Store) -> Iterator[Ranking]:
    """A record for each label that ranks answers; skipped tasks and demonstrations alone give none."""
    for name, samples, label, _ in store.labels():
        if label.skipped or not label.ranks:
            continue
        yield Ranking(
            **{field: getattr(samples, field) for field in Prompt.__dataclass_fields__},
            completions=samples.completions,
            complete=samples.complete,
            ranks=label.ranks,
            labeler="human",
            labeler_id=name,
            ratings=label.ratings or None,
        )


def demonstrations_of(store: Store) -> Iterator[Demonstration]:
    """The answers that labelers wrote."""
    for name, samples, label, _ in store.labels():
        if label.demonstration:
            prompt = vars(Prompt.of(samples)) | {"dataset": f"written by {name}"}
            yield Demonstration(**prompt, completion=label.demonstration)


def rows_of(store: Store) -> dict[str, Iterator[dict[str, Any]]]:
    """The rows of each file of the export. `rankings` (with those of the playground), `demonstrations` and the
    playground's `prompts` are for training; `labels` has all revisions of all labels, with skipped and gold tasks;
    `conversations` has everything from the playground.
    """
    playground = Conversations(store).rows()
    return {
        "rankings": chain(map(to_row, rankings_of(store)), playground["rankings"]),
        "demonstrations": map(to_row, demonstrations_of(store)),
        "labels": (
            {"labeler_id": one.name, "saved": one.saved, **asdict(one.label), "task": to_row(one.samples)}
            | ({} if one.gold is None else {"gold": one.gold})
            for one in store.history()
        ),
        "prompts": iter(playground["prompts"]),
        "conversations": iter(playground["conversations"]),
    }


def screening(store: Store) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """(agreement of the labelers among each other, labeler -> share of the strict pairs of gold tasks that she orders
    as the right ranks do, their number, and whether she passes).
    """
    prompts = defaultdict(list)
    for ranking in rankings_of(store):
        prompts[ranking.prompt_id].append((ranking.labeler_id, judgment(ranking)))
    screened = {}
    for name, tasks in store.golds().items():
        pairs = [pair for right, label in tasks for pair in gold_pairs(right, label)]
        right = sum(pairs) / len(pairs) if pairs else None
        screened[name] = {"pairs": len(pairs), "right": right, "passes": right is not None and right >= SOFT_CUT}
    return agreement(prompts.values()), screened


def gold_pairs(right: list[int | None], label: Label) -> list[bool]:
    """For each strict pair of the right ranks, whether the label orders it so; ties and unranked answers do not."""
    found = []
    for one, best in enumerate(right):
        for other, worst in enumerate(right):
            if best is not None and worst is not None and best < worst:
                ours, theirs = (label.ranks[place] if label.ranks else None for place in (one, other))
                found.append(ours is not None and theirs is not None and ours < theirs)
    return found
