"""Bootstrap intervals against a bootstrap written apart from them, and where there is nothing to resample."""

import math

import numpy as np
import pytest

import data.intervals
from data.intervals import Bootstrap, interval, ratio_interval, tail

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
    return float(np.quantile(ratios, tail(size))), float(np.quantile(ratios, 1 - tail(size))), float(ratios.std())


@pytest.mark.parametrize(("units", "t"), [(2, 12.706), (11, 2.228), (20, 2.093), (121, 1.980)])
def test_few_units_widen_the_interval_by_students_t(units: int, t: float) -> None:
    """With t from a printed table."""
    assert tail(units) == pytest.approx(math.erfc(t * (units / (units - 1) / 2) ** 0.5) / 2, rel=1e-2)
    assert tail(1_000_000) == pytest.approx(0.025, rel=1e-4)


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


def test_the_interval_of_equal_values_is_their_mean_to_the_last_bit() -> None:
    for count in range(2, 120):
        found = interval([0.1] * count, 50)
        assert found["low"] == found["mean"] == found["high"], count


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


def test_users_are_resampled_with_all_their_prompts() -> None:
    """Each user's prompts have one value here, so taking them for independent would give less than half the width."""
    generator = np.random.default_rng(6)
    counts = generator.integers(1, 12, size=40)
    values = np.repeat(generator.random(40), counts)
    users = [f"user {number}" for number in np.repeat(np.arange(40), counts)]
    found = Bootstrap(RESAMPLES, users).interval(list(values))
    sums = np.array([values[np.array(users) == user].sum() for user in dict.fromkeys(users)])
    low, high, error = own_bootstrap(sums, counts.astype(float))
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert (found["n"], found["users"]) == (len(values), 40)
    assert found["low"] == pytest.approx(low, abs=TOLERANCE * error)
    assert found["high"] == pytest.approx(high, abs=TOLERANCE * error)
    apart = Bootstrap(RESAMPLES).interval(list(values))
    assert found["high"] - found["low"] > 2 * (apart["high"] - apart["low"])


def test_an_interval_over_users_covers_the_truth_and_one_over_prompts_does_not() -> None:
    generator, covered = np.random.default_rng(7), np.zeros(2)
    users = [str(number // 8) for number in range(240)]
    for _ in range(200):
        values = list(np.repeat(generator.normal(size=30), 8) + 0.3 * generator.normal(size=240))
        for place, given in enumerate((users, None)):
            found = Bootstrap(400, given).interval(values)
            covered[place] += found["low"] <= 0 <= found["high"]
    together, apart = covered / 200
    assert together > 0.88
    assert apart < 0.7


def test_an_interval_of_ten_users_covers_the_truth() -> None:
    """In 94% of simulations; plain percentiles cover it in 89%."""
    generator, covered = np.random.default_rng(9), 0
    users = np.repeat(np.arange(10), 8)
    for _ in range(600):
        values = generator.normal(0, 0.15, size=10)[users] + generator.normal(0, 0.45, size=len(users))
        found = Bootstrap(500, list(users)).interval(list(values))
        covered += found["low"] <= 0 <= found["high"]
    assert covered / 600 > 0.92


def test_prompts_without_a_value_and_users_of_one_prompt() -> None:
    values = [0.1, None, 0.4, 0.9, None, 0.3]
    kept = [value for value in values if value is not None]
    plain = interval(kept, RESAMPLES)
    assert Bootstrap(RESAMPLES).interval(values) == plain
    assert Bootstrap(RESAMPLES, list("abcdef")).interval(values) == plain | {"users": 4}
    assert Bootstrap(RESAMPLES, list("aabbcc")).among([0, 2, 3]) == Bootstrap(RESAMPLES, list("abb"))
    with pytest.raises(ValueError, match="nothing to take a mean of"):
        Bootstrap(RESAMPLES, ["a"]).interval([None])


def test_another_seed_draws_other_prompts() -> None:
    one, same, other = ([*Bootstrap(5, seed=seed).draws(20, 5)] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
