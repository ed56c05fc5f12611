"""The paper's rules for prompts, each against a slow and obvious version of itself."""

import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.curate import cap_per_user, drop_long, drop_near_duplicates
from data.records import Prompt

TEXTS = st.lists(st.text("ab", min_size=1, max_size=9), max_size=25)


def prompts(texts: list[str]) -> list[Prompt]:
    return [Prompt(prompt=text, prompt_id=str(number)) for number, text in enumerate(texts)]


def alike(left: str, right: str, fraction: float) -> bool:
    """Near-duplicates by the rule's words, one character at a time."""
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    return common >= fraction * max(len(left), len(right))


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_no_user_has_more_prompts_than_the_cap_and_the_first_ones_stay(limit: int) -> None:
    generator = random.Random(0)
    records = [Prompt(prompt=str(number), user_id=generator.choice("abc")) for number in range(900)]
    kept = cap_per_user(records, limit)
    assert Counter(record.user_id for record in kept) == dict.fromkeys("abc", limit)
    for user in "abc":
        assert [r for r in kept if r.user_id == user] == [r for r in records if r.user_id == user][:limit]
    assert kept == [record for record in records if record in kept]


def test_users_below_the_cap_lose_nothing() -> None:
    records = [Prompt(prompt=str(number), user_id=str(number % 7)) for number in range(70)]
    assert cap_per_user(records, 10) == records
    assert cap_per_user(records, 9) == records[:63]


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, fraction=st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]))
@example(texts=["aaaaaaaaab", "aaaaaaaaabbbbbbbbbb", "aaaaaaaaac"], fraction=0.9)
@example(texts=["abbbbb", "ab", "abb"], fraction=0.6)
def test_no_two_kept_prompts_are_near_duplicates_and_each_dropped_one_has_an_earlier_twin(texts: list[str], fraction: float) -> None:
    """The first example is one where two twins are no neighbours in sorted order: a longer prompt stands between them."""
    records = prompts(texts)
    kept = [int(record.prompt_id) for record in drop_near_duplicates(records, fraction)]
    expected: list[int] = []
    for index, text in enumerate(texts):
        if not any(alike(text, texts[earlier], fraction) for earlier in expected):
            expected.append(index)
    assert kept == expected


def test_case_spaces_and_punctuation_do_not_make_a_new_prompt() -> None:
    texts = ["Why is the sky blue?", "  why is the SKY blue", "Why, is the sky -- blue!", "Why is the sea blue?"]
    assert [record.prompt for record in drop_near_duplicates(prompts(texts), 0.9)] == [texts[0], texts[3]]


def test_accents_and_other_scripts_are_letters() -> None:
    texts = ["天気はどうですか", "猫が好きです", "как дела", "какой день"]
    assert [record.prompt for record in drop_near_duplicates(prompts(texts), 0.9)] == texts


def test_a_long_shared_opening_does_not_make_twins_of_prompts_that_go_on_differently() -> None:
    opening = "Summarise the following text in one sentence. "
    texts = [opening + "The cat sat on the mat, purred, and fell asleep.", opening + "Rivers carry sand from the hills down to the sea."]
    assert len(drop_near_duplicates(prompts(texts), 0.9)) == 2
    assert len(drop_near_duplicates(prompts(texts), 0.4)) == 1


def test_prompts_of_exactly_the_limit_stay_and_longer_ones_go_whole() -> None:
    records = prompts(["a" * length for length in (1, 5, 6, 9)])
    assert drop_long(records, lambda prompt: len(prompt.text), 5) == records[:2]
