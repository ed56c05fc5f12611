"""What several adapters need: prompts from an instruction and its input, conversations, and ranks from scores."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from data.messages import Message, conversation
from data.sources.adapter import Convert, Row, need, single

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def with_input(instruction: str, text: str) -> str:
    """An instruction and what it is about, a blank line apart; the instruction alone where there is nothing more."""
    return f"{instruction.strip()}\n\n{text.strip()}".strip()


def instructions(record: Callable[[Row], dict[str, Any]], answer: str) -> dict[str, Convert]:
    """By role, the converters of rows of an instruction, as `record` reads it, and its answer under a key; an empty one
    demonstrates nothing.
    """

    def prompts(row: Row) -> Iterable[dict[str, Any]]:
        yield record(row)

    def demonstrations(row: Row) -> Iterable[dict[str, Any]]:
        text = need(row, answer, str).strip()
        if text:
            yield record(row) | {"completion": text}

    return {"demonstrations": single(demonstrations), "prompts": single(prompts)}


def without_answers(
    demonstrations: Callable[[Row], Iterable[dict[str, Any]]],
) -> Callable[[Row], Iterable[dict[str, Any]]]:
    """The prompts of demonstrations."""
    return lambda row: (
        {key: value for key, value in record.items() if key != "completion"} for record in demonstrations(row)
    )


def answered(row: Row, key: str) -> tuple[list[Message], str]:
    """(prompt, answer) of the conversation under a key. Raises ValueError unless it ends with an assistant turn."""
    turns = conversation(need(row, key, list, "a list of messages"), key)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise ValueError(f"{key!r} must be a prompt followed by the assistant's answer")
    return turns[:-1], turns[-1]["content"]


def transcript(row: Row, key: str) -> list[Message]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; what one speaker says in several turns running becomes one
    message.

    Chat templates know only turns that alternate. Raises ValueError when the text is no such transcript.
    """
    before, *parts = TURN.split(need(row, key, str, "a string"))
    if before.strip() or not parts:
        raise ValueError(f"{key!r} must be a transcript that begins with 'Human:' or 'Assistant:'")
    turns = zip(parts[::2], parts[1::2], strict=True)
    spoken = (
        (speaker, [text.strip() for _, text in texts]) for speaker, texts in groupby(turns, key=lambda turn: turn[0])
    )
    return [Message(role=SPEAKERS[speaker], content="\n\n".join(texts).strip()) for speaker, texts in spoken]


def opening_id(messages: Sequence[Message]) -> str:
    """A hash of the first user turn: conversations that begin alike, such as the prefixes of one, share it."""
    opening = next((message["content"] for message in messages if message["role"] == "user"), "")
    return hashlib.sha256(opening.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def dense_ranks(scores: Sequence[float | None]) -> list[int | None]:
    """1 for the highest score, 2 for the next different one, and so on; equal scores tie, and no score is no rank."""
    places = {
        score: place
        for place, score in enumerate(sorted({score for score in scores if score is not None}, reverse=True), 1)
    }
    return [None if score is None else places[score] for score in scores]
