"""The rules over columns, each against a slow and obvious version of itself."""

from collections import Counter, defaultdict

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curate import in_languages, thinned, under_cap

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=40)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 4))
def test_no_group_keeps_more_items_than_the_cap_and_its_first_ones_stay_with_all_their_rows(
    rows: list[tuple[int, int]], limit: int
) -> None:
    seen: dict[int, list[int]] = defaultdict(list)
    expected = []
    for group, item in rows:
        if item not in seen[group]:
            seen[group].append(item)
        expected.append(seen[group].index(item) < limit)
    assert under_cap(pd.DataFrame(rows, columns=["group", "item"]), limit).tolist() == expected


def test_the_cap_counts_each_group_by_itself() -> None:
    records = pd.DataFrame({"group": [7, 7, 7, 8, 8, 9], "item": range(6)})
    assert under_cap(records, 2).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [([], [True] * 4), (["en"], [True, False, True, False]), (["en", "de"], [True, True, True, False])],
)
def test_named_languages_stay_and_so_does_what_has_none(wanted: list[str], kept: list[bool]) -> None:
    assert in_languages(pd.Series(["en", "de", "und", "fr"]), wanted).tolist() == kept


def records(sources: list[int], hashes: list[int], sizes: list[float] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"source": sources, "size": sizes or [1] * len(sources), "hash": hashes})


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=4), data=st.data())
def test_a_mixture_has_its_proportions_and_is_as_large_as_they_allow(counts: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=len(counts), max_size=len(counts)))
    sources = [index for index, count in enumerate(counts) for _ in range(count)]
    rows = records(sources, data.draw(st.permutations(range(len(sources)))))
    found = Counter(rows["source"][thinned(rows, "prompts", dict(enumerate(weights)))])  # type: ignore[arg-type]
    whole = min(count / weight for count, weight in zip(counts, weights, strict=True))
    for index, weight in enumerate(weights):
        assert weight * whole - 1 < found[index] <= weight * whole + 1e-6, (
            "never more than the share, and never a whole row less"
        )


def test_the_records_that_stay_depend_on_their_hashes_and_not_on_their_order() -> None:
    rows = records([0] * 6 + [1] * 3, [5, 1, 4, 2, 3, 6, 30, 10, 20])
    for order in (rows, rows.sample(frac=1, random_state=0)):
        kept = thinned(order, "prompts", {0: 1.0, 1: 1.0})  # type: ignore[dict-item]
        assert set(order["hash"][kept]) == {1, 2, 3, 10, 20, 30}


def test_sizes_count_and_not_rows() -> None:
    kept = thinned(records([0, 0, 0, 1], [0, 1, 2, 3], [10.0, 10.0, 10.0, 20.0]), "prompts", {0: 1.0, 1: 1.0})  # type: ignore[dict-item]
    assert kept.tolist() == [True, True, False, True]
