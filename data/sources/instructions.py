"""Row functions of instruction sets (docs/data.md lists the files and licences). Each prompt is its own user unless
the function says otherwise.
"""

from collections.abc import Mapping, Sequence

from data.messages import CHAT, SHAREGPT, Message, conversation
from data.sources.convert import (
    Fields,
    Row,
    RowFunction,
    answered,
    identifier,
    need,
    objects,
    opening_id,
    optional,
    without,
)

USE_CASES = {
    "brainstorming": "brainstorming", "classification": "classification", "closed_qa": "closed_qa",
    "creative_writing": "generation", "general_qa": "open_qa", "information_extraction": "extract",
    "open_qa": "open_qa", "summarization": "summarization",
    "Brainstorm": "brainstorming", "Classify": "classification", "Closed QA": "closed_qa", "Generation": "generation",
    "Open QA": "open_qa", "Extract": "extract", "Summarize": "summarization", "Chat": "chat", "Rewrite": "rewrite",
    "Coding": "other",
}  # fmt: skip
"""The categories of Dolly and No Robots -> the paper's use cases. Unlisted categories have no use case."""


def dolly(row: Row) -> Fields:
    """Databricks Dolly 15k: employees wrote instructions and answers in categories after InstructGPT's."""
    return _instruction(row, "context") | {"use_case": USE_CASES.get(str(row.get("category")))}


def alpaca(row: Row) -> Fields:
    """Stanford Alpaca: text-davinci-003 wrote 52,000 instructions and answers from `self_instruct`'s seed tasks.

    LLaMA-Factory's Alpaca format adds a `system` message and earlier turns in `history`.
    """
    fields, system = _instruction(row, "input"), optional(row, "system", "")
    earlier = [Message(role="system", content=system)] if system.strip() else []
    for pair in optional(row, "history", list[object]()):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError("'history' must be a list of pairs [instruction, answer]")
        earlier += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    if earlier:
        fields["prompt"] = [*earlier, Message(role="user", content=fields["prompt"])]
    return fields


def answer(key: str) -> RowFunction:
    """The demonstration of rows with the answer under a key; rows with an empty answer are left out."""

    def demonstration(row: Row) -> Fields | None:
        text = need(row, key, str).strip()
        return {"completion": text} if text else None

    return demonstration


def _instruction(row: Row, key: str) -> Fields:
    return {"prompt": _with_input(need(row, "instruction", str), optional(row, key, "")), "kind": "plain"}


def _with_input(instruction: str, text: str) -> str:
    """An instruction, a blank line, and the text that it is about, if there is one."""
    return f"{instruction.strip()}\n\n{text.strip()}".strip()


def no_robots(row: Row) -> Fields:
    """No Robots: annotators wrote 10,000 conversations in InstructGPT's categories; the last turn is the answer."""
    prompt, completion = answered(row, "messages")
    record = {"prompt": prompt, "prompt_id": identifier(row, "prompt_id", default=""), "completion": completion}
    return record | {"kind": "plain", "use_case": USE_CASES.get(str(row.get("category")))}


def self_instruct(rows: Sequence[Row]) -> list[Fields]:
    """Self-Instruct (Wang et al. 2022). A task with several instances that all have an input is a few-shot prompt, as
    in the paper; otherwise each instance is a demonstration. Instances without an output are left out.
    """
    row, instances = rows[0], _instances(rows[0])
    if len(instances) > 1 and all(given for given, _ in instances):
        examples = [{"prompt": given, "completion": output} for given, output in instances]
        return [_task(row) | {"prompt": need(row, "instruction", str), "kind": "few_shot", "examples": examples}]
    return _separate(row)


def self_instruct_prompts(rows: Sequence[Row]) -> list[Fields]:
    """A prompt for each instance, few-shot or not."""
    return [without(fields, "completion") for fields in _separate(rows[0])]


def _separate(row: Row) -> list[Fields]:
    """A demonstration for each instance."""
    instances = _instances(row)
    return [
        _task(row, f".{number}" if len(instances) > 1 else "")
        | {"prompt": _with_input(need(row, "instruction", str), given), "completion": output}
        for number, (given, output) in enumerate(instances, start=1)
    ]


def _task(row: Row, suffix: str = "") -> Fields:
    """The fields that all prompts of a task share. Tasks for an application are InstructGPT's user-based prompts."""
    task_id = identifier(row, "id")
    task = {"prompt_id": task_id + suffix, "user_id": task_id, "kind": "plain"}
    if row.get("motivation_app") is not None:
        task |= {"user_id": need(row, "motivation_app", str), "kind": "user_based"}
    return task | ({"use_case": "classification"} if row.get("is_classification") is True else {})


def _instances(row: Row) -> list[tuple[str, str]]:
    """(input, output) of each instance with an output."""
    requirement = "'instances' must be a list of objects with 'input' and 'output'"
    instances = objects(row, "instances", requirement)
    if not instances:
        raise ValueError(requirement)
    pairs = [(need(instance, "input", str).strip(), need(instance, "output", str).strip()) for instance in instances]
    return [(given, output) for given, output in pairs if output]


def sharegpt(row: Row) -> Fields:
    """ShareGPT's format: `conversations` of turns with `from` and `value`, or with `role` and `content`.

    Long conversations are often published in parts, so the first user message is the user unless there is a `user_id`.
    """
    turns = _conversation(row)
    prompt = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    return {"prompt": prompt, "user_id": identifier(row, "user_id", default=opening_id(prompt))}


def sharegpt_demonstration(row: Row) -> Fields:
    turns = _conversation(row)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise ValueError("'conversations' must be a prompt followed by the model's answer (from: gpt)")
    return {"completion": turns[-1]["content"]}


def sharegpt_ranking(row: Row) -> Fields:
    """The `chosen` and `rejected` turns, which follow the whole conversation."""
    answers = [_turns([need(row, key, dict, "one turn")], key)[0] for key in ("chosen", "rejected")]
    if any(answer["role"] != "assistant" for answer in answers):
        raise ValueError("'chosen' and 'rejected' must be turns of the model (from: gpt)")
    return {"prompt": _conversation(row), "completions": [answer["content"] for answer in answers], "ranks": [1, 2]}


def _conversation(row: Row) -> list[Message]:
    turns = _turns(need(row, "conversations", list, "a list of turns"), "conversations")
    if row.get("tools"):
        raise ValueError("'tools' is not supported: leave the row out, or write the tools as text into 'system'")
    system = need(row, "system", str) if row.get("system") else ""
    return [Message(role="system", content=system), *turns] if system.strip() else turns


def _turns(value: Sequence[object], key: str) -> list[Message]:
    opening = value[0] if value else None
    chat = isinstance(opening, Mapping) and "role" in opening and "from" not in opening
    return conversation(value, key, CHAT if chat else SHAREGPT)
