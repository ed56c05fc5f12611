"""Judgments of a ranking: several of the same two answers are one."""

import pytest

from data.answers import has_strict_pair, judged_pairs
from data.records import Ranking


def ranking(*completions: str, **judged: object) -> Ranking:
    return Ranking(prompt="Why?", completions=list(completions), **judged)  # type: ignore[arg-type]


def test_ranks_and_single_comparisons_are_judgments_as_they_are() -> None:
    ranked = ranking("a", "b", "c", "d", ranks=[2, 1, 2, None])
    assert set(judged_pairs(ranked)) == {(1, 0, False), (1, 2, False), (0, 2, True)}
    circle = ranking("a", "b", "c", preferences=[[0, 1], [1, 2], [2, 0]])
    assert set(judged_pairs(circle)) == {(0, 1, False), (1, 2, False), (2, 0, False)}


def test_the_majority_of_several_votes_on_a_pair_decides() -> None:
    votes = ranking("a", "b", "c", preferences=[[0, 1], [1, 0], [0, 1], [2, 1], [1, 2]], ties=[[0, 2], [0, 2]])
    assert set(judged_pairs(votes)) == {(0, 1, False), (1, 2, True), (0, 2, True)}
    assert not has_strict_pair(ranking("a", "b", preferences=[[0, 1], [1, 0]]))


def test_ties_are_votes_too() -> None:
    assert judged_pairs(ranking("a", "b", preferences=[[0, 1]], ties=[[1, 0], [0, 1]])) == [(0, 1, True)]
    assert judged_pairs(ranking("a", "b", preferences=[[0, 1]], ties=[[1, 0]])) == [(0, 1, True)], "no majority"
    assert judged_pairs(ranking("a", "b", preferences=[[1, 0], [1, 0]], ties=[[0, 1]])) == [(1, 0, False)]
    assert judged_pairs(ranking("a", "b", preferences=[[1, 0], [1, 0], [0, 1]], ties=[[0, 1]])) == [(1, 0, False)]


def test_votes_on_identical_answers_are_added_up() -> None:
    both_ways = ranking("a", "b", " a ", ranks=[1, 2, 3])
    assert set(judged_pairs(both_ways)) == {(0, 1, True), (1, 2, True), (0, 2, False)}
    twice = ranking("a", "b", "a", ranks=[1, 2, 1])
    assert set(judged_pairs(twice)) == {(0, 1, False), (2, 1, False), (0, 2, True)}


@pytest.mark.parametrize(
    ("judgment", "strict"),
    [
        ({"ranks": [1, 2]}, True),
        ({"ranks": [1, 1]}, False),
        ({"ranks": [1, None]}, False),
        ({"ranks": [None, None]}, False),
        ({"preferences": [[0, 1]]}, True),
        ({"preferences": []}, False),
    ],
)
def test_a_strict_pair_takes_two_ranked_answers_that_do_not_tie(
    judgment: dict[str, list[int | None]], strict: bool
) -> None:
    assert has_strict_pair(Ranking(prompt="Why?", completions=["a", "b"], **judgment)) is strict  # type: ignore[arg-type]
