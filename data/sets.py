"""The sets on disk: Parquet files that `datasets.load_dataset` reads, and their columns.

Files are named `<set>_<split>.parquet`: the sets sft, rm, rl and rankings have the splits train, valid and test; texts
has train and heldout. `prompt` is a string if all prompts of the run are strings, otherwise a list of messages, as in
trl's two formats.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
    pa.field("ratings", pa.list_(pa.string())),  # JSON objects, since labelers rate different things
]

WAITING_FIELDS = [pa.field("prompt", pa.string()), pa.field("messages", MESSAGES)]
"""The prompt before curation; `prompt` is null if it is a conversation."""
POOL_SCHEMA = pa.schema([*WAITING_FIELDS, *PROMPT_FIELDS, *ANSWER_FIELDS, pa.field("examples", EXAMPLES)])
RANKING_SCHEMA = pa.schema([*WAITING_FIELDS, *PROMPT_FIELDS, *RANKING_FIELDS])
DOCUMENT_SCHEMA = pa.schema([pa.field("text", pa.large_string()), pa.field("dataset", pa.string())])


def set_file(folder: Path, name: str, split: str) -> Path:
    """The file of a set's split in the data stage's folder; it does not exist if the split has no rows."""
    return folder / f"{name}_{split}.parquet"


def set_schema(name: SetName, conversational: bool) -> pa.Schema:
    """The columns of a set."""
    own = {"sft": ANSWER_FIELDS, "rm": ANSWER_FIELDS, "rl": [], "rankings": RANKING_FIELDS}[name]
    return pa.schema([pa.field("prompt", MESSAGES if conversational else pa.string()), *PROMPT_FIELDS, *own])


def read_set(folder: Path, name: SetName, split: str) -> list[Any]:
    """A set's records: Demonstrations (sft), Demonstrations and Prompts (rm), Prompts (rl) or Rankings.

    Raises ValueError when the file is missing or damaged.
    """
    rows = [row for _, row in read_rows(set_file(folder, name, split))]
    if name == "rankings":
        return [parse(unpacked(row), Ranking) for row in rows]
    return [parse(row, Demonstration if "completion" in row else Prompt) for row in rows]


def read_texts(folder: Path, split: str) -> Iterator[str]:
    """Iterates over the documents of `train` or `heldout`. Raises ValueError when the file is missing or damaged."""
    return (row["text"] for _, row in read_rows(set_file(folder, "texts", split)))


def packed(record: Prompt) -> dict[str, Any]:
    """A record as a row of POOL_SCHEMA or RANKING_SCHEMA."""
    text = record.prompt if isinstance(record.prompt, str) else None
    row = record.__dict__ | {"messages": record.messages, "prompt": text}
    if isinstance(record, Ranking) and record.ratings is not None:
        row["ratings"] = [json.dumps(rating, default=str) for rating in record.ratings]
    return row


def unpacked(row: dict[str, Any]) -> dict[str, Any]:
    """A ranking's row for `parse`: ratings, which Parquet stores as JSON, are decoded, unless they are invalid."""
    ratings = row.get("ratings")
    with suppress(json.JSONDecodeError):
        if isinstance(ratings, list):
            return row | {"ratings": [json.loads(one) if isinstance(one, str) else one for one in ratings]}
    return row


def record_of(row: dict[str, Any], record_type: type[RecordT]) -> RecordT:
    """The record in a row of POOL_SCHEMA or RANKING_SCHEMA. For Prompt, the columns of the row determine its type."""
    filled = {key: value for key, value in row.items() if value is not None and key != "messages"}
    filled.setdefault("prompt", row["messages"])
    kind: type[Prompt] = record_type
    if record_type is Prompt:
        kind = FewShot if "examples" in filled else Demonstration if "completion" in filled else Prompt
    return kind(**unpacked(filled))  # type: ignore[return-value]


def evenly(items: Sequence[T], count: int | None) -> list[T]:
    """`count` items spread evenly over the sequence, in order; all if there are fewer or `count` is None."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
