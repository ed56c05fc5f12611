"""Pairs, ties and lengths of rankings against loops over the rows."""

import itertools
import random
from typing import Any

import pytest

from data.ranking_facts import MOST_UNITS, ranking_facts
from data.records import Ranking, parse
from tests.data.making import described, rankings


def records(rows: list[dict[str, Any]]) -> list[Ranking]:
    return [parse({"prompt": "why"} | row, Ranking) for row in rows]


def some_rankings(count: int) -> list[dict[str, Any]]:
    """All shapes: ties, answers that were not ranked, raw preferences with ties, equal lengths, one answer empty."""
    noise, found = random.Random(0), []
    for number in range(count):
        size = noise.choice([2, 3, 4, 9])
        row: dict[str, Any] = {
            "completions": [f"{place}" * noise.randint(1, 6) for place in range(size)],
            "labeler_id": f"l{number % 3}",
        }
        pairs = noise.sample(list(itertools.permutations(range(size), 2)), 2)
        if number % 4 == 3:
            row |= {"preferences": [list(pairs[0])], "ties": [list(pairs[1])] if number % 8 == 3 else None}
        else:
            row["ranks"] = [noise.choice([None, 1, 2, 3]) for _ in range(size)]
        found.append(row)
    return found


def judged(row: dict[str, Any]) -> list[tuple[int, int, bool]]:
    """(better, worse, tied) by hand."""
    if "preferences" in row:
        ties = row["ties"] or []
        # One vote for an answer and one for a tie have no majority.
        strict = [(a, b, False) for a, b in row["preferences"] if [a, b] not in ties and [b, a] not in ties]
        return strict + [(a, b, True) for a, b in ties]
    ranked = [(i, rank) for i, rank in enumerate(row["ranks"]) if rank is not None]
    return [(i, j, a == b) if a <= b else (j, i, False) for (i, a), (j, b) in itertools.combinations(ranked, 2)]


def test_pairs_and_counts_are_those_of_a_loop():
    rows = some_rankings(200)
    found = ranking_facts(records(rows))
    pairs = [judged(row) for row in rows]
    assert found["strict"] == sum(not tied for row in pairs for *_, tied in row)
    assert found["tied"] == sum(tied for row in pairs for *_, tied in row)
    compared = [{place for better, worse, _ in said for place in (better, worse)} for said in pairs]
    assert found["unranked"] == sum(
        len(row["completions"]) - len(places) for row, places in zip(rows, compared, strict=True)
    )
    assert found["forms"] == {"ranks": 150, "preferences": 50}
    assert found["count"] == 200
    assert found["labeler_ids"] == {"count": 3, "median": 67, "max": 67, "rankings_without": 0}
    won = [
        1.0 if len(answers[a]) > len(answers[b]) else 0.5 if len(answers[a]) == len(answers[b]) else 0.0
        for answers, said in zip((row["completions"] for row in rows), pairs, strict=True)
        for a, b, tied in said
        if not tied
    ]
    assert found["longer_better"]["mean"] == pytest.approx(sum(won) / len(won))
    assert found["longer_better"]["n"] == len(won)


def test_votes_in_both_directions_count_once_by_majority():
    row = {"completions": ["a", "b", "c"], "preferences": [[0, 1], [1, 0], [0, 1], [1, 2], [2, 1]]}
    found = ranking_facts(records([row]))
    assert (found["strict"], found["tied"], found["unranked"]) == (1, 1, 0)


def test_the_longest_answer_is_compared_with_a_random_one():
    best = chance = 0.0
    of = 0
    rows = some_rankings(200)
    for row in rows:
        ranked = [
            (len(text), rank)
            for text, rank in zip(row["completions"], row.get("ranks", []), strict=False)
            if rank is not None
        ]
        if len({length for length, _ in ranked}) > 1 and len({rank for _, rank in ranked}) > 1:
            longest = [rank for length, rank in ranked if length == max(ranked)[0]]
            top = min(rank for _, rank in ranked)
            best += longest.count(top) / len(longest)
            chance += sum(rank == top for _, rank in ranked) / len(ranked)
            of += 1
    assert of > 50
    expected = {"best": pytest.approx(best / of), "chance": pytest.approx(chance / of)}
    assert ranking_facts(records(rows))["longest"] == expected


def test_only_rankings_that_were_kept_count(tmp_path):
    long = rankings(1, completions=["w " * 2000, "b"])[0] | {"prompt": "a giant"}
    found = described(tmp_path, {"rankings": [*rankings(20), long]})["rankings"]
    assert found["answers"] == {"2": 20}
    assert found["longer_better"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 20}


def test_without_rankings_there_are_only_zeros(tmp_path):
    found = described(tmp_path)["rankings"]
    assert (found["count"], found["strict"], found["tied"], found["longest"], found["longer_better"]) == (
        0, 0, 0, None, None,
    )  # fmt: skip


def test_the_interval_of_many_is_near_the_true_one():
    noise = random.Random(0)
    count = 20 * MOST_UNITS
    orders = [[1, 2] if noise.random() < 0.7 else [2, 1] for _ in range(count)]
    found = ranking_facts(Ranking(prompt="why", completions=["long", "no"], ranks=order) for order in orders)
    rate = found["longer_better"]
    assert (rate["n"], rate["mean"]) == (count, pytest.approx(orders.count([1, 2]) / count))
    half = 1.96 * (0.7 * 0.3 / count) ** 0.5
    assert rate["high"] - rate["low"] == pytest.approx(2 * half, rel=0.15)
