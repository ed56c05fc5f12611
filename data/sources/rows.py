"""This project's own records, and the forms that trl's trainers take: prompt-completion, chosen-rejected and
conversational.

Which of them a row is shows in its keys. Anything else is what a source's `columns` setting is for: it gives columns
our names, or none.
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from data.messages import Message, conversation
from data.sets import unpacked
from data.sources.adapter import Adapter, Row, identifier, need, single

IDS = ("prompt_id", "user_id", "organisation_id", "labeler_id")
Turns = list[Message]


def demonstrations(row: Row) -> Iterator[dict[str, Any]]:
    """Our Demonstrations and FewShots as they are; `messages` ending in the assistant's; the chosen one of a pair."""
    ours = _ours(row)
    if "messages" in ours:
        turns = _conversation(ours, "messages")
        if turns[-1]["role"] != "assistant":
            raise ValueError("the last of 'messages' must be the assistant's, which is what there is to learn from")
        if ours["messages"][-1].get("weight") == 0:
            raise ValueError("the last message has 'weight' 0, which excludes it from training: leave the row out")
        yield _without(ours, "messages") | {"prompt": turns[:-1], "completion": turns[-1]["content"]}
    elif "chosen" in ours:
        prompt, chosen, _ = _pair(ours)
        yield _without(ours, "chosen", "rejected") | {"prompt": prompt, "completion": chosen}
    elif "completion" in ours:
        yield ours | {"completion": _answer(ours, "completion")}
    else:
        yield ours


def prompts(row: Row) -> Iterator[dict[str, Any]]:
    """The prompt of any form; answers beside it are left out."""
    ours = _ours(row)
    if "messages" in ours:
        turns = _conversation(ours, "messages")
        yield _without(ours, "messages") | {"prompt": turns[:-1] if turns[-1]["role"] == "assistant" else turns}
    elif "chosen" in ours:
        yield _without(ours, "chosen", "rejected") | {"prompt": _pair(ours)[0]}
    elif "examples" in ours:
        raise ValueError(
            "a row with 'examples' is a demonstration: name its source under data.demonstrations; RM and RL get its "
            "prompts too"
        )
    else:
        yield _without(
            ours,
            "completion",
            "completions",
            "ranks",
            "preferences",
            "ties",
            "labeler",
            "labeler_id",
            "complete",
            "ratings",
        )


def rankings(row: Row) -> Iterator[dict[str, Any]]:
    """Our Rankings as they are; a chosen and a rejected answer are a ranking of two."""
    ours = _ours(row)
    if "chosen" in ours or "rejected" in ours:
        prompt, chosen, rejected = _pair(ours)
        yield _without(ours, "chosen", "rejected") | {
            "prompt": prompt,
            "completions": [chosen, rejected],
            "ranks": [1, 2],
        }
    else:
        if isinstance(ranks := ours.get("ranks"), list):  # tables hold integers beside null as floats
            ours["ranks"] = [int(rank) if isinstance(rank, float) and rank.is_integer() else rank for rank in ranks]
        yield unpacked(ours)


def documents(row: Row) -> Iterator[dict[str, Any]]:
    """Plain text under `text`; whatever stands beside it is left out."""
    yield {"text": need(row, "text", str, "a string")}


def _ours(row: Row) -> dict[str, Any]:
    """The row with ids as text; tables store them as numbers."""
    return {key: identifier(row, key) if key in IDS else value for key, value in row.items()}


def _without(row: Row, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _conversation(row: Row, key: str) -> Turns:
    turns = conversation(need(row, key, list, "a list of messages"), key)
    if len(turns) < 2:
        raise ValueError(f"{key!r} needs a prompt and an answer, found {len(turns)} messages")
    return turns


def _answer(row: Row, key: str) -> str:
    """An answer's text: a string, or in trl's conversational form one message of the assistant's."""
    value = row[key]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        message = conversation(value, key)[0]
        if message["role"] == "assistant":
            return message["content"]
    raise ValueError(f"{key!r} must be a string, or a list of one message of the assistant's")


def _pair(row: Row) -> tuple[str | Turns, str, str]:
    """(prompt, chosen answer, rejected answer) of trl's preference form, whose prompt may be what both answers start
    with.
    """
    for key in ("chosen", "rejected"):
        if key not in row:
            raise ValueError(f"missing key {key!r}: a row with one of 'chosen' and 'rejected' needs both")
    if "prompt" in row:
        return row["prompt"], _answer(row, "chosen"), _answer(row, "rejected")
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        return _split_texts(row["chosen"], row["rejected"])
    chosen, rejected = _conversation(row, "chosen"), _conversation(row, "rejected")
    if chosen[:-1] != rejected[:-1] or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise ValueError(
            "without a 'prompt', 'chosen' and 'rejected' must be one conversation that differs in the assistant's "
            "last message alone"
        )
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The common start, up to its last space, is the prompt; what follows are the answers."""
    common = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    cut = max(common.rfind(space) for space in " \n\t") + 1
    if not chosen[:cut].strip():
        raise ValueError("without a 'prompt', 'chosen' and 'rejected' must start with the same words: the prompt")
    return chosen[:cut].rstrip(), chosen[cut:], rejected[cut:]


ADAPTER = Adapter(
    name="rows",
    anywhere=True,
    keys=(
        ("messages",),
        ("prompt", "completion"),
        ("chosen", "rejected"),
        ("prompt", "completions"),
        ("prompt", "examples"),
    ),
    about="this project's records and trl's forms, from anyone's files or the Hub",
    convert={
        "demonstrations": single(demonstrations),
        "prompts": single(prompts),
        "rankings": single(rankings),
        "pretraining": single(documents),
    },
)
