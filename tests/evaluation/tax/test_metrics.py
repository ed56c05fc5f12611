"""Intervals and paired changes, and the answers' scores: against numbers by hand and sacrebleu."""

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from data.intervals import Bootstrap
from evaluation.tax.metrics import Metric, bleu_row, change, interval
from evaluation.tax.questions import exact_match, f1, normalized

BOOTSTRAP = Bootstrap(500)
ANSWERS = ["the cat sat on the mat today", "a dog", "the sea is blue and the sky is blue", ""]
REFERENCES = [["the cat sat on a mat"], ["a dog barked", "the dog"], ["the sea is blue and so is the sky"], ["nothing"]]


@pytest.mark.parametrize(
    ("answer", "references", "exact", "overlap"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("  An  apple-pie", ["applepie"], 1, 1),  # punctuation vanishes, it is no space
        ("in the city of Paris, France", ["Paris", "Paris, France"], 0, 2 * 2 / 7),
        ("theory", ["the"], 0, 0),  # articles are whole words
        ("the the cat cat", ["cat"], 0, 2 / 3),
        ("cat dog", ["dog cat"], 0, 1),
        ("", [""], 1, 1),
        ("a", [""], 1, 1),  # nothing but an article
        ("Paris", [""], 0, 0),
        ("", ["Paris"], 0, 0),
    ],
)
def test_exact_match_and_f1_follow_squad(answer: str, references: list[str], exact: float, overlap: float) -> None:
    assert exact_match(answer, references) == exact
    assert f1(answer, references) == pytest.approx(overlap)


def test_normalization_keeps_order_and_repetitions() -> None:
    assert normalized("A dog, THE Dog; and an Ant's") == ["dog", "dog", "and", "ants"]


def test_bleu_is_sacrebleus_over_the_whole_corpus() -> None:
    metric = Metric([bleu_row(*pair) for pair in zip(ANSWERS, REFERENCES, strict=True)], "bleu")
    padded = [[row[min(place, len(row) - 1)] for row in REFERENCES] for place in (0, 1)]
    expected = BLEU().corpus_score(ANSWERS, padded).score
    found = interval(metric, BOOTSTRAP)
    assert found["mean"] == pytest.approx(expected)
    assert 0 < expected < 100
    assert found["low"] < expected < found["high"]
    assert found["n"] == 4
    smoothed = Metric([bleu_row("the cat sat today", ["the cat sat here"])], "bleu")  # no 4-gram in common
    assert interval(smoothed, BOOTSTRAP)["mean"] == pytest.approx(
        BLEU().corpus_score(["the cat sat today"], [["the cat sat here"]]).score
    )
    grouped = interval(metric, Bootstrap(500, ["a", "a", "b", "c"]))
    assert (grouped["mean"], grouped["n"], grouped["clusters"]) == (found["mean"], 4, 3)


def test_perplexity_weighs_tokens_and_its_change_is_paired() -> None:
    rows = [[-2.0 * tokens, float(tokens)] for tokens in (1, 3, 5, 7, 9)]
    rows[0][0] = -8.0  # a hard text, for both models
    ours, theirs = Metric(rows, "perplexity"), Metric([[row[0] + 0.1 * row[1], row[1]] for row in rows], "perplexity")
    total, tokens = sum(row[0] for row in rows), sum(row[1] for row in rows)
    found, moved = interval(ours, BOOTSTRAP), change(ours, theirs, BOOTSTRAP)
    assert found["mean"] == pytest.approx(math.exp(-total / tokens))
    assert moved is not None
    assert moved["mean"] == pytest.approx(math.exp(-total / tokens) * (1 - math.exp(-0.1)))
    # Every resample differs by the same factor.
    assert moved["low"] == pytest.approx(found["low"] * (1 - math.exp(-0.1)))
    assert moved["high"] == pytest.approx(found["high"] * (1 - math.exp(-0.1)))


def test_a_change_is_paired_by_item_and_resamples_clusters() -> None:
    base = np.random.default_rng(0).normal(0, 10, 60)
    ours, theirs = Metric.of(base + 0.5), Metric.of(base)
    moved = change(ours, theirs, BOOTSTRAP)
    assert moved == {"mean": pytest.approx(0.5), "low": pytest.approx(0.5), "high": pytest.approx(0.5), "n": 60}
    doubled = Metric.of(np.repeat(base, 2))
    alone, grouped = (interval(doubled, Bootstrap(2000, users)) for users in (None, [n // 2 for n in range(120)]))
    assert (grouped["n"], grouped["clusters"]) == (120, 60)
    width = {"alone": alone["high"] - alone["low"], "grouped": grouped["high"] - grouped["low"]}
    assert width["grouped"] / width["alone"] == pytest.approx(math.sqrt(2), rel=0.1)


def test_a_result_that_is_only_reported_has_the_interval_of_its_standard_error_and_no_change() -> None:
    known, unknown = Metric([[0.5, 0.1, 40.0]], "reported"), Metric([[7.0, math.nan, 3.0]], "reported")
    assert interval(known, BOOTSTRAP) == {
        "mean": 0.5, "low": pytest.approx(0.304, abs=1e-3), "high": pytest.approx(0.696, abs=1e-3), "n": 40,
    }  # fmt: skip
    assert interval(unknown, BOOTSTRAP) == {"mean": 7.0, "low": None, "high": None, "n": 3}
    assert change(known, known, BOOTSTRAP) is None
