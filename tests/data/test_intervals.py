"""Bootstrap intervals against a bootstrap written apart from them, and where there is nothing to resample."""

import numpy as np
import pytest

import data.intervals
from data.intervals import interval, ratio_interval

RESAMPLES = 10_000
# A resampled 2.5% quantile has a standard error of sqrt(p (1 - p) / R) over the density there, 0.027 of the mean's own
# standard error for R = 10,000; two independent ones differ by 0.038 of it. Four times that is 0.15: the 95% and the
# 90% quantile lie 0.31 apart.
TOLERANCE = 0.15


def own_bootstrap(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """(low, high, standard error) of sum over count, by multinomial weights instead of drawn rows."""
    generator, size = np.random.default_rng(99), len(sums)
    weights = generator.multinomial(size, np.full(size, 1 / size), size=40_000)
    ratios = (weights @ sums) / (weights @ counts)
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975)), float(ratios.std())


@pytest.mark.parametrize("kind", ["wins", "skewed", "few"])
def test_the_interval_is_the_percentile_bootstrap_of_the_mean(kind: str) -> None:
    generator = np.random.default_rng(1)
    values = {
        "wins": generator.choice([0.0, 0.5, 1.0], size=120, p=[0.3, 0.1, 0.6]),
        "skewed": generator.exponential(2.0, size=80),
        "few": np.array([0.1, 0.7, 0.2, 1.9, 0.4, 1.0, 0.6, 0.3, 1.2, 0.8, 0.9]),
    }[kind]
    found = interval(list(values), RESAMPLES)
    low, high, error = own_bootstrap(values, np.ones(len(values)))
    assert found["mean"] == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert found["n"] == len(values)
    assert found["low"] == pytest.approx(low, abs=TOLERANCE * error)
    assert found["high"] == pytest.approx(high, abs=TOLERANCE * error)


def test_a_ratio_resamples_prompts_with_all_their_pairs() -> None:
    """Ten pairs of a prompt stand and fall together here, so taking pairs for independent would give a third of the
    width.
    """
    generator = np.random.default_rng(2)
    counts = generator.integers(1, 20, size=60).astype(float)
    sums = counts * generator.integers(0, 2, size=60)
    found = ratio_interval(list(sums), list(counts), RESAMPLES)
    low, high, error = own_bootstrap(sums, counts)
    assert found["mean"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-12)
    assert found["n"] == counts.sum()
    assert found["low"] == pytest.approx(low, abs=TOLERANCE * error)
    assert found["high"] == pytest.approx(high, abs=TOLERANCE * error)
    share = found["mean"]
    pairs_apart = 2 * 1.96 * (share * (1 - share) / counts.sum()) ** 0.5
    assert found["high"] - found["low"] > 2 * pairs_apart


def test_with_one_pair_a_prompt_both_intervals_are_the_same() -> None:
    values = list(np.random.default_rng(3).random(50))
    one, other = interval(values, RESAMPLES), ratio_interval(values, [1.0] * 50, RESAMPLES)
    error = np.std(values) / 50**0.5
    assert one["mean"] == pytest.approx(other["mean"], rel=1e-12)
    assert (one["low"], one["high"]) == pytest.approx((other["low"], other["high"]), abs=TOLERANCE * error)


@pytest.mark.parametrize("values", [[0.7], [0.5] * 30, [0.0, 0.0], [1]])
def test_where_nothing_varies_the_interval_is_the_point(values: list[float]) -> None:
    assert interval(values) == {"mean": values[0], "low": values[0], "high": values[0], "n": len(values)}
    assert ratio_interval(values, [1] * len(values)) == {
        "mean": values[0],
        "low": values[0],
        "high": values[0],
        "n": len(values),
    }


@pytest.mark.parametrize(
    "make", [lambda: interval([]), lambda: ratio_interval([], []), lambda: ratio_interval([0.0, 0.0], [0, 0])]
)
def test_a_mean_of_nothing_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="nothing to take a mean of"):
        make()  # type: ignore[operator]


def test_the_same_values_give_the_same_interval_every_time() -> None:
    values = [0.1, 0.7, 0.2, 1.9, 0.4]
    assert interval(values, 500) == interval(values, 500)
    assert ratio_interval(values, [1, 2, 3, 4, 5], 500) == ratio_interval(values, [1, 2, 3, 4, 5], 500)
    assert interval(values, 500)["low"] <= interval(values, 500)["mean"] <= interval(values, 500)["high"]


def test_resampling_in_pieces_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, counts = [1.0, 0.0, 3.0, 2.0], [2.0, 1.0, 3.0, 4.0]
    whole = ratio_interval(sums, counts, resamples=501)
    monkeypatch.setattr(data.intervals, "DRAWS_AT_A_TIME", 40)
    assert ratio_interval(sums, counts, resamples=501) == whole
