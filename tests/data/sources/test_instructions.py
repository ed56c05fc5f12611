"""Published instructions: written for training, so labeler prompts, in the paper's categories where their own say
which.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.records import USE_CASES, FewShot
from data.sources.instructions import USE_CASES as CATEGORIES
from tests.data.sources.converting import assert_refused, convert, read_place, user

DOLLY: dict[str, Any] = {
    "instruction": "What opened?",
    "context": "The mill opened. ",
    "response": "The mill.",
    "category": "closed_qa",
}
ALPACA: dict[str, Any] = {
    "instruction": "Add them.",
    "input": "1 and 2",
    "output": "3",
    "text": "Below is an instruction ...",
}
ROBOTS: dict[str, Any] = {
    "prompt": "Hi!",
    "prompt_id": "abc",
    "messages": user("Hi!", "Hello.", "Why?", "Because."),
    "category": "Coding",
}
TASK: dict[str, Any] = {
    "id": "task_1",
    "name": "n",
    "instruction": "Add.",
    "instances": [{"input": "1, 2", "output": "3"}],
    "is_classification": False,
}


def test_the_context_follows_the_instruction_and_an_empty_one_leaves_no_trace() -> None:
    (demonstration,) = convert("dolly", "demonstrations", DOLLY)
    assert demonstration.prompt == "What opened?\n\nThe mill opened."
    assert (demonstration.completion, demonstration.use_case) == ("The mill.", "closed_qa")
    assert convert("dolly", "prompts", DOLLY | {"context": ""})[0].prompt == "What opened?"
    assert convert("alpaca", "prompts", ALPACA | {"input": ""})[0].prompt == "Add them."
    (demonstration,) = convert("alpaca", "demonstrations", ALPACA)
    assert (demonstration.prompt, demonstration.completion) == ("Add them.\n\n1 and 2", "3")


def test_a_system_message_and_earlier_turns_come_before_the_instruction() -> None:
    """LLaMA-Factory's files in Alpaca's form."""
    more = {"system": "Answer in French.", "history": [["Is 3 prime?", "Oui."]]}
    (demonstration,) = convert("alpaca", "demonstrations", ALPACA | more)
    assert [(message["role"], message["content"]) for message in demonstration.messages] == [
        ("system", "Answer in French."),
        ("user", "Is 3 prime?"),
        ("assistant", "Oui."),
        ("user", "Add them.\n\n1 and 2"),
    ]
    assert convert("alpaca", "prompts", ALPACA | {"system": "", "history": None})[0].prompt == "Add them.\n\n1 and 2"
    with pytest.raises(ValueError, match="'history' must be a list of pairs"):
        convert("alpaca", "prompts", ALPACA | {"history": ["Is 3 prime?"]})


@pytest.mark.parametrize(
    ("name", "row"), [("dolly", DOLLY), ("alpaca", ALPACA), ("no_robots", ROBOTS), ("self_instruct", TASK)]
)
def test_prompts_written_for_training_never_pass_for_a_users(name: str, row: dict[str, Any]) -> None:
    for role in ("prompts", "demonstrations"):
        (record,) = convert(name, role, row)
        assert (record.source, record.kind) == ("labeler", "plain")


def test_an_answer_that_nobody_gave_is_left_out() -> None:
    assert convert("dolly", "demonstrations", DOLLY | {"response": ""}) == []
    assert convert("alpaca", "demonstrations", ALPACA | {"output": " "}) == []
    assert len(convert("alpaca", "prompts", ALPACA | {"output": ""})) == 1


def test_categories_are_the_papers_or_none() -> None:
    assert set(CATEGORIES.values()) == set(USE_CASES)
    assert convert("dolly", "prompts", DOLLY | {"category": "creative_writing"})[0].use_case == "generation"
    assert convert("dolly", "prompts", DOLLY | {"category": "something new"})[0].use_case is None
    assert convert("no_robots", "prompts", ROBOTS)[0].use_case == "other"


def test_the_last_reply_of_a_conversation_is_the_demonstration() -> None:
    (demonstration,) = convert("no_robots", "demonstrations", ROBOTS)
    assert demonstration.prompt == user("Hi!", "Hello.", "Why?")
    assert (demonstration.completion, demonstration.prompt_id) == ("Because.", "abc")


def test_an_application_is_the_user_of_the_tasks_written_for_it() -> None:
    (record,) = convert("self_instruct", "demonstrations", TASK | {"motivation_app": "Grammarly"})
    assert (record.kind, record.user_id, record.prompt_id) == ("user_based", "Grammarly", "task_1")
    (seed,) = convert("self_instruct", "demonstrations", TASK | {"is_classification": True})
    assert (seed.kind, seed.use_case, seed.prompt, seed.completion) == ("plain", "classification", "Add.\n\n1, 2", "3")


def test_several_instances_are_a_few_shot_prompt() -> None:
    row = TASK | {"instances": [{"input": "1, 2", "output": "3"}, {"input": "2, 2", "output": "4"}]}
    (record,) = convert("self_instruct", "demonstrations", row)
    assert isinstance(record, FewShot)
    assert (record.kind, record.prompt) == ("few_shot", "Add.")
    assert record.examples == [{"prompt": "1, 2", "completion": "3"}, {"prompt": "2, 2", "completion": "4"}]
    first, second = convert("self_instruct", "prompts", row)
    assert (first.prompt, second.prompt) == ("Add.\n\n1, 2", "Add.\n\n2, 2")
    assert first.prompt_id != second.prompt_id, "another prompt needs another id"
    assert first.user_id == second.user_id


def test_instances_without_an_input_stand_alone() -> None:
    row = TASK | {
        "instances": [{"input": "", "output": "3"}, {"input": "2, 2", "output": "4"}, {"input": "x", "output": " "}]
    }
    assert [(record.prompt, record.completion) for record in convert("self_instruct", "demonstrations", row)] == [
        ("Add.", "3"),
        ("Add.\n\n2, 2", "4"),
    ]


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("dolly", [], "expected a JSON object, found list"),
        ("dolly", {"context": "", "response": "a"}, "missing key 'instruction'"),
        ("dolly", DOLLY | {"response": None}, "'response' must be str"),
        ("alpaca", ALPACA | {"input": 3}, "'input' must be str"),
        (
            "no_robots",
            ROBOTS | {"messages": user("Hi!")},
            "'messages' must be a prompt followed by the assistant's answer",
        ),
        (
            "no_robots",
            ROBOTS | {"messages": [None]},
            "message 1 of 'messages' must be an object with 'role' and 'content', found NoneType",
        ),
        ("self_instruct", TASK | {"instances": []}, "'instances' must be a list of objects"),
        ("self_instruct", TASK | {"instances": [{"input": "a"}]}, "missing key 'output'"),
    ],
)
def test_a_malformed_row_is_refused_in_one_sentence(name: str, row: Any, sentence: str) -> None:
    assert_refused(sentence, name, "demonstrations", row)


@pytest.mark.parametrize(
    ("name", "tasks", "users", "kind"),
    [("seed_tasks", 175, 175, "plain"), ("user_oriented_instructions", 252, 71, "user_based")],
)
def test_the_published_tasks_all_arrive(
    shared_data: Callable[[str], Path], name: str, tasks: int, users: int, kind: str
) -> None:
    file = shared_data(f"self_instruct/{name}.jsonl")
    published = {row["id"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    records = read_place("self_instruct", "demonstrations", file)
    assert len(records) == len(published) == tasks
    assert len({record.user_id for record in records}) == users
    assert {record.kind for record in records} == {kind}
    for record in records:
        (instance,) = published[record.prompt_id]["instances"]
        assert record.prompt.startswith(published[record.prompt_id]["instruction"].strip())
        assert record.prompt.endswith(instance["input"].strip())
        assert record.completion == instance["output"].strip()
