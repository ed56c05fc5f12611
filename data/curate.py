"""The paper's rules as pure functions over columns: each gives a mask of the rows that stay (section 3.2, appendix
A.2).

Near-duplicates and personal data have files of their own. Shapes: N rows, in the order in which they were read.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def under_cap(groups: NDArray[np.uint64], items: NDArray[np.uint64], limit: int) -> Mask:
    """At most `limit` different items of a group, the first ones (section 3.2: 200 prompts of a user).

    `groups` and `items` are N hashes; rows of a kept item all stay, so several rankings of one prompt count once.
    """
    keep = np.zeros(len(groups), dtype=bool)
    order = np.lexsort((np.arange(len(groups)), items, groups))
    group, item = groups[order], items[order]
    opens = np.ones(len(order), dtype=bool)
    opens[1:] = (group[1:] != group[:-1]) | (item[1:] != item[:-1])
    first_row = order[opens]
    # Of each group's items, in the order of their first rows, the place of each.
    by_group = np.lexsort((first_row, groups[first_row]))
    grouped = groups[first_row][by_group]
    starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]]) if len(grouped) else np.empty(0, dtype=np.int64)
    place = np.empty(len(first_row), dtype=np.int64)
    place[by_group] = np.arange(len(grouped)) - np.repeat(starts, np.diff(np.r_[starts, len(grouped)]))
    keep[order] = (place < limit)[np.cumsum(opens) - 1]
    return keep


def in_languages(found: NDArray[np.object_], wanted: Sequence[str]) -> Mask:
    """Rows of a wanted language; all of them where none is named. Text of no determined language (`und`) stays: nobody
    can say it is foreign.
    """
    if not wanted:
        return np.ones(len(found), dtype=bool)
    return np.isin(found, [*wanted, "und"])


def thinned(
    sources: NDArray[np.int64], weights: Sequence[float], sizes: NDArray[np.float64], lots: NDArray[np.uint64]
) -> Mask:
    """The largest part of the rows in which source i has weights[i] of the whole; no source is repeated, and at least
    one stays whole.

    `sources` are N indices into the weights; `sizes` is what each row counts (1, or its characters); `lots` are N
    hashes of the rows, so that who stays does not depend on the order, and a source that grows keeps nearly the same
    rows.
    """
    keep = np.zeros(len(sources), dtype=bool)
    share = np.asarray(weights) / np.sum(weights)
    totals = np.bincount(sources, weights=sizes, minlength=len(share))
    whole = (totals / share).min()
    for index, part in enumerate(share):
        rows = np.flatnonzero(sources == index)
        rows = rows[np.argsort(lots[rows], kind="stable")]
        keep[rows[np.cumsum(sizes[rows]) <= part * whole + 1e-6]] = True
    return keep
