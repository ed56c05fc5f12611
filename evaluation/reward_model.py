"""A reward model on rankings that it has not seen, beside a judge that only counts tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.intervals import interval, ratio_interval
from reward.accuracy import best_vs_worst, lengths_as_scores, pair_outcomes
from reward.batches import Element


def report(scores: Sequence[Sequence[float]], items: Sequence[Element]) -> dict[str, Any]:
    """All-pairs accuracy with a 95% interval over prompts, the easier best-against-worst (None where judgments go in circles), the
    longest-answer baseline, and the spread of scores."""

    def all_pairs(scored: Sequence[Sequence[float]]) -> dict[str, float]:
        outcomes = [pair_outcomes(row, item) for row, item in zip(scored, items, strict=True)]
        return ratio_interval([sum(row) for row in outcomes], [len(row) for row in outcomes])

    found = [best_vs_worst(row, item) for row, item in zip(scores, items, strict=True)]
    extremes = [value for value in found if value is not None]
    return {
        "accuracy": all_pairs(scores),
        "best_vs_worst": interval(extremes) if extremes else None,
        "longest_baseline": all_pairs([lengths_as_scores(item) for item in items]),
        "score_std": float(np.std([value for row in scores for value in row])),
        "prompts": len(items),
        "pairs": sum(item.pairs for item in items),
    }
