"""The length-controlled win rate against a regression solved apart from it, and where the answer is known."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from data.intervals import Bootstrap
from evaluation.compare import Answer, win_rate
from evaluation.length_control import WEAK, length_controlled

Rows = list[list[Answer]]


def answer(score: float, tokens: int) -> Answer:
    return Answer("", True, tokens, {"score": score})


def duels(bias: float, strength: float, longer: float, prompts: int = 400, seed: int = 0) -> tuple[Rows, Rows]:
    """Pairs whose winner is drawn from sigmoid(strength + bias * tanh(difference / its root mean square)). Our answers
    are longer by `longer` tokens on average.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 120, size=(prompts, 2)) + np.array([longer, 0])
    difference = (lengths[:, 0] - lengths[:, 1]).astype(float)
    won = rng.random(prompts) < expit(strength + bias * np.tanh(difference / np.sqrt((difference**2).mean())))
    ours = [[answer(float(win), int(mine))] for win, mine in zip(won, lengths[:, 0], strict=True)]
    theirs = [[answer(float(not win), int(other))] for win, other in zip(won, lengths[:, 1], strict=True)]
    return ours, theirs


def test_a_planted_preference_for_length_is_taken_out() -> None:
    ours, theirs = duels(bias=3.0, strength=0.0, longer=60)
    assert win_rate(ours, theirs, 0.0, Bootstrap(200))["low"] > 0.7, "by length alone"
    found = length_controlled(ours, theirs, 0.0, Bootstrap(200))
    assert found["low"] < 0.5 < found["high"]
    ours, theirs = duels(bias=3.0, strength=1.0, longer=-60)
    assert win_rate(ours, theirs, 0.0, Bootstrap(200))["mean"] < 0.5
    found = length_controlled(ours, theirs, 0.0, Bootstrap(200))
    assert found["low"] < expit(1.0) < found["high"]
    assert found["low"] > 0.5, "better, though shorter"


def test_it_is_the_regression_at_equal_length_with_ties_as_halves_and_prompts_weighing_the_same() -> None:
    rng = np.random.default_rng(4)

    def rows() -> Rows:
        return [
            [answer(float(rng.choice([0.0, 0.5, 1.0])), int(rng.integers(5, 60))) for _ in range(rng.integers(1, 4))]
            for _ in range(30)
        ]

    ours, theirs = rows(), rows()
    lengths, outcomes, weights = [], [], []
    for left, right in zip(ours, theirs, strict=True):
        for a in left:
            for b in right:
                mine, other = a.parts["score"], b.parts["score"]
                lengths.append(float(a.tokens - b.tokens))
                outcomes.append(1.0 if mine > other else 0.0 if mine < other else 0.5)
                weights.append(1 / (len(left) * len(right)))
    x, y, w = np.array(lengths), np.array(outcomes), np.array(weights)
    x = np.tanh(x / np.sqrt((w * x**2).sum() / w.sum()))

    def loss(theta: np.ndarray) -> float:
        logit = theta[0] + theta[1] * x
        likelihood = w * (y * log_expit(logit) + (1 - y) * log_expit(-logit))
        return float(-likelihood.sum() + theta[1] ** 2 / (2 * WEAK))

    expected = expit(minimize(loss, np.zeros(2), tol=1e-12).x[0])
    assert length_controlled(ours, theirs, 0.0, Bootstrap(1))["mean"] == pytest.approx(expected, abs=2e-4)
    swapped = length_controlled(theirs, ours, 0.0, Bootstrap(1))["mean"]
    assert swapped == pytest.approx(1 - expected, abs=2e-4)


def test_equal_lengths_and_one_sided_results_give_the_plain_win_rate() -> None:
    same = [[answer(score, 10)] for score in (1.0, 0.0, 1.0, 0.5)], [[answer(0.5, 10)] for _ in range(4)]
    assert length_controlled(*same, 0.0, Bootstrap(20))["mean"] == 5 / 8
    always = [[answer(1.0, 10 + n)] for n in range(5)], [[answer(0.0, 9)] for _ in range(5)]
    assert length_controlled(*always, 0.0, Bootstrap(20)) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 5}


def test_its_interval_covers_the_truth_and_is_wider_where_users_repeat_their_prompts() -> None:
    covered = 0
    for seed in range(40):
        found = length_controlled(*duels(1.0, 0.5, 20, prompts=120, seed=seed), 0.0, Bootstrap(150))
        covered += found["low"] <= expit(0.5) <= found["high"]
    assert covered >= 34, "about 38 of 40"
    ours, theirs = duels(1.0, 0.5, 20, prompts=60)
    repeated = [row for row in ours for _ in range(5)], [row for row in theirs for _ in range(5)]
    users = [str(number // 5) for number in range(300)]
    apart = length_controlled(*repeated, 0.0, Bootstrap(300))
    together = length_controlled(*repeated, 0.0, Bootstrap(300, users))
    assert together["users"] == 60
    assert together["mean"] == pytest.approx(apart["mean"], abs=1e-9)
    assert together["high"] - together["low"] > 1.7 * (apart["high"] - apart["low"])
