"""How far labelers agree who ranked the same answers to the same prompt (Ouyang et al. 2022, section 3.4: 72.6%).

A unit is a pair of answers that two labelers both judged. Answers are told by their text, prompts as near-duplicates
are; a labeler who put a pair both ways has not judged it.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.build import Built
from data.pages import Interval
from data.part import Part
from data.records import Ranking
from data.report.rankings import interval_of
from data.sets import record_of

MOST_PROMPTS = 5000
"""Prompts looked at, spread evenly over all that have several rankings."""

Judgment = dict[tuple[str, str], int]
"""Two answers in the order of their texts -> 1 when the first is the better one, -1 when the second is, 0 when they
tie.
"""
Judged = Sequence[tuple[str, Judgment]]
"""(labeler, judgment) of one prompt."""


@dataclass(frozen=True)
class Agreement:
    """Over all prompts that two labelers have judged a pair of answers of."""

    prompts: int
    labelers: int
    strict: Interval | None
    """Of the pairs that both order strictly, how many both order the same way."""
    three_way: Interval | None
    """Of all pairs, how many get the same of three judgments: one, the other, a tie."""
    tau: float | None
    """Kendall's tau-b, mean over prompts and pairs of labelers; None where every one of them ties all."""


def agreement_of(built: Built) -> Agreement | None:
    """Over the rankings that curation kept; None where no two labelers ranked the same answers."""
    return agreement(judged_prompts(built.rankings))


def judged_prompts(part: Part) -> Iterator[Judged]:
    """The judgments of prompts that have several rankings, prompt by prompt; rankings without a labeler id are left
    out.
    """
    kept = np.flatnonzero(part.kept())
    _, prompt, counts = np.unique(part.item[kept], return_inverse=True, return_counts=True)
    order = np.argsort(prompt, kind="stable")
    ends = np.cumsum(counts)
    several = np.flatnonzero(counts > 1)
    looked_at = min(MOST_PROMPTS, len(several))
    for chosen in several[np.arange(looked_at) * len(several) // max(1, looked_at)]:
        rows = kept[order[ends[chosen] - counts[chosen] : ends[chosen]]]
        records = [record_of(row, Ranking) for row in part.spool.rows(rows)]
        yield [(record.labeler_id, judgment(record)) for record in records if record.labeler_id]


def judgment(record: Ranking) -> Judgment:
    """What a ranking says of each pair of its answers."""
    answers, said = record.completions, list[tuple[int, int, int]]()
    if record.ranks is not None:
        ranked = [(place, rank) for place, rank in enumerate(record.ranks) if rank is not None]
        said = [(i, j, (a < b) - (a > b)) for (i, a), (j, b) in itertools.combinations(ranked, 2)]
    said += [(better, worse, 1) for better, worse in record.preferences or ()]
    said += [(first, second, 0) for first, second in record.ties or ()]
    found: dict[tuple[str, str], set[int]] = {}
    for i, j, sign in said:
        if answers[i] != answers[j]:
            pair, turned = (
                ((answers[i], answers[j]), sign) if answers[i] < answers[j] else ((answers[j], answers[i]), -sign)
            )
            found.setdefault(pair, set()).add(turned)
    return {pair: signs.pop() for pair, signs in found.items() if len(signs) == 1}


def agreement(prompts: Iterable[Judged]) -> Agreement | None:
    """Compares every two labelers of each prompt; None where there are no two."""
    rows: list[list[int]] = []
    taus: list[float] = []
    labelers: Counter[str] = Counter()
    for judged in prompts:
        row = [0, 0, 0, 0]
        for (one, first), (other, second) in itertools.combinations(judged, 2):
            both = [(first[pair], second[pair]) for pair in first.keys() & second.keys()]
            if one == other or not both:
                continue
            labelers.update((one, other))
            strict = [a == b for a, b in both if a and b]
            row = [
                row[0] + sum(strict),
                row[1] + len(strict),
                row[2] + sum(a == b for a, b in both),
                row[3] + len(both),
            ]
            if (tau := tau_b(both)) is not None:
                taus.append(tau)
        if row[3]:
            rows.append(row)
    if not rows:
        return None
    agreed, strict_pairs, same, pairs = np.array(rows, dtype=float).T
    return Agreement(
        len(rows),
        len(labelers),
        interval_of(agreed, strict_pairs) if strict_pairs.sum() else None,
        interval_of(same, pairs),
        math.fsum(taus) / len(taus) if taus else None,
    )


def tau_b(both: Sequence[tuple[int, int]]) -> float | None:
    """Kendall's tau-b from two labelers' judgments of the same pairs; None where one of them ties everything."""
    norm = sum(abs(a) for a, _ in both) * sum(abs(b) for _, b in both)
    return sum(a * b for a, b in both) / math.sqrt(norm) if norm else None
