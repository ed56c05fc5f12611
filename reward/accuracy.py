"""Agreement of the reward model with the labeler on held-out rankings.

Shapes: P strict pairs of a prompt, in the order of `preference_mask_KK.nonzero()`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reward.batches import RankingExample

Floats = NDArray[np.float64]


def pair_margins(scores: Sequence[float], item: RankingExample) -> Floats:
    """margins_P: the better answer's score minus the worse one's."""
    scores_K = np.asarray(scores, dtype=float)
    better_P, worse_P = item.preference_mask_KK.numpy().nonzero()
    margins_P: Floats = scores_K[better_P] - scores_K[worse_P]
    return margins_P


def tied_margins(scores: Sequence[float], item: RankingExample) -> Floats:
    """The same for tied pairs: the first answer's score minus the second's."""
    scores_K, pairs = np.asarray(scores, dtype=float), np.array(item.ties, dtype=int).reshape(-1, 2)
    margins: Floats = scores_K[pairs[:, 0]] - scores_K[pairs[:, 1]]
    return margins


def pair_outcomes(scores: Sequence[float], item: RankingExample) -> list[float]:
    """For each strict pair of a prompt: 1 where the better answer scores higher, 0 where lower, 1/2 where equal."""
    outcomes: list[float] = np.heaviside(pair_margins(scores, item), 0.5).tolist()
    return outcomes


def best_vs_worst(scores: Sequence[float], item: RankingExample) -> float | None:
    """Accuracy over the pairs of a best answer (it wins, and never loses) and a worst one (it loses, and never wins);
    None without such a pair. These pairs are easier than the others.
    """
    preference_mask_KK, scores_K = item.preference_mask_KK.numpy(), np.asarray(scores, dtype=float)
    wins_K, losses_K = preference_mask_KK.sum(1), preference_mask_KK.sum(0)
    best_K, worst_K = (losses_K == 0) & (wins_K > 0), (wins_K == 0) & (losses_K > 0)
    high, low = (preference_mask_KK & best_K[:, None] & worst_K[None, :]).nonzero()
    return float(np.heaviside(scores_K[high] - scores_K[low], 0.5).mean()) if len(high) else None


def lengths_as_scores(item: RankingExample) -> list[float]:
    """The baseline that prefers the longer answer."""
    return [float(len(ids)) for ids in item.answers]


def ranks_as_scores(item: RankingExample) -> list[float] | None:
    """The labeler's order in steps of one, 0 for the best: ranks 1, 1, 4 give 0, 0, -1. NaN for an answer that was not
    ranked; None if the judgments form no order."""
    if item.ranks is None:
        return None
    steps = {rank: -float(step) for step, rank in enumerate(sorted({rank for rank in item.ranks if rank is not None}))}
    return [float("nan") if rank is None else steps[rank] for rank in item.ranks]
