"""The calibration of a reward model: bins, temperature and loss, by hand and against scipy and the training loss.

pytest tests/evaluation/test_calibration.py
"""

import math

import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import brentq

from evaluation.reward_model import report
from reward.loss import pairwise_loss
from tests.evaluation.rankings import Case, cases, mean, pairs_of, ranking_example, right, simulated


def test_calibration_by_hand() -> None:
    # Margins of log 3, -log 3, log 4 and 0: 75% right, 75% wrong, 80% right, 50% half right.
    items = [ranking_example([1, 1], [(0, 1)])] * 4
    scores = [[math.log(3), 0.0], [0.0, math.log(3)], [math.log(4), 0.0], [1.0, 1.0]]
    found = report(scores, items)["calibration"]
    (only,) = found["bins"]
    assert (only["low"], only["high"], only["pairs"]) == (pytest.approx(0.5), pytest.approx(0.8), 4)
    assert only["predicted"] == pytest.approx((0.75 + 0.75 + 0.8 + 0.5) / 4)
    assert only["observed"] == pytest.approx(2.5 / 4)
    assert found["expected_calibration_error"] == pytest.approx(0.7 - 0.625)
    assert found["loss"] == pytest.approx(-(math.log(0.75) + math.log(0.25) + math.log(0.8) + math.log(0.5)) / 4)


@pytest.mark.parametrize(("prompts", "bins"), [(1, 1), (39, 1), (40, 2), (195, 9), (200, 10), (739, 10)])
def test_bins_are_slices_of_the_pairs_in_order_of_certainty(prompts: int, bins: int) -> None:
    scores, items = simulated(prompts, prompts, 1.0, choices=(2,))
    said = sorted(
        (1 / (1 + math.exp(-abs(row[i] - row[j]))), right(row[i], row[j]))
        for row, item in zip(scores, items, strict=True)
        for i, j in pairs_of(item)
    )
    slices = [said[k * prompts // bins : (k + 1) * prompts // bins] for k in range(bins)]
    found = report(scores, items, resamples=200)["calibration"]
    assert [one["pairs"] for one in found["bins"]] == [len(part) for part in slices]
    for one, part in zip(found["bins"], slices, strict=True):
        assert one["predicted"] == pytest.approx(mean(p for p, _ in part))
        assert one["observed"] == pytest.approx(mean(hit for _, hit in part))
        assert (one["low"], one["high"]) == (pytest.approx(part[0][0]), pytest.approx(part[-1][0]))
        assert one["observed_low"] <= one["observed"] <= one["observed_high"]
    gaps = [len(part) * abs(sum(p - hit for p, hit in part)) / len(part) for part in slices]
    assert found["expected_calibration_error"] == pytest.approx(sum(gaps) / prompts)


def test_equal_certainties_share_a_bin() -> None:
    # 70 pairs of margin 1 and 30 of margin 2, in turns: a bin each, where bins of 20 would have cut both.
    scores = [[float(1 + (n % 10 < 3)), 0.0] for n in range(100)]
    found = report(scores, [ranking_example([1, 1], [(0, 1)])] * 100, resamples=50)["calibration"]["bins"]
    assert [(one["pairs"], one["low"] == one["high"]) for one in found] == [(70, True), (30, True)]


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_the_loss_is_that_of_training(case: Case) -> None:
    scores, items = case
    most = max(len(row) for row in scores)
    preference_mask_BKK = torch.zeros(len(items), most, most, dtype=torch.bool)
    scores_BK = torch.zeros(len(items), most, dtype=torch.float64)
    for n, (row, item) in enumerate(zip(scores, items, strict=True)):
        preference_mask_BKK[n, : len(row), : len(row)] = item.preference_mask_KK
        scores_BK[n, : len(row)] = torch.tensor(row, dtype=torch.float64)
    assert report(scores, items, resamples=20)["calibration"]["loss"] == pytest.approx(
        float(pairwise_loss(scores_BK, preference_mask_BKK))
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_has_the_least_loss(seed: int) -> None:
    scores, items = simulated(seed, 60, 0.5)
    margins = [[row[i] - row[j] for i, j in pairs_of(item)] for row, item in zip(scores, items, strict=True)]

    def slope(inverse: float) -> float:
        return -sum(mean(m / (1 + math.exp(inverse * m)) for m in row) or 0.0 for row in margins)

    expected = 1 / brentq(slope, 1e-6, 100, xtol=1e-14, rtol=1e-14)
    found = report(scores, items, resamples=20)["calibration"]["temperature"]
    # The loss is flat at its least: a minimum is known to the root of float64's precision.
    assert found == pytest.approx(expected, rel=1e-6)
    for factor in (1e-3, 40.0):
        times = [[factor * score for score in row] for row in scores]
        assert report(times, items, resamples=20)["calibration"]["temperature"] == pytest.approx(
            factor * expected, rel=1e-6
        )


@pytest.mark.parametrize(
    "scores", [[[2.0, 1.0], [3.0, 0.0]], [[1.0, 2.0], [0.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]]
)
def test_no_temperature_fits_a_model_without_mistakes_or_no_better_than_a_coin(scores: list[list[float]]) -> None:
    assert report(scores, [ranking_example([1, 1], [(0, 1)])] * 2)["calibration"]["temperature"] is None


def test_scores_far_apart_overflow_nothing() -> None:
    found = report([[1e6, -1e6], [-1e6, 1e6]], [ranking_example([1, 1], [(0, 1)])] * 2)
    assert found["calibration"]["loss"] == pytest.approx(1e6)
    assert found["calibration"]["bins"][0]["predicted"] == 1
