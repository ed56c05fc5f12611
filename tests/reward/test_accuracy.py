"""Agreement with the labeler, on examples small enough to count by hand.

pytest tests/reward/test_accuracy.py
"""

import math
import random
from dataclasses import replace

import pytest
import torch

from reward.accuracy import best_vs_worst, lengths_as_scores, pair_margins, pair_outcomes, ranks_as_scores, tied_margins
from reward.batches import RankingExample


def judged(pairs: list[tuple[int, int]], answers: int) -> RankingExample:
    preference_mask_KK = torch.zeros(answers, answers, dtype=torch.bool)
    for better, worse in pairs:
        preference_mask_KK[better, worse] = True
    return RankingExample([1], [[2]] * answers, preference_mask_KK)


def from_ranks(ranks: list[int | None]) -> RankingExample:
    pairs = [
        (i, j) for i, high in enumerate(ranks) for j,
        low in enumerate(ranks) if high is not None and low is not None and high < low
    ]  # fmt: skip
    return judged(pairs, len(ranks))


def test_each_strict_pair_counts_once_and_equal_scores_count_half() -> None:
    item = from_ranks([1, 2, 2, 3])
    # Pairs: 0>1 right, 0>2 wrong, 0>3 equal, 1>3 wrong, 2>3 right.
    assert sorted(pair_outcomes([2.0, 1.0, 3.0, 2.0], item)) == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_answers_that_nobody_compared_do_not_count() -> None:
    assert pair_outcomes([1.0, 9.0, 2.0], from_ranks([1, None, 2])) == [0.0]
    assert pair_outcomes([1.0, 9.0], from_ranks([1, 1])) == []


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_a_half_the_truth_is_one_and_its_opposite_zero(seed: int) -> None:
    chance = random.Random(seed)
    ranks = [chance.randint(1, 4) for _ in range(9)]
    item = from_ranks(ranks)
    assert set(pair_outcomes([-float(rank) for rank in ranks], item)) == {1.0}
    assert set(pair_outcomes([float(rank) for rank in ranks], item)) == {0.0}
    assert set(pair_outcomes([0.0] * 9, item)) == {0.5}


def test_margins_are_better_less_worse_and_pairs_keep_the_order_of_the_matrix() -> None:
    item = judged([(2, 1), (0, 3), (2, 0)], 4)
    assert pair_margins([1.0, 4.0, 0.5, -2.0], item).tolist() == [1.0 + 2.0, 0.5 - 1.0, 0.5 - 4.0]
    assert pair_outcomes([1.0, 4.0, 0.5, -2.0], item) == [1.0, 0.0, 0.0]
    assert pair_margins([1.0], judged([], 1)).shape == (0,)


def test_tied_margins_are_of_the_pairs_judged_equal_alone() -> None:
    item = replace(judged([(0, 1)], 4), ties=((0, 3), (1, 2)))
    assert tied_margins([1.0, 4.0, 0.5, -2.0], item).tolist() == [3.0, 3.5]
    assert tied_margins([1.0, 2.0], judged([(0, 1)], 2)).shape == (0,)


def test_the_labelers_order_has_steps_of_one() -> None:
    found = ranks_as_scores(replace(judged([], 5), ranks=(4, None, 1, 1, 9)))
    assert found is not None
    assert [value for value in found if not math.isnan(value)] == [-1.0, 0.0, 0.0, -2.0]
    assert math.isnan(found[1])
    assert ranks_as_scores(judged([(0, 1)], 2)) is None


def test_a_cycle_cannot_be_got_right_altogether() -> None:
    outcomes = pair_outcomes([3.0, 2.0, 1.0], judged([(0, 1), (1, 2), (2, 0)], 3))
    assert sorted(outcomes) == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.0, 3.0, 1.0, 9.0], 1.0), ([0.0, 1.0, 3.0, -9.0], 0.0), ([5.0, 1.0, 1.0, 5.0], 0.5)],
)
def test_best_against_worst_looks_at_those_two_alone(scores: list[float], expected: float) -> None:
    assert best_vs_worst(scores, from_ranks([2, 1, 3, None])) == expected


def test_several_best_and_worst_answers_all_count_whatever_their_order() -> None:
    # Best 0 and 3, worst 1 and 4: of their four pairs, 3 against 1 and against 4 are right, 0 against 4 is even.
    scores, ranks = [1.0, 2.0, 9.0, 5.0, 1.0], [1, 3, 2, 1, 3]
    assert best_vs_worst(scores, from_ranks(ranks)) == (1 + 1 + 0.5 + 0) / 4
    assert best_vs_worst(scores[::-1], from_ranks(ranks[::-1])) == (1 + 1 + 0.5 + 0) / 4


def test_there_is_no_best_or_worst_in_a_cycle_or_a_tie() -> None:
    assert best_vs_worst([3.0, 2.0, 1.0], judged([(0, 1), (1, 2), (2, 0)], 3)) is None
    assert best_vs_worst([3.0, 2.0, 1.0], judged([], 3)) is None


def test_lengths_are_in_tokens() -> None:
    assert lengths_as_scores(
        RankingExample([1, 2, 3], [[4], [5, 6, 7], [8, 9]], torch.zeros(3, 3, dtype=torch.bool))
    ) == [
        1.0,
        3.0,
        2.0,
    ]
