"""ShareGPT's format, common for instruction sets: `conversations` of turns with `from` (human, gpt, system, tool) and
`value`.

If the last turn is the model's, it is the demonstration; a separate `system` text becomes the first message. Rows
with `chosen` and `rejected` turns in addition to the conversation are rankings of two. Turns may also have `role` and
`content`. Other columns are left out. Long conversations are often published in parts with the same beginning, so the
first message is the user unless the row has a `user_id`. Turns that call a function and rows with `tools` are refused,
since their text would not reach the model.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from data.messages import CHAT, SHAREGPT, Message, conversation
from data.sources.adapter import Adapter, Row, identifier, need, single
from data.sources.common import opening_id


def _turns(value: object, key: str) -> list[Message]:
    first = value[0] if isinstance(value, list) and value else None
    chat = isinstance(first, Mapping) and "role" in first and "from" not in first
    return conversation(value, key, CHAT if chat else SHAREGPT)


def _conversation(row: Row) -> list[Message]:
    turns = _turns(need(row, "conversations", list, "a list of turns"), "conversations")
    if row.get("tools"):
        raise ValueError("'tools' is not supported: leave the row out, or write the tools as text into 'system'")
    system = need(row, "system", str) if row.get("system") else ""
    return [Message(role="system", content=system), *turns] if system.strip() else turns


def _record(row: Row, prompt: list[Message]) -> dict[str, Any]:
    return {"prompt": prompt, "user_id": identifier(row, "user_id") if "user_id" in row else opening_id(prompt)}


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    turns = _conversation(row)
    yield _record(row, turns[:-1] if turns[-1]["role"] == "assistant" else turns)


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    turns = _conversation(row)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise ValueError("'conversations' must be a prompt followed by the model's answer (from: gpt)")
    yield _record(row, turns[:-1]) | {"completion": turns[-1]["content"]}


def _rankings(row: Row) -> Iterable[dict[str, Any]]:
    answers = [_turns([need(row, key, dict, "one turn")], key)[0] for key in ("chosen", "rejected")]
    if any(answer["role"] != "assistant" for answer in answers):
        raise ValueError("'chosen' and 'rejected' must be turns of the model (from: gpt)")
    yield _record(row, _conversation(row)) | {"completions": [answer["content"] for answer in answers], "ranks": [1, 2]}


ADAPTER = Adapter(
    name="sharegpt",
    anywhere=True,
    keys=(("conversations",),),
    about="ShareGPT, conversations of turns with `from` and `value`, from anyone's files or the Hub (licence: the "
    "data set's own)",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts), "rankings": single(_rankings)},
)
