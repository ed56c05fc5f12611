"""The reward model's report, on rankings small enough to count by hand."""

import pytest
import torch

from evaluation.reward_model import report
from reward.batches import Element


def element(lengths: list[int], better: list[tuple[int, int]]) -> Element:
    better_KK = torch.zeros(len(lengths), len(lengths), dtype=torch.bool)
    for high, low in better:
        better_KK[high, low] = True
    return Element([1, 2], [[3] * length for length in lengths], better_KK)


def test_every_number_by_hand() -> None:
    items = [
        element([5, 4, 3], [(0, 1), (0, 2), (1, 2)]),
        element([2, 2, 9, 1], [(0, 2), (1, 2)]),
        element([1, 7], [(0, 1)]),
    ]
    scores = [[3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 5.0], [-1.0, 1.0]]
    found = report(scores, items)
    # right, right, wrong; two ties; wrong: 1 + 1 + 0 + 1/2 + 1/2 + 0 of six pairs
    assert found["accuracy"]["mean"] == pytest.approx(3 / 6)
    # 3 against 2, 0 against 0, -1 against 1
    assert found["best_vs_worst"]["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    # the longer is better in three of three; 2 against 9 twice wrong; 1 against 7 wrong
    assert found["longest_baseline"]["mean"] == pytest.approx(3 / 6)
    flat = [value for row in scores for value in row]
    mean = sum(flat) / 9
    assert found["score_std"] == pytest.approx((sum((value - mean) ** 2 for value in flat) / 9) ** 0.5)
    assert (found["prompts"], found["pairs"]) == (3, 6)
    assert found["accuracy"]["n"] == 6
    assert found["accuracy"]["low"] < found["accuracy"]["mean"] < found["accuracy"]["high"]


def test_a_constant_reward_model_is_right_half_the_time() -> None:
    items = [element([1, 2, 3], [(0, 1), (2, 1)]), element([1, 2], [(1, 0)])]
    found = report([[2.0] * 3, [2.0] * 2], items)
    assert (found["accuracy"]["mean"], found["best_vs_worst"]["mean"], found["score_std"]) == (0.5, 0.5, 0)


def test_all_that_counts_is_the_order_of_scores() -> None:
    items = [element([5, 4, 3], [(0, 1), (0, 2), (1, 2)]), element([2, 2], [(1, 0)])]
    scores = [[0.3, 0.1, 0.2], [0.9, -0.4]]
    moved = [[100 + 7 * value for value in row] for row in scores]
    assert report(moved, items)["accuracy"] == report(scores, items)["accuracy"]
    turned = report([[-value for value in row] for row in scores], items)
    assert turned["accuracy"]["mean"] == pytest.approx(1 - report(scores, items)["accuracy"]["mean"])


def test_judgments_in_a_circle_have_an_accuracy_but_no_best_and_worst() -> None:
    circle = element([1, 2, 3], [(0, 1), (1, 2), (2, 0)])
    found = report([[3.0, 2.0, 1.0]], [circle])
    assert found["best_vs_worst"] is None
    assert found["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert report([[3.0, 2.0, 1.0], [1.0, 0.0]], [circle, element([1, 1], [(0, 1)])])["best_vs_worst"]["n"] == 1
