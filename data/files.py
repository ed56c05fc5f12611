"""Reads rows from JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text, and writes JSON Lines atomically.

Errors name the file and the line or row. Files are streamed, so only a few rows are in memory, except for JSON arrays,
which are parsed as a whole. The beginning of a JSON file, not its name, determines whether it is an array or has one
row per line.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.json_files import read_json
from data.lines import MAX_LINE_BYTES, STOP, BadRows, Placed, numbered_lines, opened, text_of
from data.records import Prompt, RecordT, parse, to_row

MAX_TEXT_BYTES = 2 * 2**30
"""A plain text is one document, which must fit into memory."""
PARQUET_BATCH = 1024
PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|")
"""Names of pandas' index column in Parquet, in a table that was read again, and in CSV. It is not data."""
MESSAGES_AS_TEXT = re.compile(
    r"\s*\[\s*\{(?=.*['\"](role|from)['\"]\s*:)(?=.*['\"](content|value)['\"]\s*:).*\}\s*\]\s*", re.DOTALL
)
"""A conversation in a cell of a table, as pandas writes it: the text of a Python list, NumPy array or JSON list."""
OTHER_FORMATS = "a table holds plain text only; save conversations as JSON Lines or Parquet"
TEXT_SUFFIXES = (".txt", ".md")


def read_rows(path: Path, bad: BadRows = STOP) -> Iterator[Placed]:
    """Yields (`file:line`, decoded row). The suffix determines the reader; without one the file is plain text.

    Malformed rows go to `bad`. Raises ValueError if the file is missing, empty, truncated, damaged or of an unknown
    kind.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    suffix = ("".join(path.suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix).lower()
    read = READERS.get(suffix or ".txt")
    if read is None:
        raise ValueError(f"{path}: unknown kind of file {suffix!r}; known are {', '.join(READERS)}")
    rows = 0
    count_before = bad.count
    with _sentence_for_damage(path):
        for placed in read(path, bad):
            rows += 1
            yield placed
    if not rows and bad.count == count_before:
        raise ValueError(f"{path}: the file has no rows")


def is_data_file(path: Path) -> bool:
    """Whether the name says that `read_rows` can read it."""
    return path.name.lower().endswith(tuple(READERS))


def read_records(path: Path, record_type: type[RecordT], bad: BadRows = STOP) -> list[RecordT]:
    """All records of a file; a row that is not a `record_type` goes to `bad`, as do malformed ones. Raises ValueError
    as `read_rows`.
    """
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


def _separated(delimiter: str) -> Callable[[Path, BadRows], Iterator[Placed]]:
    def read(path: Path, bad: BadRows) -> Iterator[Placed]:
        # Python's own limit of 128 KiB a field is meant for tables of numbers.
        csv.field_size_limit(MAX_LINE_BYTES)
        with opened(path) as file:
            reader = csv.reader(
                (_decoded(path, number, line) for number, line in numbered_lines(path, file)),
                delimiter=delimiter,
                strict=True,
            )
            header: list[str] | None = None
            try:
                for fields in reader:
                    if header is None:
                        header = fields
                        if len(set(header)) < len(header):
                            raise ValueError(f"{path}:1: two columns have the same name")
                    elif len(fields) == len(header):
                        # A table has no null but the empty field.
                        cells = zip(header, fields, strict=True)
                        row = {name: text for name, text in cells if text and not PANDAS_INDEX.fullmatch(name)}
                        place = f"{path}:{reader.line_num}"
                        messages = [name for name, text in row.items() if MESSAGES_AS_TEXT.fullmatch(text)]
                        if messages:
                            bad(place, f"{messages[0]!r} is a list of messages written as text: {OTHER_FORMATS}")
                        else:
                            yield place, row
                    elif fields:
                        bad(f"{path}:{reader.line_num}", f"{len(fields)} fields where the header has {len(header)}")
            except csv.Error as error:
                raise ValueError(f"{path}:{reader.line_num}: not a table: {error}") from None

    return read


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: not UTF-8 text (byte {error.start} of the line)") from None


def _parquet(path: Path, bad: BadRows) -> Iterator[Placed]:
    with pq.ParquetFile(path) as file:
        yield from _placed(path, file.iter_batches(PARQUET_BATCH))


def _arrow(path: Path, bad: BadRows) -> Iterator[Placed]:
    """An Arrow stream, as `datasets` writes it, or an Arrow file."""
    with pa.memory_map(str(path)) as mapped:
        if mapped.read(6) == b"ARROW1":
            file = pa.ipc.open_file(mapped)
            batches: Iterable[pa.RecordBatch] = (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            mapped.seek(0)
            batches = pa.ipc.open_stream(mapped)
        yield from _placed(
            path,
            (batch.slice(start, PARQUET_BATCH) for batch in batches for start in range(0, len(batch), PARQUET_BATCH)),
        )


def _placed(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[Placed]:
    """The rows of a table without null and NaN values; pandas writes missing numbers as NaN."""
    number = 0
    for batch in batches:
        columns = [name for name in batch.schema.names if not PANDAS_INDEX.fullmatch(name)]
        if twice := next((name for name in columns if columns.count(name) > 1), None):
            raise ValueError(f"{path}: two columns are called {twice!r}")
        for row in batch.select(columns).to_pylist():
            number += 1
            yield f"{path}: row {number}", {key: value for key, value in row.items() if not is_missing(value)}


def is_missing(value: object) -> bool:
    """Whether a table's value is null or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def _text(path: Path, bad: BadRows) -> Iterator[Placed]:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(
            f"{path}: one document of over {MAX_TEXT_BYTES // 2**30} GiB; write its documents as .jsonl, a row with "
            "`text` each"
        )
    with opened(path) as file:
        yield str(path), {"text": text_of(path, file.read())}


@contextmanager
def _sentence_for_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error):
        raise ValueError(
            f"{path}: the compressed file ends too early or is damaged: was its download cut off?"
        ) from None
    except (OverflowError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: a column holds what Python cannot read ({error}); leave it out or write it as text"
        ) from None
    except (gzip.BadGzipFile, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{path}: damaged, cut off, or not a {path.suffix} file ({str(error).splitlines()[0]})"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


READERS: dict[str, Callable[[Path, BadRows], Iterator[Placed]]] = {
    ".jsonl": read_json,
    ".jsonl.gz": read_json,
    ".json": read_json,
    ".json.gz": read_json,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".csv": _separated(","),
    ".csv.gz": _separated(","),
    ".tsv": _separated("\t"),
    ".tsv.gz": _separated("\t"),
    **dict.fromkeys(TEXT_SUFFIXES, _text),
}
