"""Near-duplicates by common prefix, against the rule's own words applied to every pair."""

import random
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data.near_duplicates
from data.near_duplicates import Texts, alike, comparable, distinct

TEXTS = st.lists(st.text("abé", max_size=9), max_size=25)
FRACTIONS = st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0])


def near(left: str, right: str, fraction: float) -> bool:
    """Near-duplicates by the rule's words, one byte at a time."""
    one, other, common = left.encode(), right.encode(), 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return common >= fraction * max(len(one), len(other))


def in_chunks(texts: list[str], sizes: int = 7) -> Texts:
    """The texts as they come from disk: chunks of a few, cut out of a larger array so that offsets do not start at
    0.
    """
    whole = pa.array(["padding", *texts], type=pa.string())
    return lambda: [whole.slice(1 + start, sizes) for start in range(0, len(texts), sizes)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces even of a few short texts."""
    monkeypatch.setattr(data.near_duplicates, "CHUNK_BYTES", 24)


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
    assert np.flatnonzero(distinct(in_chunks(texts), fraction)).tolist() == expected


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
    assert alike(in_chunks(texts), candidates, others, fraction).tolist() == expected


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
    assert distinct(in_chunks([comparable(text) for text in texts]), 0.9).all()


def test_a_long_shared_opening_does_not_make_twins_of_prompts_that_go_on_differently() -> None:
    opening = "summarise the following text in one sentence "
    texts = [
        opening + "the cat sat on the mat purred and fell asleep",
        opening + "rivers carry sand from the hills down to the sea",
    ]
    assert distinct(in_chunks(texts), 0.9).tolist() == [True, True]
    assert distinct(in_chunks(texts), 0.4).tolist() == [True, False]


def test_a_text_longer_than_a_piece_is_not_cut() -> None:
    long = "ab" * 200
    assert distinct(in_chunks(["x", long, long + "c", "y"]), 0.9).tolist() == [True, True, False, True]


def test_the_answer_is_the_same_however_the_texts_come() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab", k=rng.randint(5, 14))) for _ in range(300)]
    answers = {distinct(in_chunks(texts, size), 0.8).tobytes() for size in (1, 13, 300)}
    assert len(answers) == 1
    assert 0 < np.frombuffer(answers.pop(), dtype=bool).sum() < 300


def test_time_grows_with_the_number_of_texts_even_where_all_of_them_share_an_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All pairs of 20,000 would be 200 million comparisons; a long boilerplate is the worst case for anything that
    looks at neighbours.
    """
    monkeypatch.setattr(data.near_duplicates, "CHUNK_BYTES", 2**21)
    boilerplate = (
        "classify the sentiment of the following customer review as positive negative or neutral and give a reason "
    )
    texts = [
        boilerplate + f"{number:07d} the parcel came {number % 97} days late but the box held"
        for number in range(20_000)
    ]
    start = time.process_time()
    kept = distinct(in_chunks(texts, 4096), 0.95)
    assert time.process_time() - start < 10
    assert kept.sum() > 1
