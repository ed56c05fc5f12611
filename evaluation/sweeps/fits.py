"""Fits of a score against the KL to SFT, with d = sqrt(KL) (Gao et al. 2022):

    best-of-n                R = d (alpha - beta d)
    reinforcement learning   R = d (alpha - beta log d)

R is the gain over the mean score of SFT. Both forms are linear in alpha and beta, so the least-squares fit is exact.
Gao et al. fit gold scores; the fits of proxy scores are ours. Shapes: N points of a curve, P prompts, S resamples.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lstsq

from data.intervals import Bootstrap

Form = Literal["best_of_n", "rl"]
Floats = NDArray[np.float64]
RESAMPLES = 2000
"""Maximum number of resamples; each needs a fit."""


@dataclass(frozen=True)
class Curve:
    """Points of a curve, by prompt."""

    form: Form
    kl_NP: Floats
    """KL to SFT in nats."""
    gain_NP: Floats
    """Score minus the mean score of SFT's answers to the same prompt."""

    def means(self, weight_SP: Floats) -> tuple[Floats, Floats]:
        """(d_SN, R_SN) of S weighted means over prompts. A negative estimate of a small KL has d = 0."""
        share_SP = weight_SP / weight_SP.sum(1, keepdims=True)
        return np.sqrt(np.maximum(share_SP @ self.kl_NP.T, 0.0)), share_SP @ self.gain_NP.T

    def fit(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """`alpha` and `beta` with 95% intervals, the root mean square error of the fit, and the d at which it peaks.

        `peak` is None if the fit is monotonic over the measured range. d_N and R_N are recomputed for every resample of
        users.
        """
        prompts = self.kl_NP.shape[1]
        (d_N,), (gain_N,) = self.means(np.ones((1, prompts)))
        alpha, beta = coefficients(self.form, d_N, gain_N)
        drawn = self.means(np.array(list(bootstrap.draws(prompts, RESAMPLES))))
        found = [coefficients(self.form, *one) for one in zip(*drawn, strict=True)]
        low, high = bootstrap.ends(found, prompts)
        top = peak(self.form, alpha, beta)
        return {
            "alpha": {"mean": alpha, "low": float(low[0]), "high": float(high[0])},
            "beta": {"mean": beta, "low": float(low[1]), "high": float(high[1])},
            "rmse": float(np.sqrt(np.mean((terms(self.form, d_N) @ (alpha, beta) - gain_N) ** 2))),
            "peak": top if top is not None and top <= d_N.max() else None,
        }


def terms(form: Form, d_N: Floats) -> Floats:
    """terms_N2: the factors of alpha and of beta."""
    # d log d is 0 at 0, its limit.
    second_N = d_N * d_N if form == "best_of_n" else d_N * np.log(np.where(d_N > 0, d_N, 1.0))
    return np.stack([d_N, -second_N], axis=1)


def coefficients(form: Form, d_N: Floats, gain_N: Floats) -> tuple[float, float]:
    """(alpha, beta) by least squares; the minimum-norm solution if the points do not determine them."""
    found = lstsq(terms(form, d_N), gain_N)[0]
    return float(found[0]), float(found[1])


def peak(form: Form, alpha: float, beta: float) -> float | None:
    """The d of the fit's maximum; None if it has none."""
    if beta <= 0:
        return None
    if form == "best_of_n":
        return alpha / (2 * beta) if alpha > 0 else None
    return math.exp(min(alpha / beta - 1, 700.0))
