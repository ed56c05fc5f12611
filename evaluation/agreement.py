"""Agreement between judges on the same pairs of answers."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from evaluation.compare import Verdicts
from labeling.agreement import krippendorff_alpha

Calls = Sequence[int | None]
"""A judge's verdict on each pair: 1 for the first answer, -1 for the second, 0 for a tie, None if there is none."""


def calls_of(verdicts: Verdicts) -> list[int | None]:
    """All verdicts in order. The mean over several labelers is rounded to the side that it favours."""
    flat = [value for rows in verdicts for row in rows for value in row]
    return [None if value is None else int(np.sign(value - 0.5)) for value in flat]


def judge_agreement(calls: Mapping[str, Calls]) -> dict[str, Any] | None:
    """The contents of `judge_agreement` in evaluation.json: agreement of all judges, and of each two; None if there is
    only one.

    Which answer of a pair comes first is arbitrary, so each pair counts in both orders: otherwise chance-corrected
    agreement would be low if all judges preferred the same model. `pairs` counts each pair once.
    """
    if len(calls) < 2:
        return None
    units = [[call for call in judged if call is not None] for judged in zip(*calls.values(), strict=True)]
    several = [unit for unit in units if len(unit) > 1]
    return {
        "pairs": len(several),
        "alpha": krippendorff_alpha(both_orders(several)),
        "between": [
            {"judges": [one, other], **between(calls[one], calls[other])}
            for one, other in itertools.combinations(calls, 2)
        ],
    }


def between(one: Calls, other: Calls) -> dict[str, Any]:
    """Agreement of two judges over the pairs that both judged: the share of equal verdicts, Cohen's kappa with three
    categories, and Krippendorff's alpha. A coefficient is None if it is undefined, because all verdicts are equal.
    """
    both = [[a, b] for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not both:
        return {"pairs": 0, "same": None, "kappa": None, "alpha": None}
    left, right = zip(*both_orders(both), strict=True)
    varies = len({*left, *right}) > 1
    return {
        "pairs": len(both),
        "same": sum(a == b for a, b in both) / len(both),
        "kappa": float(cohen_kappa_score(left, right, labels=[-1, 0, 1])) if varies else None,
        "alpha": krippendorff_alpha(both_orders(both)),
    }


def both_orders(units: Sequence[Sequence[int]]) -> list[list[int]]:
    """The verdicts on each pair, and those with the two answers swapped."""
    return [[sign * call for call in unit] for unit in units for sign in (1, -1)]
