"""The length-controlled win rate against a regression solved apart from it, and where the answer is known."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from scipy.stats import norm, t

from data.intervals import Bootstrap
from evaluation import length_control
from evaluation.compare import Answer, by_scores, scores_of, win_rate
from evaluation.length_control import WEAK

Rows = list[list[Answer]]


def length_controlled(ours: Rows, theirs: Rows, bootstrap: Bootstrap) -> dict[str, float]:
    """By the scores."""
    verdicts = by_scores(scores_of(ours), scores_of(theirs), 0.0)
    found = length_control.length_controlled(ours, theirs, verdicts, bootstrap)
    assert found is not None
    return found


def plain(ours: Rows, theirs: Rows) -> dict[str, float]:
    """The win rate with all lengths."""
    found = win_rate(by_scores(scores_of(ours), scores_of(theirs), 0.0), Bootstrap(200))
    assert found is not None
    return found


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
    assert plain(ours, theirs)["low"] > 0.7, "by length alone"
    found = length_controlled(ours, theirs, Bootstrap(100))
    assert found["low"] < 0.5 < found["high"]
    ours, theirs = duels(bias=3.0, strength=1.0, longer=-60)
    assert plain(ours, theirs)["mean"] < 0.5
    found = length_controlled(ours, theirs, Bootstrap(100))
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
    assert length_controlled(ours, theirs, Bootstrap(1))["mean"] == pytest.approx(expected, abs=2e-4)
    swapped = length_controlled(theirs, ours, Bootstrap(1))["mean"]
    assert swapped == pytest.approx(1 - expected, abs=2e-4)


def test_equal_lengths_and_one_sided_results_give_the_plain_win_rate() -> None:
    same = [[answer(score, 10)] for score in (1.0, 0.0, 1.0, 0.5)], [[answer(0.5, 10)] for _ in range(4)]
    assert length_controlled(*same, Bootstrap(20))["mean"] == 5 / 8
    always = [[answer(1.0, 10 + n)] for n in range(5)], [[answer(0.0, 9)] for _ in range(5)]
    assert length_controlled(*always, Bootstrap(20)) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 5}


def test_its_interval_covers_the_truth_and_is_wider_where_users_repeat_their_prompts() -> None:
    covered = 0
    for seed in range(20):
        found = length_controlled(*duels(1.0, 0.5, 20, prompts=80, seed=seed), Bootstrap(40))
        covered += found["low"] <= expit(0.5) <= found["high"]
    assert covered >= 17, "about 19 of 20"
    ours, theirs = duels(1.0, 0.5, 20, prompts=60)
    repeated = [row for row in ours for _ in range(5)], [row for row in theirs for _ in range(5)]
    users = [str(number // 5) for number in range(300)]
    apart = length_controlled(*repeated, Bootstrap(80))
    together = length_controlled(*repeated, Bootstrap(80, users))
    assert together["users"] == 60
    assert together["mean"] == pytest.approx(apart["mean"], abs=1e-9)
    assert together["high"] - together["low"] > 1.7 * (apart["high"] - apart["low"])


def test_pairs_without_a_verdict_are_as_if_they_had_not_been_drawn() -> None:
    ours, theirs = duels(2.0, 0.3, 20, prompts=80)
    verdicts = by_scores(scores_of(ours), scores_of(theirs), 0.0)
    users = [str(number // 2) for number in range(80)]
    judged = [place for place in range(80) if place % 3]
    gaps = [rows if place % 3 else [[None]] for place, rows in enumerate(verdicts)]
    found = length_control.length_controlled(ours, theirs, gaps, Bootstrap(50, users))
    left, right = ([rows[place] for place in judged] for rows in (ours, theirs))
    assert found == length_controlled(left, right, Bootstrap(50, [users[place] for place in judged]))
    assert length_control.length_controlled(ours, theirs, [[[None]]] * 80, Bootstrap(50)) is None


def test_few_users_widen_the_interval_as_they_do_for_plain_win_rates() -> None:
    ours, theirs = duels(1.0, 0.5, 20, prompts=48)
    bootstrap = Bootstrap(100, [str(number % 6) for number in range(48)])
    longer = np.array([left[0].tokens - right[0].tokens for left, right in zip(ours, theirs, strict=True)], float)
    won = np.array([left[0].parts["score"] for left in ours])
    rates = [length_control.rate_at_equal_length(longer, won, counts) for counts in bootstrap.draws(48, 100)]
    outside = norm.cdf((6 / 5) ** 0.5 * t.ppf(0.025, 5))
    found = length_controlled(ours, theirs, bootstrap)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(rates, [outside, 1 - outside]))
