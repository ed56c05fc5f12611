"""This project's records and trl's forms: each becomes the record that its keys say it is, and nothing else passes."""

import contextlib
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Demonstration, Prompt, Ranking
from data.sources.convert import Role
from tests.data.sources.converting import assert_refused, convert

USER = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "So."}
POOR = {"role": "assistant", "content": "Dunno."}


def made(role: Role, row: Any) -> Any:
    (record,) = convert("rows", role, row)
    return record


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "completion": "So."},
        {"prompt": "Why?", "completion": [GOOD]},
        {"prompt": "Why?", "chosen": "So.", "rejected": "Dunno."},
        {"prompt": "Why?", "chosen": [GOOD], "rejected": [POOR]},
        {"chosen": "Why? So.", "rejected": "Why? Dunno."},
    ],
)
def test_all_forms_of_one_demonstration_are_that_demonstration(row: dict[str, Any]) -> None:
    assert made("demonstrations", row | {"user_id": "u"}) == Demonstration(prompt="Why?", completion="So.", user_id="u")
    assert made("prompts", row | {"user_id": "u"}) == Prompt(prompt="Why?", user_id="u")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD]},
        {"prompt": [USER], "completion": [GOOD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [POOR]},
        {"chosen": [USER, GOOD], "rejected": [USER, POOR]},
    ],
)
def test_all_forms_of_a_conversation_are_that_conversation(row: dict[str, Any]) -> None:
    assert made("demonstrations", row) == Demonstration(prompt=[USER], completion="So.")  # type: ignore[list-item]
    assert made("prompts", row) == Prompt(prompt=[USER])  # type: ignore[list-item]


def test_a_conversation_that_waits_for_its_answer_is_a_prompt() -> None:
    turns = [USER, GOOD, {"role": "user", "content": "Why so?"}]
    assert made("prompts", {"messages": turns}).prompt == turns
    with pytest.raises(ValueError, match="the last of 'messages' must be the assistant's"):
        made("demonstrations", {"messages": turns})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Why?", "chosen": "So.", "rejected": "Dunno."}, "Why?"),
        ({"chosen": "Why? So.", "rejected": "Why? Dunno."}, "Why?"),
        ({"chosen": [USER, GOOD], "rejected": [USER, POOR]}, [USER]),
    ],
)
def test_a_chosen_and_a_rejected_answer_are_a_ranking_of_two(row: dict[str, Any], prompt: Any) -> None:
    assert made("rankings", row) == Ranking(prompt=prompt, completions=["So.", "Dunno."], ranks=[1, 2])


def test_words_that_both_answers_happen_to_begin_with_are_not_cut_in_half() -> None:
    """Without a prompt of its own the row says only what both texts start with: the cut falls between words."""
    record = made("rankings", {"chosen": "Name a pet. A cat", "rejected": "Name a pet. A cow"})
    assert (record.prompt, record.completions) == ("Name a pet. A", ["cat", "cow"])


def test_our_own_rows_stay_as_they_are() -> None:
    ranking = {
        "prompt": "Why?",
        "completions": ["a", "b"],
        "preferences": [[0, 1]],
        "ties": [],
        "labeler": "llm",
        "ratings": [{"quality": 1}, {}],
    }
    assert made("rankings", ranking) == Ranking(**ranking)  # type: ignore[arg-type]
    assert made("prompts", ranking) == Prompt(prompt="Why?")
    pairs = [{"prompt": "one", "completion": "un"}, {"prompt": "two", "completion": "deux"}]
    assert made("demonstrations", {"prompt": "In French.", "examples": pairs}).examples == pairs


def test_ids_may_be_numbers_as_tables_have_them() -> None:
    record = made(
        "rankings",
        {"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 2], "user_id": 7, "prompt_id": 8, "labeler_id": 9},
    )
    assert (record.user_id, record.prompt_id, record.labeler_id) == ("7", "8", "9")
    ids = {"user_id": UUID(int=7), "prompt_id": Decimal("8")}  # of Parquet files
    record = made("prompts", {"prompt": "Why?", **ids})
    assert (record.user_id, record.prompt_id) == (str(UUID(int=7)), "8")
    with pytest.raises(ValueError, match="'prompt_id' must be str, found Decimal"):
        made("prompts", {"prompt": "Why?", "prompt_id": Decimal("8.5")})


def test_a_field_that_only_other_messages_have_is_nothing() -> None:
    assert made("demonstrations", {"messages": [USER | {"name": None}, GOOD | {"name": None}]}).prompt == [USER]


def test_ranks_and_ratings_as_tables_hold_them_are_integers_and_objects_again() -> None:
    row = {"prompt": "Why?", "completions": ["a", "b"], "ranks": [1.0, None]}
    assert made("rankings", row).ranks == [1, None]
    assert made("rankings", row | {"ratings": ['{"quality": 3}', "{}"]}).ratings == [{"quality": 3}, {}]
    with pytest.raises(ValueError, match="'ratings' must be a list as long as 'completions'"):
        made("rankings", row | {"ratings": ["good", "poor"]})


@pytest.mark.parametrize(
    ("role", "row", "sentence"),
    [
        ("demonstrations", {"prompt": "Why?"}, "missing key 'completion'"),
        ("demonstrations", {"prompt": "Why?", "completion": [POOR, GOOD]}, "'completion' must be a string, or a list"),
        (
            "demonstrations",
            {"prompt": "Why?", "completion": [USER, GOOD]},
            "`columns: {completion: messages, prompt: null}",
        ),
        ("demonstrations", {"messages": "Why?"}, "'messages' must be a list of messages, found str"),
        ("demonstrations", {"messages": [GOOD]}, "'messages' needs a prompt and an answer, found 1 messages"),
        ("demonstrations", {"messages": [USER, "So."]}, "message 2 of 'messages' must be an object with 'role' and"),
        (
            "rankings",
            {"prompt": "Why?", "completions": "['a', 'b']", "ranks": [1, 2]},
            "'completions' is a text, not a",
        ),
        ("rankings", {"prompt": "Why?", "completions": ["a", "b"], "ranks": "[1, 2]"}, "'ranks' is a text, not a list"),
        ("rankings", {"prompt": "Why?", "chosen": "So."}, "missing key 'rejected'"),
        (
            "rankings",
            {"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, POOR]},
            "set `columns: {prompt: null}`",
        ),
        ("rankings", {"chosen": "So.", "rejected": "Dunno."}, "must start with the same words: the prompt"),
        ("rankings", {"chosen": [USER, GOOD], "rejected": [GOOD, GOOD]}, "must be one conversation that differs in"),
        ("rankings", {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "score": 1}, "unknown key 'score'"),
        ("prompts", {"prompt": "Why?", "id": 1, "region": "x"}, "unknown keys 'id'; 'region'; known are"),
        ("prompts", {"prompt": "Why?", "user": "ann"}, "unknown key 'user', did you mean 'user_id'?"),
        ("prompts", ["Why?"], "expected a JSON object, found list"),
        ("prompts", {"prompt": [USER | {"role": "human"}]}, "'role' of message 1 of 'prompt' is 'human'; allowed are"),
        ("prompts", {"prompt": [USER, {"role": "user", "content": " "}]}, "the last message of 'prompt' is empty"),
        ("prompts", {"prompt": "In French.", "examples": []}, "a row with 'examples' is a demonstration"),
        ("demonstrations", {"prompt": [USER], "examples": []}, "'prompt' of a row with 'examples' is the instruction"),
        ("rankings", {"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 2**31]}, "'ranks' must hold integers"),
        ("pretraining", {"txt": "x"}, "missing key 'text'; found 'txt'"),
    ],
)
def test_a_row_of_no_known_form_is_refused_in_one_sentence(role: Role, row: Any, sentence: str) -> None:
    assert_refused(sentence, "rows", role, row)


NAMES = [
    "prompt",
    "completion",
    "messages",
    "chosen",
    "rejected",
    "role",
    "content",
    "examples",
    "completions",
    "ranks",
]


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from([*NAMES, "text"]), values, max_size=4)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda values: st.lists(values, max_size=3) | objects(values),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(row=JSON | objects(JSON), role=st.sampled_from(["demonstrations", "prompts", "rankings", "pretraining"]))
def test_no_row_whatever_it_holds_breaks_the_reader(row: Any, role: Role) -> None:
    with contextlib.suppress(ValueError):
        made(role, row)
