"""Anthropic's helpful and harmless preferences (Bai et al. 2022): two transcripts that differ in the assistant's last
reply.

Rankings of two replies, and prompts. No demonstrations: its authors ask not to imitate the chosen replies, which were
only the better of two. The Hub's default configuration joins the four preference sets; `red-team-attempts` is another
format.

Left out: pairs whose conversations differ before the last reply or do not end with an assistant reply, since they do
not compare two answers to one prompt, and pairs that answer an empty message. An empty reply stays: it was shown and
judged. Later rows often continue earlier ones, so the first message is the user: all prefixes of a conversation stay
in one split.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from data.messages import Message
from data.sources.adapter import Adapter, Row, single
from data.sources.common import opening_id, transcript


def _pairs(row: Row) -> Iterator[tuple[list[Message], str, str]]:
    """(conversation, chosen reply, rejected reply), unless the row is to be left out."""
    chosen, rejected = transcript(row, "chosen"), transcript(row, "rejected")
    prompt, last = chosen[:-1], (chosen[-1], rejected[-1])
    if prompt != rejected[:-1] or not prompt or not prompt[-1]["content"]:
        return
    if all(message["role"] == "assistant" for message in last):
        yield prompt, last[0]["content"], last[1]["content"]


def _record(prompt: list[Message]) -> dict[str, Any]:
    return {"prompt": prompt, "user_id": opening_id(prompt)}


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    return (_record(prompt) for prompt, _, _ in _pairs(row))


def _rankings(row: Row) -> Iterable[dict[str, Any]]:
    return (
        _record(prompt) | {"completions": [chosen, rejected], "ranks": [1, 2]}
        for prompt, chosen, rejected in _pairs(row)
    )


ADAPTER = Adapter(
    name="hh_rlhf",
    about="Anthropic's helpful and harmless dialogues, two replies compared by humans (MIT)",
    convert={"prompts": single(_prompts), "rankings": single(_rankings)},
    hub="Anthropic/hh-rlhf",
)
