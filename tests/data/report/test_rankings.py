"""Pairs, ties and lengths of rankings against loops over the records."""

import itertools
import random
from typing import Any

import pyarrow as pa
import pytest

from data.records import Ranking, parse
from data.report.rankings import MOST_UNITS, RankingFacts, add, interval_of, judged_pairs, ranking_facts
from data.sets import RANKING_SCHEMA, packed
from tests.data.report.making import made, rankings


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [packed(parse({"prompt": "why"} | row, Ranking), "why") for row in rows], schema=RANKING_SCHEMA
    )


def some_rankings(count: int) -> list[dict[str, Any]]:
    """All shapes: ties, answers that were not ranked, raw preferences with ties, equal lengths, one answer empty."""
    noise, found = random.Random(0), []
    for number in range(count):
        size = noise.choice([2, 3, 4, 9])
        row: dict[str, Any] = {
            "completions": ["x" * noise.randint(0, 6) for _ in range(size)],
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
        return [(a, b, False) for a, b in row["preferences"]] + [(a, b, True) for a, b in row["ties"] or []]
    ranked = [(i, rank) for i, rank in enumerate(row["ranks"]) if rank is not None]
    return [(i, j, a == b) if a <= b else (j, i, False) for (i, a), (j, b) in itertools.combinations(ranked, 2)]


def test_pairs_and_counts_are_those_of_a_loop():
    rows = some_rankings(200)
    found = RankingFacts()
    longer, strict = add(found, batch_of(rows))
    pairs = [judged(row) for row in rows]
    assert found.strict == sum(not tied for row in pairs for *_, tied in row)
    assert found.tied == sum(tied for row in pairs for *_, tied in row)
    compared = [{place for better, worse, _ in said for place in (better, worse)} for said in pairs]
    assert found.unranked == sum(
        len(row["completions"]) - len(places) for row, places in zip(rows, compared, strict=True)
    )
    assert found.forms == {"ranks": 150, "preferences": 50}
    assert found.count == 200
    assert found.by_labeler == {"l0": 67, "l1": 67, "l2": 66}
    for row, said, won, count in zip(rows, pairs, longer, strict, strict=True):
        lengths = [len(answer) for answer in row["completions"]]
        strictly = [(lengths[a], lengths[b]) for a, b, tied in said if not tied]
        assert count == len(strictly)
        assert won == sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in strictly)


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
    found = RankingFacts()
    add(found, batch_of(rows))
    assert of > 50
    assert (found.longest_of, found.longest_best, found.longest_chance) == (
        of,
        pytest.approx(best),
        pytest.approx(chance),
    )


def test_answers_are_told_apart_within_and_between_rankings():
    rows = [
        {"completions": ["a", "b"], "preferences": [[1, 0]]},
        {"completions": ["c", "d", "e"], "ranks": [2, None, 1]},
    ]
    found = judged_pairs(batch_of(rows))
    pairs = set(zip(found.ranking.tolist(), found.better.tolist(), found.worse.tolist(), strict=True))
    assert pairs == {(0, 1, 0), (1, 4, 2)}


def test_only_rankings_that_were_kept_count(tmp_path):
    long = rankings(1, completions=["w " * 2000, "b"])[0] | {"prompt": "a giant"}
    built, _ = made(tmp_path, {"rankings": [*rankings(20), long]})
    facts = ranking_facts(built)
    assert facts.answers == {2: 20}
    assert facts.longer_better == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 20}


def test_no_rankings_are_no_facts(tmp_path):
    built, _ = made(tmp_path)
    facts = ranking_facts(built)
    assert (facts.count, facts.tied_share, facts.unnamed_share, facts.longer_better) == (0, 0, 0, None)


def test_the_interval_of_many_is_near_the_true_one():
    noise = random.Random(0)
    count = 20 * MOST_UNITS
    won = [float(noise.random() < 0.7) for _ in range(count)]
    found = interval_of(pa.array(won).to_numpy(), pa.array([1.0] * count).to_numpy())
    assert found["n"] == count
    assert found["mean"] == pytest.approx(sum(won) / count)
    half = 1.96 * (0.7 * 0.3 / count) ** 0.5
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.15)
