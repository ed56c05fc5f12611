"""Subsets of a ranking's answers, the judgments that remain for them, and judgments between identical answers.

Two answers are identical when their texts are equal up to surrounding white space, which decoding strips, and both
ended by themselves or neither did. A judgment between them carries no information. An empty answer is a valid answer:
it was shown and judged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TypeVar

from data.records import Ranking

T = TypeVar("T")


def with_answers(ranking: Ranking, kept: Sequence[int]) -> Ranking:
    """The ranking restricted to the answers at the indices `kept`, in this order."""
    place = {old: new for new, old in enumerate(kept)}

    def pick(values: list[T] | None) -> list[T] | None:
        return None if values is None else [values[index] for index in kept]

    def pairs(found: list[list[int]] | None) -> list[list[int]] | None:
        return None if found is None else [[place[i], place[j]] for i, j in found if i in place and j in place]

    return replace(
        ranking,
        completions=[ranking.completions[index] for index in kept],
        ranks=pick(ranking.ranks),
        preferences=pairs(ranking.preferences),
        ties=pairs(ranking.ties),
        complete=pick(ranking.complete),
        ratings=pick(ranking.ratings),
    )


def judged_pairs(ranking: Ranking) -> Iterator[tuple[int, int, bool]]:
    """(better answer, worse answer, whether they tie) of every judgment, identical answers included."""
    ranked = [(rank, index) for index, rank in enumerate(ranking.ranks or ()) if rank is not None]
    for (rank, one), (other_rank, other) in combinations(sorted(ranked), 2):
        yield one, other, rank == other_rank
    yield from ((better, worse, False) for better, worse in ranking.preferences or ())
    yield from ((one, other, True) for one, other in ranking.ties or ())


def identities(ranking: Ranking) -> list[tuple[str, bool]]:
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
