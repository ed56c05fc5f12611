"""Writes sets of the data stage."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.records import Prompt
from data.sets import SetName, set_file, set_schema


def write_set(folder: Path, name: SetName, split: str, records: Sequence[Prompt]) -> None:
    """Writes the records as a set of plain prompts, or of conversations if the first one is a conversation."""
    schema = set_schema(name, conversational=isinstance(records[0].prompt, list))
    rows = [{field: getattr(one, field, None) for field in schema.names} for one in records]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), set_file(folder, name, split))
