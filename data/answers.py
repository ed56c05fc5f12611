"""Subsets of a ranking's answers, the judgments that remain for them, and judgments between identical answers.

Two answers are identical when their texts are equal up to surrounding white space, which decoding strips, and both
ended by themselves or neither did. An empty answer is a valid answer: it was shown and judged.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, TypeVar

from data.records import Ranking

T = TypeVar("T")
Text = tuple[str, bool]
"""An answer without surrounding white space, and whether it ended by itself."""


def with_answers(ranking: Ranking, kept: Sequence[int]) -> Ranking:
    """The ranking restricted to the answers at the indices `kept`, in this order."""
    place = {old: new for new, old in enumerate(kept)}

    def pick(values: list[T] | None) -> list[T] | None:
        return None if values is None else [values[index] for index in kept]

    def pairs(found: list[list[int]] | None) -> list[list[int]] | None:
        return None if found is None else [[place[i], place[j]] for i, j in found if i in place and j in place]

    lists: dict[str, Any] = {
        name: pick(getattr(ranking, name)) for name in ("completions", "ranks", "complete", "ratings")
    }
    return replace(ranking, **lists, preferences=pairs(ranking.preferences), ties=pairs(ranking.ties))


def judged_pairs(ranking: Ranking) -> list[tuple[int, int, bool]]:
    """(better answer, worse answer, whether they tie) of every judged pair, identical answers included.

    Of several judgments of the same two texts (the first is better, the second is better, or they tie) the most
    frequent one counts. If none is more frequent than the others, the texts tie.
    """
    ranked = [(rank, index) for index, rank in enumerate(ranking.ranks or ()) if rank is not None]
    judgments = [
        (one, other, rank == other_rank) for (rank, one), (other_rank, other) in combinations(sorted(ranked), 2)
    ]
    judgments += [(better, worse, False) for better, worse in ranking.preferences or ()]
    judgments += [(one, other, True) for one, other in ranking.ties or ()]
    texts = identities(ranking)
    votes = Counter((texts[better], texts[worse]) for better, worse, tied in judgments if not tied)
    ties = Counter(frozenset((texts[one], texts[other])) for one, other, tied in judgments if tied)
    found: dict[tuple[int, int, bool], None] = {}
    for better, worse, tied in judgments:
        votes_for, against = votes[texts[better], texts[worse]], votes[texts[worse], texts[better]]
        if texts[better] == texts[worse]:
            found[better, worse, tied] = None
        elif votes_for == against or ties[frozenset((texts[better], texts[worse]))] >= max(votes_for, against):
            found[min(better, worse), max(better, worse), True] = None
        elif votes_for > against and not tied:
            found[better, worse, False] = None
    return list(found)


def identities(ranking: Ranking) -> list[Text]:
    """A key for each answer; identical answers have equal keys."""
    complete = ranking.complete or [True] * len(ranking.completions)
    return [(text.strip(), ended) for text, ended in zip(ranking.completions, complete, strict=True)]


def identical_pairs(ranking: Ranking) -> int:
    """Number of judgments, ties included, between identical answers."""
    answers = identities(ranking)
    if len(set(answers)) == len(answers):
        return 0
    return sum(answers[one] == answers[other] for one, other, _ in judged_pairs(ranking))


def has_strict_pair(ranking: Ranking) -> bool:
    """Whether an answer was judged better than a different one."""
    answers = identities(ranking)
    return any(not tied and answers[better] != answers[worse] for better, worse, tied in judged_pairs(ranking))
