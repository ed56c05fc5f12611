"""Row functions of this project's records and of trl's formats: prompt-completion, chosen-rejected and conversational.

The keys of a row determine its form. Columns with other names are renamed, or left out, by the source's `columns`.
"""

from itertools import takewhile

from data.messages import MESSAGES_AS_TEXT, Message, conversation
from data.sets import unpacked
from data.sources.convert import ANSWER_KEYS, Fields, Row, identifier, need, without
from data.sources.rankings import TURN

TEXTS = ("prompt", "completion", "chosen", "rejected")
LISTS = ("completions", "ranks", "preferences", "ties", "complete", "ratings")
IDS = ("prompt_id", "user_id", "organisation_id", "labeler_id")


def demonstration(row: Row) -> Fields:
    """A Demonstration or FewShot as it is; the last of `messages`; the chosen answer of a pair."""
    ours = _ours(row)
    if "messages" in ours:
        turns = _conversation(ours, "messages")
        if turns[-1]["role"] != "assistant":
            raise ValueError("the last of 'messages' must be the assistant's, the training target")
        return without(ours, "messages") | {"prompt": turns[:-1], "completion": turns[-1]["content"]}
    if "chosen" in ours:
        prompt, chosen, _ = _pair(ours)
        return without(ours, "chosen", "rejected") | {"prompt": prompt, "completion": chosen}
    return ours | ({"completion": _answer(ours, "completion")} if "completion" in ours else {})


def prompt(row: Row) -> Fields:
    """The prompt of any form, without its answers."""
    ours = _ours(row)
    if "messages" in ours:
        turns = _conversation(ours, "messages")
        return without(ours, "messages") | {"prompt": turns[:-1] if turns[-1]["role"] == "assistant" else turns}
    if "chosen" in ours:
        return without(ours, "chosen", "rejected") | {"prompt": _pair(ours)[0]}
    if "examples" in ours:
        raise ValueError(
            "a row with 'examples' is a demonstration: name its source under data.demonstrations; RM and RL get its "
            "prompts too"
        )
    return without(ours, *ANSWER_KEYS)


def ranking(row: Row) -> Fields:
    """A Ranking as it is; a chosen and a rejected answer are a ranking of two."""
    ours = _ours(row)
    if "chosen" in ours or "rejected" in ours:
        prompt, *pair = _pair(ours)
        return without(ours, "chosen", "rejected") | {"prompt": prompt, "completions": pair, "ranks": [1, 2]}
    if isinstance(ranks := ours.get("ranks"), list):  # tables store integers beside null as floats
        ours["ranks"] = [int(rank) if isinstance(rank, float) and rank.is_integer() else rank for rank in ranks]
    return unpacked(ours)


def document(row: Row) -> Fields:
    """Plain text under `text`; other columns are left out."""
    return {"text": need(row, "text", str, "a string")}


def _ours(row: Row) -> Fields:
    """The row with ids as text; tables store them as numbers. Raises ValueError for a conversation written as text."""
    for key in TEXTS:
        if isinstance(text := row.get(key), str) and MESSAGES_AS_TEXT.fullmatch(text):
            raise ValueError(f"{key!r} is a list of messages written as text: write it as a list")
    for key in LISTS:
        if isinstance(row.get(key), str):
            raise ValueError(f"{key!r} is a text, not a list; CSV has no lists: use JSON Lines or Parquet")
    return {key: identifier(row, key) if key in IDS else value for key, value in row.items()}


def _conversation(row: Row, key: str) -> list[Message]:
    turns = conversation(need(row, key, list, "a list of messages"), key)
    if len(turns) < 2:
        raise ValueError(f"{key!r} needs a prompt and an answer, found {len(turns)} messages")
    return turns


def _answer(row: Row, key: str) -> str:
    """An answer's text: a string, or in trl's conversational form a list of one assistant message."""
    value = row[key]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        message = conversation(value, key)[0]
        if message["role"] == "assistant":
            return message["content"]
    columns = "{completion: messages, prompt: null}" if key == "completion" else "{prompt: null}"
    whole = f"; if it is the whole conversation, set `columns: {columns}` under data.sources"
    hint = whole if isinstance(value, list) and len(value) > 1 else ""
    raise ValueError(f"{key!r} must be a string, or a list with one assistant message{hint}")


def _pair(row: Row) -> tuple[str | list[Message], str, str]:
    """(prompt, chosen, rejected) of trl's preference form; a missing prompt is what both answers start with."""
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
    """The prompt is the common start up to its last space; the rest are the answers."""
    if TURN.match(chosen) and TURN.match(rejected):
        raise ValueError(
            "'chosen' and 'rejected' are dialogues of 'Human:' and 'Assistant:': set format: hh_rlhf, which gives "
            "prompts and rankings"
        )
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    cut = max(chosen.rfind(space, 0, common) for space in " \n\t") + 1
    if not chosen[:cut].strip():
        raise ValueError(
            "without a 'prompt', 'chosen' and 'rejected' must start with the same words: the prompt; if another column "
            "holds it, rename that with `columns` under data.sources"
        )
    return chosen[:cut].rstrip(), chosen[cut:], rejected[cut:]
