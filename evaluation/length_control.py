"""The win rate without the influence of length, after AlpacaEval 2 (Dubois et al. 2024).

A logistic regression predicts which of two answers is preferred from a constant and the tanh of their difference in
length. The length-controlled win rate is its prediction for equal lengths. *Ours*: the difference is scaled by its root
mean square, and there are no terms for instructions. Shapes: N pairs of answers; P prompts.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from data.intervals import Bootstrap
from evaluation.compare import Answers, Verdicts

RESAMPLES = 500
"""Maximum number of resamples; each fits a regression in about 2 ms."""
WEAK = 100.0
"""scikit-learn's C, the inverse L2 strength: weak, only to keep the coefficient finite in small samples."""

Floats = NDArray[np.float64]


def length_controlled(
    ours: Answers, theirs: Answers, verdicts: Verdicts, bootstrap: Bootstrap
) -> dict[str, float] | None:
    """{mean, low, high, n} as in `evaluation.compare.win_rate`, predicted for answers of equal length."""
    pairs = [
        [
            (a.tokens - b.tokens, value)
            for a, row in zip(left, rows, strict=True)
            for b, value in zip(right, row, strict=True)
            if value is not None
        ]
        for left, right, rows in zip(ours, theirs, verdicts, strict=True)
    ]
    judged = [place for place, found in enumerate(pairs) if found]
    if not judged:
        return None
    prompt_N = np.repeat(np.arange(len(judged)), [len(pairs[place]) for place in judged])
    weight_N = np.repeat([1 / len(pairs[place]) for place in judged], [len(pairs[place]) for place in judged])
    longer_N, won_N = np.array([pair for place in judged for pair in pairs[place]], dtype=float).T
    among = bootstrap.among(judged)
    with warnings.catch_warnings():
        # Where almost all pairs have the same winner, scikit-learn warns and uses a slower solver.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = [
            rate_at_equal_length(longer_N, won_N, weight_N * counts_P[prompt_N])
            for counts_P in among.draws(len(judged), RESAMPLES)
        ]
        mean = rate_at_equal_length(longer_N, won_N, weight_N)
    low, high = among.ends(means, len(judged))
    users = {} if among.users is None else {"users": len(set(among.users))}
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(judged)} | users


def rate_at_equal_length(longer_N: Floats, won_N: Floats, weight_N: Floats) -> float:
    """The regression's probability of a win at equal length; a tie (won_N of 1/2) is half a win and half a loss."""
    spread = float(np.sqrt(np.average(longer_N**2, weights=weight_N)))
    labels_2N = np.repeat([1, 0], len(won_N))
    weights_2N = np.concatenate([weight_N * won_N, weight_N * (1 - won_N)])
    if not spread or not weights_2N[labels_2N == 1].sum() or not weights_2N[labels_2N == 0].sum():
        return float(np.average(won_N, weights=weight_N))
    length_2N = np.tile(np.tanh(longer_N / spread), 2)[:, None]
    used = weights_2N > 0
    model = LogisticRegression(C=WEAK, solver="newton-cholesky").fit(length_2N[used], labels_2N[used], weights_2N[used])
    return float(model.predict_proba(np.zeros((1, 1)))[0, 1])
