"""The rules over columns, each against a slow and obvious version of itself."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curate import in_languages, thinned, under_cap

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 4))
def test_no_group_keeps_more_items_than_the_cap_and_its_first_ones_stay_with_all_their_rows(
    rows: list[tuple[int, int]], limit: int
) -> None:
    groups, items = (np.array([row[place] for row in rows], dtype=np.uint64) for place in (0, 1))
    seen: dict[int, list[int]] = defaultdict(list)
    expected = []
    for group, item in rows:
        if item not in seen[group]:
            seen[group].append(item)
        expected.append(seen[group].index(item) < limit)
    assert under_cap(groups, items, limit).tolist() == expected


def test_the_cap_counts_each_group_by_itself() -> None:
    groups = np.array([7, 7, 7, 8, 8, 9], dtype=np.uint64)
    assert under_cap(groups, np.arange(6, dtype=np.uint64), 2).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [([], [True] * 4), (["en"], [True, False, True, False]), (["en", "de"], [True, True, True, False])],
)
def test_named_languages_stay_and_so_does_what_has_none(wanted: list[str], kept: list[bool]) -> None:
    assert in_languages(np.array(["en", "de", "und", "fr"], dtype=object), wanted).tolist() == kept


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=4), data=st.data())
def test_a_mixture_has_its_proportions_and_is_as_large_as_they_allow(counts: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=len(counts), max_size=len(counts)))
    sources = np.repeat(np.arange(len(counts)), counts)
    lots = np.array(data.draw(st.permutations(range(len(sources)))), dtype=np.uint64)
    kept = thinned(sources, weights, np.ones(len(sources)), lots)
    found = Counter(sources[kept].tolist())
    whole = min(count / weight for count, weight in zip(counts, weights, strict=True))
    for index, weight in enumerate(weights):
        assert weight * whole - 1 < found[index] <= weight * whole + 1e-6, (
            "never more than the share, and never a whole row less"
        )


def test_the_rows_that_stay_depend_on_their_lots_and_not_on_their_order() -> None:
    sources, lots = np.array([0] * 6 + [1] * 3), np.array([5, 1, 4, 2, 3, 6, 30, 10, 20], dtype=np.uint64)
    first = set(lots[thinned(sources, [1, 1], np.ones(9), lots)].tolist())
    assert first == {1, 2, 3, 10, 20, 30}
    order = np.random.default_rng(0).permutation(9)
    assert set(lots[order][thinned(sources[order], [1, 1], np.ones(9), lots[order])].tolist()) == first


def test_sizes_count_and_not_rows() -> None:
    kept = thinned(np.array([0, 0, 0, 1]), [1, 1], np.array([10.0, 10.0, 10.0, 20.0]), np.arange(4, dtype=np.uint64))
    assert kept.tolist() == [True, True, False, True]
