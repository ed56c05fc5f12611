"""Rankings made for tests of the reward model's report."""

import math
import random
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from reward.batches import RankingExample

Case = tuple[list[list[float]], list[RankingExample]]


def ranking_example(
    lengths: list[int], better: list[tuple[int, int]], ties: tuple[tuple[int, int], ...] = ()
) -> RankingExample:
    """Judgments that are no order."""
    preference_mask_KK = torch.zeros(len(lengths), len(lengths), dtype=torch.bool)
    for high, low in better:
        preference_mask_KK[high, low] = True
    return RankingExample([1, 2], [[3] * length for length in lengths], preference_mask_KK, ties)


def ranked(lengths: list[int], ranks: list[int | None]) -> RankingExample:
    """Judgments that are one."""
    known = [(place, rank) for place, rank in enumerate(ranks) if rank is not None]
    better = [(i, j) for i, high in known for j, low in known if high < low]
    ties = tuple((i, j) for (i, one), (j, other) in combinations(known, 2) if one == other)
    return replace(ranking_example(lengths, better, ties), ranks=tuple(ranks))


def pairs_of(item: RankingExample) -> list[tuple[int, int]]:
    return [(i, j) for i, j in permutations(range(len(item.answers)), 2) if bool(item.preference_mask_KK[i, j])]


def right(better: float, worse: float) -> float:
    return 1.0 if better > worse else 0.5 if better == worse else 0.0


def mean(values: Any) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def is_about(found: dict[str, float] | None, expected: float | None) -> bool:
    return (
        found is None if expected is None else found is not None and found["mean"] == pytest.approx(expected, abs=1e-12)
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Scores that often coincide, ragged K, ties, gaps in ranks, answers that nobody ranked, prompts without ranks."""
    scores, items = [], []
    for _ in range(draw(st.integers(1, 6))):
        k = draw(st.integers(2, 6))
        lengths = draw(st.lists(st.integers(1, 4), min_size=k, max_size=k))
        ranks = draw(st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=k, max_size=k))
        item = ranked(lengths, ranks)
        items.append(replace(item, ranks=None) if draw(st.integers(0, 3)) == 0 else item)
        scores.append(draw(st.lists(st.integers(-6, 6).map(lambda score: score / 4), min_size=k, max_size=k)))
    assume(any(item.pairs for item in items))
    return scores, items


def simulated(seed: int, prompts: int, sureness: float, choices: tuple[int, ...] = (2, 5, 9)) -> Case:
    """Scores, and a labeler who prefers i to j with probability sigmoid(sureness * (score_i - score_j))."""
    chance = random.Random(seed)
    scores, items = [], []
    for _ in range(prompts):
        k = chance.choice(choices)
        row = [chance.gauss(0, 1.5) for _ in range(k)]
        better = [
            (i, j) if chance.random() < 1 / (1 + math.exp(-sureness * (row[i] - row[j]))) else (j, i)
            for i, j in combinations(range(k), 2)
        ]
        scores.append(row)
        items.append(ranking_example([chance.randint(1, 9) for _ in range(k)], better))
    return scores, items
