"""Agreement of labelers who ranked the same answers to the same prompt (Ouyang et al. 2022, section 3.4: 72.6%).

The unit is a pair of answers that two labelers both judged. Answers are identified by their text. Several
judgments of a pair in one record are decided by majority; without one, the pair counts as not judged.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import multimode
from typing import Any

import numpy as np

from data.build import Built
from data.intervals import ratio_interval
from data.records import Ranking

MOST_PROMPTS = 5000
"""Prompts that are compared, evenly spaced over all that have several rankings."""
RESAMPLES = 2000

Judgment = dict[tuple[str, str], int]
"""Two answers in the order of their texts -> 1 if the first is better, -1 if the second is, 0 for a tie."""
Judged = Sequence[tuple[str, Judgment]]
"""(labeler, judgment) of one prompt."""


def judged_prompts(built: Built) -> Iterator[Judged]:
    """The judgments of prompts that have several rankings after curation; rankings without a labeler id are ignored."""
    left = built.rankings.left()
    several = [numbers for numbers in left.groupby("item", sort=False).indices.values() if len(numbers) > 1]
    looked_at = min(MOST_PROMPTS, len(several))
    for index in range(looked_at):
        numbers = left.index[several[index * len(several) // looked_at]]
        yield [(record.labeler_id, judgment(record)) for record in built.rankings.read(numbers) if record.labeler_id]


def judgment(record: Ranking) -> Judgment:
    """The judgment of each pair of answers in a ranking."""
    answers, said = record.completions, list[tuple[int, int, int]]()
    if record.ranks is not None:
        ranked = [(place, rank) for place, rank in enumerate(record.ranks) if rank is not None]
        said = [(i, j, (a < b) - (a > b)) for (i, a), (j, b) in itertools.combinations(ranked, 2)]
    said += [(better, worse, 1) for better, worse in record.preferences or ()]
    said += [(first, second, 0) for first, second in record.ties or ()]
    found: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for i, j, sign in said:
        if answers[i] < answers[j]:
            found[answers[i], answers[j]][sign] += 1
        elif answers[i] > answers[j]:
            found[answers[j], answers[i]][-sign] += 1
    majorities = {pair: multimode(signs.elements()) for pair, signs in found.items()}
    return {pair: most[0] for pair, most in majorities.items() if len(most) == 1}


def agreement(prompts: Iterable[Judged]) -> dict[str, Any] | None:
    """Pairwise agreement of labelers on each prompt; None if no two judged the same pair.

    `strict`: of the pairs that both order strictly, the share ordered the same way. `three_way`: of all pairs, the
    share with the same of three judgments (one, the other, a tie). Both have bootstrap intervals over prompts. `tau`:
    mean of Kendall's tau-b over prompts and pairs of labelers, None if it is defined for none. `alpha`:
    Krippendorff's alpha.
    """
    counts: list[tuple[int, int, int, int]] = []
    taus: list[float] = []
    labelers: set[str] = set()
    units: list[list[int]] = []
    for judged in prompts:
        values: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for labeler, found in judged:
            for pair, value in found.items():
                values[pair].setdefault(labeler, value)
        for by_labeler in values.values():
            # Which answer of a pair comes first is arbitrary, so each pair counts in both orders.
            units += [list(by_labeler.values()), [-value for value in by_labeler.values()]]
        both_judged: list[tuple[int, int]] = []
        for (one, first), (other, second) in itertools.combinations(judged, 2):
            both = [(first[pair], second[pair]) for pair in first.keys() & second.keys()]
            if one == other or not both:
                continue
            labelers |= {one, other}
            both_judged += both
            if (tau := tau_b(both)) is not None:
                taus.append(tau)
        if both_judged:
            strict = [a == b for a, b in both_judged if a and b]
            counts.append((sum(strict), len(strict), sum(a == b for a, b in both_judged), len(both_judged)))
    if not counts:
        return None
    agreed, strict_pairs, same, pairs = zip(*counts, strict=True)
    return {
        "prompts": len(counts),
        "labelers": len(labelers),
        "strict": ratio_interval(agreed, strict_pairs, RESAMPLES) if sum(strict_pairs) else None,
        "three_way": ratio_interval(same, pairs, RESAMPLES),
        "tau": math.fsum(taus) / len(taus) if taus else None,
        "alpha": krippendorff_alpha(units),
    }


def tau_b(both: Sequence[tuple[int, int]]) -> float | None:
    """Kendall's tau-b of two labelers' judgments of the same pairs; None if one of them ties everything."""
    norm = sum(abs(a) for a, _ in both) * sum(abs(b) for _, b in both)
    return sum(a * b for a, b in both) / math.sqrt(norm) if norm else None


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha (2011, "Computing Krippendorff's alpha-reliability") with squared differences.

    Each unit holds the values that its labelers gave it; units with a single value are ignored. 1 is perfect agreement,
    0 is chance. None if no unit has two values, or all values are equal.
    """
    paired = [np.asarray(unit, dtype=float) for unit in units if len(unit) > 1]
    if not paired:
        return None
    values = np.concatenate(paired)
    # The sum of squared differences of all ordered pairs of n values is 2 n^2 times their variance.
    observed = sum(2 * len(unit) ** 2 * unit.var() / (len(unit) - 1) for unit in paired) / len(values)
    expected = 2 * len(values) ** 2 * values.var() / (len(values) * (len(values) - 1))
    return 1 - float(observed / expected) if expected > 0 else None
