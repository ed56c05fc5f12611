"""Reads rows from JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text, and writes JSON Lines atomically.

Errors name the file and the line or row. Files are streamed, except for JSON arrays and plain texts.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.json_files import read_json
from data.lines import MAX_LINE_BYTES, STOP, BadRows, Placed, numbered_lines, opened, text_of
from data.messages import MESSAGES_AS_TEXT
from data.records import Prompt, RecordT, parse, to_row

MAX_TEXT_BYTES = 2 * 2**30
"""A plain text is one document, which must fit into memory."""
PARQUET_BATCH = 1024
PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|")
"""Names of pandas' index column in Parquet, in a table that was read again, and in CSV. It is not data."""
TEXT_SUFFIXES = (".txt", ".md")


def read_rows(path: Path, bad: BadRows = STOP, nulls: bool = False) -> Iterator[Placed]:
    """Yields (`file:line`, decoded row). The suffix determines the reader; without one the file is plain text.

    Null values are left out of a table's rows unless `nulls`. Malformed rows go to `bad`.
    Raises ValueError if the file is missing, empty, damaged or of an unknown kind.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    suffix = ("".join(path.suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix).lower()
    read = READERS.get(suffix or ".txt")
    if read is None:
        raise ValueError(f"{path}: unknown kind of file {suffix!r}; known are {', '.join(READERS)}")
    rows, skipped_before = 0, bad.count
    try:
        for place, row in read(path, bad):
            rows += 1
            yield place, row if nulls or read is read_json else without_missing(row)
    except (EOFError, zlib.error):
        problem = "the compressed file ends too early or is damaged: was its download cut off?"
        raise ValueError(f"{path}: {problem}") from None
    except (OverflowError, UnicodeDecodeError) as error:
        problem = f"a column holds what Python cannot read ({error}); leave it out or write it as text"
        raise ValueError(f"{path}: {problem}") from None
    except (gzip.BadGzipFile, pa.ArrowInvalid) as error:
        problem = f"damaged, cut off, or not a {path.suffix} file ({str(error).splitlines()[0]})"
        raise ValueError(f"{path}: {problem}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not rows and bad.count == skipped_before:
        raise ValueError(f"{path}: the file has no rows")


def is_data_file(path: Path) -> bool:
    """Whether the name says that `read_rows` can read it."""
    return path.name.lower().endswith(tuple(READERS))


def read_records(path: Path, record_type: type[RecordT], bad: BadRows = STOP) -> list[RecordT]:
    """All records of a file; a row that is not a `record_type` goes to `bad`. Raises ValueError as `read_rows`."""
    records: list[RecordT] = []
    for place, row in read_rows(path, bad):
        try:
            records.append(parse(row, record_type))
        except ValueError as error:
            bad(place, str(error))
    return records


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON Lines beside `path`, then renames."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_records(path: Path, records: Iterable[Prompt]) -> None:
    """Writes records as JSON Lines, whole or not at all."""
    write_rows(path, (to_row(record) for record in records))


def read_table(path: Path, bad: BadRows, delimiter: str) -> Iterator[Placed]:
    """The rows of CSV or TSV. An empty field is null: a table has no other."""
    csv.field_size_limit(MAX_LINE_BYTES)  # Python's own limit of 128 KiB is meant for tables of numbers
    with opened(path) as file:
        lines = (_decoded(path, number, line) for number, line in numbered_lines(path, file))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise ValueError(f"{path}:1: two columns have the same name")
            if len(header) == 1 and (other := re.search(r"[,;\t|]", header[0])):
                told = f"its columns are separated by {other[0]!r} instead of {delimiter!r}"
                raise ValueError(f"{path}:1: {told}: save the table again, with {delimiter!r} or as Parquet")
            for fields in filter(None, reader):
                place = f"{path}:{reader.line_num}"
                if len(fields) != len(header):
                    bad(place, f"{len(fields)} fields where the header has {len(header)}")
                    continue
                cells = zip(header, fields, strict=True)
                row = {name: text or None for name, text in cells if not PANDAS_INDEX.fullmatch(name)}
                if messages := next(
                    (name for name, text in row.items() if MESSAGES_AS_TEXT.fullmatch(text or "")), None
                ):
                    advice = "a table holds plain text only; save conversations as JSON Lines or Parquet"
                    bad(place, f"{messages!r} is a list of messages written as text: {advice}")
                else:
                    yield place, row
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: not a table: {error}") from None


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 text (byte {error.start} of the line)") from None


def read_parquet(path: Path, bad: BadRows) -> Iterator[Placed]:
    with pq.ParquetFile(path) as file:
        yield from _placed(path, file.iter_batches(PARQUET_BATCH))


def read_arrow(path: Path, bad: BadRows) -> Iterator[Placed]:
    """An Arrow stream, as `datasets` writes it, or an Arrow file."""
    with pa.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        yield from _placed(path, batches)


def _placed(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[Placed]:
    """The rows of a table."""
    number = 0
    for batch in batches:
        columns = [name for name in batch.schema.names if not PANDAS_INDEX.fullmatch(name)]
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise ValueError(f"{path}: two columns are called {twice!r}")
        batch = batch.select(columns)
        decoded = json_columns(batch.schema)
        for start in range(0, len(batch), PARQUET_BATCH):
            for row in batch.slice(start, PARQUET_BATCH).to_pylist():
                number += 1
                place = f"{path}: row {number}"
                try:
                    row |= decoded(row)
                except ValueError as error:
                    raise ValueError(f"{place}: a column of type JSON holds invalid JSON: {error}") from None
                yield place, row


def without_missing(row: dict[str, Any]) -> dict[str, Any]:
    """A row without null and NaN values; pandas writes missing numbers as NaN."""
    return {name: value for name, value in row.items() if not is_missing(value)}


def json_columns(schema: pa.Schema) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns a function that decodes a row's values of type JSON. `datasets` uses this type for columns that hold
    strings in some rows and lists in others.
    """
    fields = [field for field in schema if "arrow.json" in str(field.type)]
    if not fields:
        return lambda row: {}
    from datasets import Features

    features = Features.from_arrow_schema(pa.schema(fields))
    return lambda row: features.decode_example({name: row[name] for name in features})


def is_missing(value: object) -> bool:
    """Whether a table's value is null or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def read_text(path: Path, bad: BadRows) -> Iterator[Placed]:
    if path.stat().st_size > MAX_TEXT_BYTES:
        limit = f"{MAX_TEXT_BYTES // 2**30} GiB"
        raise ValueError(f"{path}: one document of over {limit}; write its documents as .jsonl, a row with `text` each")
    with opened(path) as file:
        yield str(path), {"text": text_of(path, file.read())}


READERS: dict[str, Callable[[Path, BadRows], Iterator[Placed]]] = {
    **dict.fromkeys((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz"), read_json),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    **dict.fromkeys((".csv", ".csv.gz"), partial(read_table, delimiter=",")),
    **dict.fromkeys((".tsv", ".tsv.gz"), partial(read_table, delimiter="\t")),
    **dict.fromkeys(TEXT_SUFFIXES, read_text),
}
