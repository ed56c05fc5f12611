"""Proxy and gold score against the square root of the KL to SFT (Gao et al. 2022): the contents of sweep.json.

All scores are relative to the mean score of SFT's answers to the same prompts, so SFT is at the origin.
Shapes: N points of a curve, P prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.intervals import Bootstrap
from evaluation.best_of_n import best_of_n_kl, choice_weights
from evaluation.sweeps.fits import Curve, Floats
from evaluation.sweeps.measure import JUDGES, OTHERS, Measured, value_of


@dataclass(frozen=True)
class Snapshot:
    """A policy along the training of a PPO run."""

    run: str
    iteration: int
    measured: Measured


def kl_sweep(sft: Measured, snapshots: Sequence[Snapshot], bootstrap: Bootstrap) -> dict[str, Any]:
    """All points with 95% intervals, and the fits of each judge's scores.

    Args:
        sft: with the candidates for best-of-n.
    """
    base = {part: np.array(sft.means(part)) for part in (*JUDGES, *OTHERS)}
    sizes = range(1, len(sft.answers[0]) + 1)
    chosen = {part: best_of_n_means(sft, part) - base[part] for part in base}
    bon_kl_NP = np.repeat([[best_of_n_kl(n)] for n in sizes], len(sft.answers), axis=1)
    gains = {part: np.array([item.measured.means(part) for item in snapshots]) - base[part] for part in base}
    rl_kl_NP = np.array([item.measured.kl for item in snapshots])

    def intervals(values: Mapping[str, Floats], point: int) -> dict[str, Any]:
        return {part: bootstrap.interval(list(of[point])) for part, of in values.items()}

    return {
        "sft": {part: bootstrap.interval(list(means)) for part, means in base.items()}
        | {"pretraining_loss": sft.loss_interval(sft.losses, bootstrap)},
        "rl": [
            {"run": item.run, "iteration": item.iteration, "kl": (kl := bootstrap.interval(item.measured.kl))}
            | {"d": math.sqrt(max(0.0, kl["mean"])), **intervals(gains, point)}
            | {"pretraining_loss": sft.loss_interval(item.measured.losses, bootstrap)}
            for point, item in enumerate(snapshots)
        ],
        "best_of_n": [
            {"n": n, "kl": best_of_n_kl(n), "d": math.sqrt(best_of_n_kl(n)), **intervals(chosen, point)}
            for point, n in enumerate(sizes)
        ],
        "fits": {
            "rl": {judge: Curve("rl", rl_kl_NP, gains[judge]).fit(bootstrap) for judge in JUDGES},
            "best_of_n": {judge: Curve("best_of_n", bon_kl_NP, chosen[judge]).fit(bootstrap) for judge in JUDGES},
        },
    }


def best_of_n_means(sft: Measured, part: str) -> Floats:
    """means_NP: the expected value of the answer that the proxy chooses from n, for each n and prompt."""
    rows = [
        ([answer.parts["proxy"] for answer in row], np.array([value_of(answer, part) for answer in row]))
        for row in sft.answers
    ]
    sizes = range(1, len(sft.answers[0]) + 1)
    means_NP: Floats = np.array([[choice_weights(proxy, n) @ values for proxy, values in rows] for n in sizes])
    return means_NP
