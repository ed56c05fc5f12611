"""Metrics as functions of sums over items, so that items can be resampled and two models compared item by item.

Shapes: N items, S sums.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU

from data.intervals import Bootstrap

Kind = Literal["mean", "perplexity", "bleu", "reported"]
Better = Literal["higher", "lower", "neither"]
Interval = dict[str, Any]
"""{mean, low, high, n}, and the number of clusters if items are grouped; low and high are None if unknown."""
NORMAL_95 = 1.959964
"""Half-width of a 95% interval in standard errors."""


@dataclass(frozen=True)
class Metric:
    """A model's result on each item."""

    rows_NS: list[list[float]]
    """`mean`: a value; `perplexity`: a log-probability and a number of tokens; `bleu`: see `bleu_row`; `reported`: a
    single row of a mean, its standard error (NaN if unknown) and the number of items.
    """
    kind: Kind = "mean"
    better: Better = "higher"

    @staticmethod
    def of(values: Sequence[float], better: Better = "higher") -> "Metric":
        """The mean of a value per item."""
        return Metric([[float(value)] for value in values], "mean", better)


@dataclass(frozen=True)
class Measurement:
    """A model's results on a task."""

    metrics: dict[str, Metric]
    items: str = ""
    """Results are compared item by item only if this is equal: perplexity depends on the tokenizer."""
    answers: list[dict[str, str]] = field(default_factory=list)
    """Generated answers, for answers.jsonl."""

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Measurement":
        """The inverse of `dataclasses.asdict`."""
        metrics = {name: Metric(**metric) for name, metric in found["metrics"].items()}
        return Measurement(metrics, found["items"], found["answers"])


def perplexity(sums_S: NDArray[np.float64]) -> float:
    """exp of the mean negative log-probability of a token."""
    return math.exp(-sums_S[0] / sums_S[1])


def bleu_row(answer: str, references: Sequence[str]) -> list[float]:
    """The sums that BLEU is a function of, for one answer: matching and total n-grams of four orders, and the two
    lengths.
    """
    found = BLEU(effective_order=True).sentence_score(answer, list(references))
    return [*map(float, found.counts), *map(float, found.totals), float(found.sys_len), float(found.ref_len)]


def bleu(sums_S: NDArray[np.float64]) -> float:
    """sacrebleu's corpus BLEU, from 0 to 100."""
    whole = [int(value) for value in sums_S]
    return float(BLEU.compute_bleu(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score)


OF_SUMS: dict[Kind, Callable[[NDArray[np.float64]], float]] = {"perplexity": perplexity, "bleu": bleu}


def interval(metric: Metric, bootstrap: Bootstrap) -> Interval:
    """The metric over all items, with a 95% interval."""
    if metric.kind == "reported":
        mean, error, items = metric.rows_NS[0]
        known = math.isfinite(error)
        low, high = (mean + side * NORMAL_95 * error if known else None for side in (-1, 1))
        return {"mean": mean, "low": low, "high": high, "n": int(items)}
    if metric.kind == "mean":
        return of_means([value for (value,) in metric.rows_NS], bootstrap)
    return resampled([metric], OF_SUMS[metric.kind], bootstrap)


def change(metric: Metric, reference: Metric, bootstrap: Bootstrap) -> Interval | None:
    """The metric minus the reference's on the same items, with a 95% interval; None if there are no results by item."""
    if metric.kind == "reported" or len(metric.rows_NS) != len(reference.rows_NS):
        return None
    if metric.kind == "mean":
        pairs = zip(metric.rows_NS, reference.rows_NS, strict=True)
        return of_means([ours - theirs for (ours,), (theirs,) in pairs], bootstrap)
    return resampled([metric, reference], OF_SUMS[metric.kind], bootstrap)


def of_means(values: Sequence[float], bootstrap: Bootstrap) -> Interval:
    """The mean of a value per item, with its interval."""
    found: Interval = {**bootstrap.interval(values)}
    return found if bootstrap.users is None else found | {"clusters": found.pop("users")}


def resampled(
    metrics: Sequence[Metric], of_sums: Callable[[NDArray[np.float64]], float], bootstrap: Bootstrap
) -> Interval:
    """A function of sums over items, or its difference between two metrics, with an interval as `Bootstrap`'s."""
    tables = [np.array(metric.rows_NS, dtype=float) for metric in metrics]

    def value(weights_N: NDArray[np.float64]) -> float:
        first, *others = (of_sums(weights_N @ rows_NS) for rows_NS in tables)
        return first - sum(others)

    items = len(tables[0])
    clusters = {} if bootstrap.users is None else {"clusters": len(set(bootstrap.users))}
    drawn = [value(weights_N) for weights_N in bootstrap.draws(items, bootstrap.resamples)]
    low, high = bootstrap.ends(drawn, items)
    return {"mean": value(np.ones(items)), "low": float(low), "high": float(high), "n": items, **clusters}
