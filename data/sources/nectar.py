"""Nectar (Zhu et al. 2023): seven models' answers to a conversation, ranked 1 to 7 by GPT-4.

Where a prompt had fewer than seven answers its authors repeated one. Copies that got different ranks contradict each
other, so such an answer is left out; the rest keep their ranks. Prompts that end in the assistant's words, or in an
empty message, are left out. The best answer is the demonstration: a model's, not a person's. As in `hh_rlhf`, where
many of the prompts come from, the user is the opening message.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from data.messages import Message
from data.sources.adapter import Adapter, Row, need, single
from data.sources.common import opening_id, transcript

LABELER = {"labeler": "llm", "labeler_id": "gpt-4"}


def _records(row: Row) -> Iterator[dict[str, Any]]:
    """The prompt's fields, unless the row is to be left out."""
    prompt = transcript(row, "prompt")
    if prompt[-1] == Message(role="assistant", content=""):
        # The published prompts end with "Assistant: ", where the answer goes.
        prompt.pop()
    if prompt and prompt[-1]["role"] == "user" and prompt[-1]["content"]:
        yield {"prompt": prompt, "user_id": opening_id(prompt)}


def _answers(row: Row) -> dict[str, int]:
    """Answer -> rank, without answers that have several."""
    ranks: dict[str, set[int]] = {}
    for answer in need(row, "answers", list):
        if not isinstance(answer, dict):
            raise ValueError("each of 'answers' must be an object with 'answer' and 'rank'")
        ranks.setdefault(need(answer, "answer", str).strip(), set()).add(_rank(answer))
    return {text: min(found) for text, found in ranks.items() if len(found) == 1}


def _rank(answer: Row) -> int:
    """Published as a number with a decimal point."""
    rank = answer.get("rank")
    if isinstance(rank, bool) or not isinstance(rank, int | float) or rank < 1 or rank != rank // 1:
        raise ValueError(f"'rank' must be a whole number from 1 up, found {rank!r}")
    return int(rank)


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    return _records(row)


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    ranks = {text: rank for text, rank in _answers(row).items() if text}
    for record in _records(row):
        if ranks:
            yield record | {"completion": min(ranks, key=ranks.__getitem__)}


def _rankings(row: Row) -> Iterable[dict[str, Any]]:
    ranks = _answers(row)
    for record in _records(row):
        if len(ranks) > 1:
            yield record | {"completions": list(ranks), "ranks": list(ranks.values())} | LABELER


ADAPTER = Adapter(
    name="nectar",
    keys=(("prompt", "answers"),),
    about="Nectar, seven models' answers ranked by GPT-4 (Apache-2.0, its card adds: research, non-commercial)",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts), "rankings": single(_rankings)},
    hub="berkeley-nest/Nectar",
)
