"""Near-duplicates by common prefix, against the rule's own words applied to every pair."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.near_duplicates import alike, comparable, distinct

TEXTS = st.lists(st.text("abé", max_size=9), max_size=25)
FRACTIONS = st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0])


def near(left: str, right: str, fraction: float) -> bool:
    """Near-duplicates by the rule's words, one byte at a time."""
    one, other, common = left.encode(), right.encode(), 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return common >= fraction * max(len(one), len(other))


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, fraction=FRACTIONS)
@example(texts=["aaaaaaaaab", "aaaaaaaaabbbbbbbbbb", "aaaaaaaaac"], fraction=0.9)
@example(texts=["abbbbb", "ab", "abb"], fraction=0.6)
@example(texts=["ab", "abb", "abbbbb"], fraction=0.6)
@example(texts=["", "", "a"], fraction=0.9)
def test_no_two_kept_texts_are_near_duplicates_and_each_dropped_one_has_an_earlier_twin(
    texts: list[str], fraction: float
) -> None:
    expected: list[int] = []
    for index, text in enumerate(texts):
        if not any(near(text, texts[earlier], fraction) for earlier in expected):
            expected.append(index)
    assert np.flatnonzero(distinct(lambda: texts, fraction)).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(
    marked=st.lists(st.tuples(st.text("ab", max_size=9), st.sampled_from("cons"), st.booleans()), max_size=25),
    fraction=FRACTIONS,
)
def test_candidates_that_resemble_one_of_the_others_are_found_and_nobody_else(
    marked: list[tuple[str, str, bool]], fraction: float
) -> None:
    """Each text is a candidate, one of the others, neither or, by the flag, both."""
    texts = [text for text, _, _ in marked]
    candidates = np.array([role == "c" or both for _, role, both in marked], dtype=bool)
    others = np.array([role == "o" for _, role, _ in marked], dtype=bool)
    expected = [
        bool(candidates[i]) and any(others[j] and near(texts[i], texts[j],
            fraction) for j in range(len(texts))) for i in range(len(texts))
    ]  # fmt: skip
    assert alike(lambda: texts, candidates, others, fraction).tolist() == expected


def test_case_spaces_and_punctuation_do_not_make_a_new_prompt() -> None:
    texts = ["Why is the sky blue?", "  why is the SKY blue", "Why, is the sky -- blue!", "Why is the sea blue?"]
    assert len({comparable(text) for text in texts[:3]}) == 1
    assert comparable(texts[3]) != comparable(texts[0])


@pytest.mark.parametrize(
    ("one", "other"), [("2 + 3", "2 - 3"), ("2 * 3", "2 / 3"), ("a < b", "a > b"), ("2.5 + 1", "25 + 1"), ("$5", "€5")]
)
def test_symbols_make_another_prompt(one: str, other: str) -> None:
    assert comparable(one) != comparable(other)


def test_accents_and_other_scripts_are_letters() -> None:
    texts = ["天気はどうですか", "猫が好きです", "как дела", "какой день"]
    assert distinct(lambda: map(comparable, texts), 0.9).all()


def test_a_long_shared_opening_does_not_make_twins_of_prompts_that_go_on_differently() -> None:
    opening = "summarise the following text in one sentence "
    texts = [
        opening + "the cat sat on the mat purred and fell asleep",
        opening + "rivers carry sand from the hills down to the sea",
    ]
    assert distinct(lambda: texts, 0.9).tolist() == [True, True]
    assert distinct(lambda: texts, 0.4).tolist() == [True, False]


def test_time_grows_with_the_number_of_texts_even_where_all_of_them_share_an_opening() -> None:
    """All pairs of 20,000 would be 200 million comparisons; a long boilerplate is the worst case for anything that
    looks at neighbours.
    """
    boilerplate = (
        "classify the sentiment of the following customer review as positive negative or neutral and give a reason "
    )
    texts = [
        boilerplate + f"{number:07d} the parcel came {number % 97} days late but the box held"
        for number in range(20_000)
    ]
    start = time.process_time()
    kept = distinct(lambda: texts, 0.95)
    assert time.process_time() - start < 10
    assert kept.sum() > 1
