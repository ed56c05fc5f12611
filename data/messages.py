"""Checks conversations of every published format and reduces their messages to role and text.

A model sees only the role and the text of a message. Other keys are left out and counted, except those that chat
templates render (tool calls, reasoning, images): these are refused, since training without them would differ from
the data.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

ROLES = ("system", "developer", "user", "assistant", "tool")
RENDERED = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "images", "image", "audio",
    "video", "documents",
)  # fmt: skip
"""Keys of a message with content that the model would see in addition to its text."""

MESSAGES_AS_TEXT = re.compile(
    r"\s*\[\s*\{(?=.*['\"](role|from)['\"]\s*:)(?=.*['\"](content|value)['\"]\s*:).*\}\s*\]\s*", re.DOTALL
)
"""A conversation in a text or in a cell of a table, as pandas writes it: a Python list, NumPy array or JSON list."""
TARGETS = ("messages", "conversations", "completion", "chosen")
"""Keys of a row whose last message is the answer of a demonstration."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Form:
    """How a published format names the parts of a message."""

    role: str
    content: str
    roles: Mapping[str, str]
    """The format's role names -> ours."""


CHAT = Form("role", "content", {role: role for role in ROLES})
"""The format of OpenAI, transformers and trl."""
SHAREGPT = Form("from", "value", {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "model": "assistant", "tool": "tool", "observation": "tool",
})  # fmt: skip


def conversation(value: object, key: str, form: Form = CHAT) -> list[Message]:
    """The messages in a value, with role and text only. Raises ValueError, naming the message and its `key` in the row,
    for anything else.
    """
    if not isinstance(value, list):
        raise ValueError(f"{key!r} must be a list of messages, found {type(value).__name__}")
    if not value:
        raise ValueError(f"{key!r} has no messages")
    return [_message(message, f"message {number} of {key!r}", form) for number, message in enumerate(value, start=1)]


def refuse_untrained(row: Mapping[str, Any]) -> None:
    """Raises ValueError for a demonstration whose last message must not be trained on: OpenAI's `weight` 0, axolotl's
    `train` false.
    """
    for value in map(row.get, TARGETS):
        if not isinstance(value, list) or not value or not isinstance(value[-1], Mapping):
            continue
        for key, no in (("weight", 0), ("train", False)):
            if value[-1].get(key) == no:
                said = f"the last message has {key!r} {json.dumps(no)}, which excludes it from training"
                raise ValueError(f"{said}: leave the row out")


def other_keys(row: Mapping[str, Any]) -> Iterator[str]:
    """The keys that `conversation` leaves out, once for each message of the row in which they have a value."""
    for value in row.values():
        for message in value if isinstance(value, list) else ():
            for form in (CHAT, SHAREGPT) if isinstance(message, dict) else ():
                if form.role in message and form.content in message:
                    held = [key for key, value in message.items() if value is not None]
                    yield from (key for key in held if key not in (form.role, form.content))


def _message(message: object, where: str, form: Form) -> Message:
    if not isinstance(message, dict):
        wanted = f"an object with {form.role!r} and {form.content!r}"
        raise ValueError(f"{where} must be {wanted}, found {type(message).__name__}")
    # Parquet gives every message the keys of all messages, with null for missing values; exporters write empty lists.
    for key in RENDERED:
        if message.get(key):
            advice = f"leave the row out, or write it as text into {form.content!r}"
            raise ValueError(f"{where} has {key!r}, which is not supported: {advice}")
    for key in (form.role, form.content):
        if message.get(key) is None:
            found = ", ".join(repr(name) for name, held in message.items() if held is not None) or "nothing"
            raise ValueError(f"{where} has no {key!r}; found {found}")
    role, content = message[form.role], message[form.content]
    if not isinstance(role, str) or role not in form.roles:
        raise ValueError(f"{form.role!r} of {where} is {role!r}; allowed are {', '.join(form.roles)}")
    return Message(role=form.roles[role], content=_text(content, f"{form.content!r} of {where}"))


def _text(content: object, where: str) -> str:
    """A string, or a list of text parts joined without a separator, as chat templates do."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{where} must be a string or a list of text parts, found {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in ("text", "str") or not isinstance(text, str):
            raise ValueError(f"{where} has a part of type {kind!r}; only text is supported")
        texts.append(text)
    return "".join(texts)
