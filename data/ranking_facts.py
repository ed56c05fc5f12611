"""Statistics of the rankings: how many answers, how many ties, who ranked, and whether length predicts the order.

Lengths are in characters.
"""

from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy as np

from data.answers import judged_pairs
from data.intervals import ratio_interval
from data.records import Ranking

MOST_UNITS = 1000
"""The bootstrap resamples at most this many units; more rankings are pooled into this many groups."""
RESAMPLES = 2000


def ranking_facts(rankings: Iterable[Ranking]) -> dict[str, Any]:
    """All statistics of the rankings."""
    answers, forms, labelers, ids = Counter[int](), Counter[str](), Counter[str](), Counter[str]()
    strict = tied = unranked = 0
    longest: list[tuple[float, float]] = []
    won, pairs_of = np.zeros(MOST_UNITS), np.zeros(MOST_UNITS)
    for number, ranking in enumerate(rankings):
        answers[len(ranking.completions)] += 1
        forms["ranks" if ranking.ranks is not None else "preferences"] += 1
        labelers[ranking.labeler] += 1
        ids[ranking.labeler_id] += 1
        size = [len(text) for text in ranking.completions]
        pairs = judged_pairs(ranking)
        strict_pairs = [(better, worse) for better, worse, is_tie in pairs if not is_tie]
        strict += len(strict_pairs)
        tied += len(pairs) - len(strict_pairs)
        unranked += len(size) - len({place for better, worse, _ in pairs for place in (better, worse)})
        won[number % MOST_UNITS] += sum((size[a] > size[b]) + (size[a] == size[b]) / 2 for a, b in strict_pairs)
        pairs_of[number % MOST_UNITS] += len(strict_pairs)
        if (found := longest_is_best(ranking)) is not None:
            longest.append(found)
    named = [count for identity, count in ids.items() if identity]
    used = min(answers.total(), MOST_UNITS)
    return {
        "count": answers.total(),
        "answers": {str(size): count for size, count in sorted(answers.items())},
        "forms": dict(sorted(forms.items())),
        "labelers": dict(sorted(labelers.items())),
        "labeler_ids": {
            "count": len(named),
            "median": median(named) if named else None,
            "max": max(named, default=None),
            "rankings_without": ids[""],
        },
        "strict": strict,
        "tied": tied,
        "unranked": unranked,
        "longest": {
            "best": sum(best for best, _ in longest) / len(longest),
            "chance": sum(chance for _, chance in longest) / len(longest),
        }
        if longest
        else None,
        "longer_better": ratio_interval(won[:used].tolist(), pairs_of[:used].tolist(), RESAMPLES) if strict else None,
    }


def longest_is_best(ranking: Ranking) -> tuple[float, float] | None:
    """(whether the longest ranked answer is ranked best, the chance that a random one is).

    Ties for longest count as a fraction. None if all ranked answers are tied or equally long, or there are no ranks.
    """
    answers = zip(ranking.ranks or (), ranking.completions, strict=False)
    ranked = [(rank, len(text)) for rank, text in answers if rank is not None]
    if len({rank for rank, _ in ranked}) < 2 or len({size for _, size in ranked}) < 2:
        return None
    best, most = min(ranked)[0], max(size for _, size in ranked)
    longest = [rank == best for rank, size in ranked if size == most]
    return sum(longest) / len(longest), sum(rank == best for rank, _ in ranked) / len(ranked)
