"""Numbers out of the columns of curation: who is in a set, how much they asked, how long it is, and about what. No text
is read here.

A few-shot prompt of K pairs is one prompt that becomes K rows of a set. Sizes, lengths, languages and use cases count
rows; users' prompts are counted as prompts. Its length is that of the longest of its K.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.build import Built
from data.part import Mask, Part
from data.records import SPLITS, USE_CASES
from data.sets import SETS, SetName

PROMPT_SETS: tuple[SetName, ...] = ("sft", "rm", "rl")
TITLES = {"sft": "SFT", "rm": "RM", "rl": "RL", "rankings": "Rankings", "texts": "Texts"}
SPLIT_TITLES = {"train": "training", "valid": "validation", "test": "test", "heldout": "held out"}


def part_of(built: Built, name: SetName) -> Part:
    """Where a set's rows are."""
    return built.rankings if name == "rankings" else built.pool


def present(built: Built) -> list[SetName]:
    """The sets that have rows in any split."""
    return [name for name in SETS if members(built, name).any()]


def members(built: Built, name: SetName, split: int | None = None) -> Mask:
    """The rows of a set, in a split or in all of them."""
    places = range(len(SPLITS)) if split is None else [split]
    found: Mask = np.logical_or.reduce([built.members(name, place) for place in places])
    return found


def rows(part: Part, mask: Mask) -> int:
    """How many rows of a set these become."""
    return int(part.copies[mask].sum())


def removals(built: Built) -> list[tuple[str, str, int, int]]:
    """(kind of row, rule, rows removed by it, rows of that kind read), in the rules' order; only kinds with rows.

    The kind "answers" counts answers dropped from rankings that were kept, if there are any.
    """
    read = {
        "prompts": built.pool.count,
        "rankings": built.rankings.count,
        "answers": int(built.rankings.answers.sum()),
        "documents": built.documents.spool.count,
    }
    shown = {
        kind: found
        for kind, found in built.removed().items()
        if read[kind] and (kind != "answers" or any(found.values()))
    }
    return [(kind, rule, count, read[kind]) for kind, found in shown.items() for rule, count in found.items()]


def per_group(part: Part, mask: Mask) -> NDArray[np.int64]:
    """Prompts of each user (or organisation) that has any."""
    counts: NDArray[np.int64] = np.unique(part.group[mask], return_counts=True)[1]
    return counts


def prompt_lengths(part: Part, mask: Mask) -> NDArray[np.int32]:
    """Tokens of each row's prompt."""
    return np.repeat(part.measures.prompt_tokens[mask], part.copies[mask])


def answer_lengths(part: Part, mask: Mask) -> NDArray[np.int32]:
    """Tokens of each row's answer, where it has one."""
    answered = mask & part.answered
    return np.repeat(part.measures.answer_tokens[answered], part.copies[answered])


def languages(part: Part, mask: Mask) -> Counter[str]:
    """Rows by language code."""
    found: Counter[str] = Counter()
    for language, copies in zip(part.measures.language[mask].tolist(), part.copies[mask].tolist(), strict=True):
        found[language] += copies
    return found


def use_cases(part: Part, mask: Mask) -> dict[str | None, int]:
    """Rows by use case, all ten of them, and under None those that name none."""
    sums = np.bincount(part.use_case[mask] + 1, weights=part.copies[mask], minlength=len(USE_CASES) + 1)
    return {None if place == 0 else USE_CASES[place - 1]: int(count) for place, count in enumerate(sums)}


def summary(values: NDArray[np.int32]) -> list[float]:
    """Mean, standard deviation, minimum, quartiles and maximum, as in table 8; nothing of nothing."""
    if not len(values):
        return []
    return [
        float(values.mean()),
        float(values.std()),
        *(float(value) for value in np.percentile(values, [0, 25, 50, 75, 100])),
    ]


def most_common(found: Counter[str], most: int) -> Sequence[tuple[str, int]]:
    """The most common ones, ties by name, and the sum of the rest as `others`."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[most:])
    return ordered[:most] + ([("others", rest)] if rest else [])
