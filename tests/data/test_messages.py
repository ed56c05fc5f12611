"""Messages of every format are checked alike: what is kept, what is left out, and what is refused."""

import json
from typing import Any

import pytest

from data.messages import SHAREGPT, conversation, other_keys
from data.sources.convert import Role
from tests.data.sources.converting import convert

USER, GOOD = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c0", "function": {"name": "weather", "arguments": "{}"}}],
}


def test_keys_that_the_model_does_not_see_are_left_out_and_counted() -> None:
    extra = {"name": "Ann", "weight": 1, "tool_calls": [], "refusal": None}
    assert conversation([USER | extra, GOOD], "messages") == [USER, GOOD]
    assert sorted(other_keys({"messages": [USER | extra, GOOD | {"weight": 0}], "user_id": "u", "prompt": "Why?"})) == [
        "name", "tool_calls", "weight", "weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "parts", [[{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}], ["Wh", "y?"], [{"text": "Why?"}]]
)
def test_text_parts_are_joined(parts: list[Any]) -> None:
    assert conversation([{"role": "user", "content": parts}], "messages") == [USER]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (CALL, "message 2 of 'messages' has 'tool_calls', which is not supported"),
        (
            GOOD | {"reasoning_content": "Hm."},
            "message 2 of 'messages' has 'reasoning_content', which is not supported",
        ),
        ({"role": "assistant", "content": None}, "message 2 of 'messages' has no 'content'; found 'role'"),
        ({"role": "assistant", "text": "So."}, "message 2 of 'messages' has no 'content'; found 'role', 'text'"),
        ({"content": "So."}, "message 2 of 'messages' has no 'role'; found 'content'"),
        (
            {"role": "bing", "content": "So."},
            "'role' of message 2 of 'messages' is 'bing'; allowed are system, developer, user, assistant, tool",
        ),
        ({"role": ["user"], "content": "So."}, "'role' of message 2 of 'messages' is ['user']; allowed are"),
        (
            {"role": "user", "content": 3},
            "'content' of message 2 of 'messages' must be a string or a list of text parts, found int",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "'content' of message 2 of 'messages' has a part of type 'image_url'; only text is supported",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "has a part of type 'text'; only text is supported"),
        ("So.", "message 2 of 'messages' must be an object with 'role' and 'content', found str"),
    ],
)
def test_content_that_the_model_would_not_see_is_refused(message: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        conversation([USER, message, GOOD], "messages")
    assert sentence in str(caught.value)


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages in ShareGPT's format."""
    names = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    return [
        {
            names.get(key, key): names.get(value, value) if isinstance(value, str) else value
            for key, value in message.items()
        }
        for message in messages
    ]


EVERYWHERE: list[tuple[str, Role, Any]] = [
    ("rows", "demonstrations", lambda *said: {"messages": [*said]}),
    ("rows", "prompts", lambda *said: {"messages": [*said]}),
    ("rows", "prompts", lambda *said: {"prompt": [*said[:-1]]}),
    ("rows", "rankings", lambda *said: {"chosen": [*said], "rejected": [*said[:-1], GOOD]}),
    ("rows", "rankings", lambda *said: {"prompt": [*said[:-1]], "chosen": [said[-1]], "rejected": [GOOD]}),
    ("no_robots", "demonstrations", lambda *said: {"messages": [*said]}),
    ("ultrafeedback_binarized", "prompts", lambda *said: {"chosen": [*said], "rejected": [*said[:-1], GOOD]}),
    ("sharegpt", "demonstrations", lambda *said: {"conversations": turns(*said)}),
    ("sharegpt", "prompts", lambda *said: {"conversations": [*said]}),
]


@pytest.mark.parametrize(("name", "role", "row"), EVERYWHERE)
def test_every_format_checks_its_messages_alike(name: str, role: Role, row: Any) -> None:
    parts = {"role": "assistant", "content": [{"type": "text", "text": "So."}], "weight": 1}
    tool = {"role": "tool", "content": "42", "tool_call_id": "c0"}
    asked: list[dict[str, Any]] = [USER, GOOD, tool | {"name": "weather"}]
    (record,) = convert(name, role, row(*asked, parts))
    assert record.prompt == [USER, GOOD, {"role": "tool", "content": "42"}]
    with pytest.raises(ValueError, match="has 'tool_calls', which is not supported"):
        convert(name, role, row(USER, CALL, tool, parts))


def test_sharegpt_speakers_map_to_roles() -> None:
    said = turns({"role": "system", "content": "Be brief."}, USER, GOOD)
    (record,) = convert("sharegpt", "demonstrations", {"id": "x0", "conversations": said})
    assert (record.prompt, record.completion) == ([{"role": "system", "content": "Be brief."}, USER], "So.")
    (other,) = convert("sharegpt", "prompts", {"conversations": said[1:], "system": "Be brief."})
    assert (other.prompt, other.user_id) == (record.prompt, record.user_id), "the same conversation in its other form"
    with pytest.raises(
        ValueError, match="'from' of message 1 of 'conversations' is 'bing'; allowed are system, human, user, gpt"
    ):
        conversation([{"from": "bing", "value": "Hi."}], "conversations", SHAREGPT)


def test_a_sharegpt_ranking_has_its_answers_in_separate_fields() -> None:
    row = {"conversations": turns(USER), "chosen": turns(GOOD)[0], "rejected": {"from": "gpt", "value": "No."}}
    (ranking,) = convert("sharegpt", "rankings", row)
    assert (ranking.prompt, ranking.completions, ranking.ranks) == ([USER], ["So.", "No."], [1, 2])


EXCLUDED = GOOD | {"weight": 0}


@pytest.mark.parametrize(
    ("form", "row", "said"),
    [
        ("rows", {"messages": [USER, EXCLUDED]}, "'weight' 0"),
        ("rows", {"messages": [USER, GOOD | {"train": False}]}, "'train' false"),
        ("rows", {"prompt": "Why?", "completion": [EXCLUDED]}, "'weight' 0"),
        ("rows", {"prompt": "Why?", "chosen": [EXCLUDED], "rejected": [GOOD]}, "'weight' 0"),
        ("no_robots", {"prompt": "Why?", "messages": [USER, EXCLUDED], "category": "Open QA"}, "'weight' 0"),
        (
            "ultrafeedback_binarized",
            {"prompt": "Why?", "messages": [USER, GOOD], "chosen": [USER, EXCLUDED], "rejected": [USER, GOOD]},
            "'weight' 0",
        ),
        ("sharegpt", {"conversations": [*turns(USER), turns(GOOD)[0] | {"weight": 0.0}]}, "'weight' 0"),
        ("sharegpt", {"conversations": [USER, EXCLUDED]}, "'weight' 0"),
    ],
)
def test_an_answer_that_is_excluded_from_training_is_no_demonstration_in_any_format(
    form: str, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"{said}, which excludes it from training"):
        convert(form, "demonstrations", row)
    if form == "rows" and "chosen" not in row:
        assert convert(form, "prompts", row)[0].messages == [USER]


@pytest.mark.parametrize("key", ["prompt", "completion", "chosen", "rejected"])
@pytest.mark.parametrize("text", ["[{'content': 'Hi', 'role': 'user'}]", json.dumps([USER, GOOD])])
def test_a_conversation_written_as_text_is_refused_in_rows_of_any_file(key: str, text: str) -> None:
    """As pandas leaves them that read a CSV file and wrote JSON Lines or Parquet."""
    answers = {"completion": "So."} if key == "completion" else {"chosen": "So.", "rejected": "No."}
    role = "demonstrations" if key == "completion" else "rankings"
    with pytest.raises(ValueError, match=f"'{key}' is a list of messages written as text: write it as a list"):
        convert("rows", role, {"prompt": "Why?"} | answers | {key: text})


def test_dialogues_with_speakers_are_not_split_as_plain_texts() -> None:
    start = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And then?\n\nAssistant: I think "
    with pytest.raises(ValueError, match=r"dialogues of 'Human:' and 'Assistant:': set format: hh_rlhf"):
        convert("rows", "rankings", {"chosen": start + "so.", "rejected": start + "no."})
