"""How often the reward model agrees with the labeler on rankings that it has not seen."""

from collections.abc import Sequence

import numpy as np

from reward.batches import Element


def pair_outcomes(scores: Sequence[float], item: Element) -> list[float]:
    """For each strict pair of a prompt: 1 where the better answer scores higher, 0 where lower, 1/2 where equal."""
    return [float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]) for i, j in item.better_KK.nonzero().tolist()]


def best_vs_worst(scores: Sequence[float], item: Element) -> float | None:
    """The easier number: an answer that none beats against one that beats none and was judged worse than it; None where there is no such pair."""
    better = item.better_KK.numpy()
    wins, losses = better.sum(1), better.sum(0)
    best, worst = np.flatnonzero((losses == 0) & (wins > 0)), np.flatnonzero((wins == 0) & (losses > 0))
    for high in best.tolist():
        for low in worst.tolist():
            if better[high, low]:
                return float(scores[high] > scores[low]) + 0.5 * float(scores[high] == scores[low])
    return None


def lengths_as_scores(item: Element) -> list[float]:
    """The baseline that prefers the longer answer."""
    return [float(len(ids)) for ids in item.answers]
