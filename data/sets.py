"""The sets on disk: Parquet files that `datasets.load_dataset` reads, and what each of their columns is.

`<set>_<split>.parquet`, the sets being sft, rm, rl and rankings, split into train, valid and test, and texts, split
into train and heldout. `prompt` is a string where all prompts of the run are, and else a conversation of messages, as
in trl's two forms.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

from data.files import read_rows
from data.records import Demonstration, FewShot, Prompt, Ranking, RecordT, parse

T = TypeVar("T")
SetName = Literal["sft", "rm", "rl", "rankings"]
SETS: tuple[SetName, ...] = ("sft", "rm", "rl", "rankings")
TEXT_SPLITS = ("train", "heldout")

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
EXAMPLES = pa.list_(pa.struct([("prompt", pa.string()), ("completion", pa.string())]))
PAIRS = pa.list_(pa.list_(pa.int32()))
PROMPT_FIELDS = [
    pa.field(name, pa.string())
    for name in ("prompt_id", "source", "kind", "user_id", "organisation_id", "use_case", "dataset")
]
ANSWER_FIELDS = [pa.field("completion", pa.string())]
RANKING_FIELDS = [
    pa.field("completions", pa.list_(pa.string())),
    pa.field("ranks", pa.list_(pa.int32())),
    pa.field("preferences", PAIRS),
    pa.field("ties", PAIRS),
    pa.field("labeler_id", pa.string()),
    pa.field("labeler", pa.string()),
    pa.field("complete", pa.list_(pa.bool_())),
    pa.field("ratings", pa.list_(pa.string())),  # a JSON object each: what labelers rate differs
]

WAITING_FIELDS = [pa.field("prompt", pa.string()), pa.field("messages", MESSAGES), pa.field("key", pa.string())]
"""Before the rules: a bare string stands under `prompt` too; `key` is what near-duplicates are told by."""
POOL_SCHEMA = pa.schema([*WAITING_FIELDS, *PROMPT_FIELDS, *ANSWER_FIELDS, pa.field("examples", EXAMPLES)])
RANKING_SCHEMA = pa.schema([*WAITING_FIELDS, *PROMPT_FIELDS, *RANKING_FIELDS])
DOCUMENT_SCHEMA = pa.schema([pa.field("text", pa.large_string()), pa.field("dataset", pa.string())])


def set_file(folder: Path, name: str, split: str) -> Path:
    """Where a set's split lies in the data stage's folder; there is no file where it has no rows."""
    return folder / f"{name}_{split}.parquet"


def set_schema(name: SetName, conversational: bool) -> pa.Schema:
    """The columns of a set."""
    own = {"sft": ANSWER_FIELDS, "rm": ANSWER_FIELDS, "rl": [], "rankings": RANKING_FIELDS}[name]
    return pa.schema([pa.field("prompt", MESSAGES if conversational else pa.string()), *PROMPT_FIELDS, *own])


def read_set(folder: Path, name: SetName, split: str) -> list[Any]:
    """A set's records: Demonstrations (sft), Demonstrations and Prompts (rm), Prompts (rl) or Rankings.

    Raises ValueError when the file is missing or damaged.
    """
    rows = (row for _, row in read_rows(set_file(folder, name, split)))
    if name == "rankings":
        return [parse(unpacked(row), Ranking) for row in rows]
    if name == "rl":
        return [parse(row, Prompt) for row in rows]
    return [parse(row, Demonstration if "completion" in row else Prompt) for row in rows]


def read_texts(folder: Path, split: str) -> Iterator[str]:
    """The documents of `train` or `heldout`, one after the other. Raises ValueError when the file is missing or
    damaged.
    """
    return (row["text"] for _, row in read_rows(set_file(folder, "texts", split)))


def packed(record: Prompt, key: str) -> dict[str, Any]:
    """A record as a row of POOL_SCHEMA or RANKING_SCHEMA."""
    row = dict(record.__dict__) | {
        "messages": record.messages,
        "prompt": record.prompt if isinstance(record.prompt, str) else None,
        "key": key,
    }
    if isinstance(record, Ranking) and record.ratings is not None:
        row["ratings"] = [json.dumps(rating, default=str) for rating in record.ratings]
    return row


def unpacked(row: dict[str, Any]) -> dict[str, Any]:
    """A ranking's row as `parse` takes it: ratings, which Parquet holds as JSON, are objects again. What is no JSON
    stays, for `parse` to refuse.
    """
    ratings = row.get("ratings")
    return row | {"ratings": [_decoded(rating) for rating in ratings]} if isinstance(ratings, list) else row


def _decoded(rating: object) -> object:
    try:
        return json.loads(rating) if isinstance(rating, str) else rating
    except json.JSONDecodeError:
        return rating


def record_of(row: dict[str, Any], record_type: type[RecordT]) -> RecordT:
    """The record in a row of POOL_SCHEMA or RANKING_SCHEMA, of that type or, among demonstrations, of the type that its
    columns show.
    """
    filled = {key: value for key, value in row.items() if value is not None and key not in ("key", "messages")}
    filled.setdefault("prompt", row["messages"])
    kind: type[Prompt] = record_type
    if record_type is Prompt:
        kind = FewShot if "examples" in filled else Demonstration if "completion" in filled else Prompt
    return kind(**unpacked(filled))  # type: ignore[return-value]


def evenly(items: Sequence[T], count: int | None) -> list[T]:
    """`count` items spread evenly over the whole, in order; all of them where there are fewer or no count is given."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
