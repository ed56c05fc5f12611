"""The win rate without the influence of length, after AlpacaEval 2 (Dubois et al. 2024).

A logistic regression predicts which of two answers is preferred from a constant and the tanh of their difference in
length. The length-controlled win rate is its prediction for equal lengths. *Ours*: the difference is scaled by its root
mean square, and there are no terms for instructions. Shapes: N pairs of answers; P prompts.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from data.intervals import Bootstrap, tail
from evaluation.compare import Answers, preference, whole_rubric

RESAMPLES = 1000
"""At most; each takes a regression."""
WEAK = 100.0
"""Inverse strength of the regularization of the length's coefficient, which keeps it finite in small samples."""

Floats = NDArray[np.float64]


def length_controlled(ours: Answers, theirs: Answers, tie_width: float, bootstrap: Bootstrap) -> dict[str, float]:
    """{mean, low, high, n} as of `evaluation.compare.win_rate`, for answers of equal length."""
    pairs = [
        (
            index,
            a.tokens - b.tokens,
            preference(whole_rubric(a), whole_rubric(b), tie_width),
            1 / (len(left) * len(right)),
        )
        for index, (left, right) in enumerate(zip(ours, theirs, strict=True))
        for a in left
        for b in right
    ]
    prompts, *columns = zip(*pairs, strict=True)
    longer_N, won_N, weight_N = (np.array(column, dtype=float) for column in columns)
    means = [
        rate_at_equal_length(longer_N, won_N, weight_N * counts_P[list(prompts)])
        for counts_P in bootstrap.draws(len(ours), RESAMPLES)
    ]
    outside = tail(len(set(range(len(ours)) if bootstrap.users is None else bootstrap.users)))
    low, high = np.quantile(means, [outside, 1 - outside])
    mean = rate_at_equal_length(longer_N, won_N, weight_N)
    users = {} if bootstrap.users is None else {"users": len(set(bootstrap.users))}
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(ours)} | users


def rate_at_equal_length(longer_N: Floats, won_N: Floats, weight_N: Floats) -> float:
    """The regression's probability of a win at equal length; a tie (won_N of 1/2) is half a win and half a loss."""
    spread = float(np.sqrt(np.average(longer_N**2, weights=weight_N)))
    labels_2N = np.repeat([1, 0], len(won_N))
    weights_2N = np.concatenate([weight_N * won_N, weight_N * (1 - won_N)])
    if not spread or not weights_2N[labels_2N == 1].sum() or not weights_2N[labels_2N == 0].sum():
        return float(np.average(won_N, weights=weight_N))
    length_2N = np.tile(np.tanh(longer_N / spread), 2)[:, None]
    used = weights_2N > 0
    model = LogisticRegression(C=WEAK).fit(length_2N[used], labels_2N[used], weights_2N[used])
    return float(model.predict_proba(np.zeros((1, 1)))[0, 1])
