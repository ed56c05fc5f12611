"""Rows in files: JSON Lines, JSON, CSV, TSV, Parquet and plain text, read with the place of every mistake; JSON Lines are written whole.

Reading streams: however large a file is, a few rows of it are in memory. A `.json` array is the exception, as JSON has no place to stop at.
"""

import codecs
import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.records import Prompt, RecordT, parse, to_row

MAX_LINE_BYTES = 64 * 2**20
"""No row of text is longer; a file that has no line breaks must not fill the memory before anybody learns what is wrong with it."""
HALF_A_PAIR = "not text: half of a surrogate pair (\\ud800 to \\udfff) stands alone"
MAX_JSON_BYTES = MAX_TEXT_BYTES = 2 * 2**30
"""What is one value, and so must be in memory whole, is no larger."""
LONGEST_PROBLEM = 300
"""Characters of what is said of a malformed row."""
PARQUET_BATCH = 1024
TEXT_SUFFIXES = (".txt", ".md")

Placed = tuple[str, Any]
"""(`file:line`, the row there)."""


class BadRows:
    """What happens to malformed rows: the first one stops the run, or all are counted and the first few kept in words."""

    def __init__(self, skip: bool = False, keep: int = 20) -> None:
        self.skip, self.keep = skip, keep
        self.count = 0
        self.examples: list[str] = []

    def __call__(self, place: str, problem: str) -> None:
        """Raises ValueError as `place: problem`, or counts it."""
        # Problems quote values, which may be megabytes.
        sentence = f"{place}: {problem if len(problem) <= LONGEST_PROBLEM else problem[:LONGEST_PROBLEM] + ' ...'}"
        if not self.skip:
            raise ValueError(sentence)
        self.count += 1
        if len(self.examples) < self.keep:
            self.examples.append(sentence)


STOP = BadRows()
"""For files that this project wrote itself: there any malformed row is the end."""


def read_rows(path: Path, bad: BadRows = STOP) -> Iterator[Placed]:
    """Yields (`file:line`, decoded row), by the file's suffix, of which `.gz` may follow the text forms; one without is plain text.

    A malformed row goes to `bad`. Raises ValueError when the file is missing, empty, cut off, damaged or of an unknown form.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
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
    return any(path.name.endswith(suffix) for suffix in READERS)


def read_records(path: Path, record_type: type[RecordT], bad: BadRows = STOP) -> list[RecordT]:
    """All records of a file; a row that is not a `record_type` goes to `bad`, as do malformed ones. Raises ValueError as `read_rows`."""
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


def _json_lines(path: Path, bad: BadRows) -> Iterator[Placed]:
    with _opened(path) as file:
        for number, line in _lines(path, file):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                bad(place, f"not UTF-8 text (byte {error.start} of the line)")
            except json.JSONDecodeError as error:
                cut = "" if line.endswith(b"\n") else "; the file ends in the middle of this row, was it cut off?"
                bad(place, f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}{cut}")
            except RecursionError:
                bad(place, "not valid JSON: nested too deep")
            except ValueError as error:  # a number of thousands of digits
                bad(place, f"not valid JSON: {error}")
            else:
                if b"\\ud" in line.lower() and not _encodable(row):
                    bad(place, HALF_A_PAIR)
                else:
                    yield place, row


def _encodable(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > MAX_LINE_BYTES:
            # What follows the break would be read as rows of their own, so this is no row to skip but the end of the file.
            raise ValueError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB: is this a file with one row a line?")
        yield number, line


def _json_array(path: Path, bad: BadRows) -> Iterator[Placed]:
    too_large = f"{path}: a JSON array of over {MAX_JSON_BYTES // 2**30} GiB must be held in memory whole; write it as .jsonl, a row a line"
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(too_large)
    with _opened(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(too_large)
    try:
        rows = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        hint = "; was it cut off?" if error.pos >= len(content.rstrip()) - 1 else "; a file of one row a line must be called .jsonl"
        raise ValueError(f"{path}:{error.lineno}: not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}{hint}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: nested too deep") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected an array of rows, found {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        place = f"{path}: row {number}"
        if _encodable(row):
            yield place, row
        else:
            bad(place, HALF_A_PAIR)


def _separated(delimiter: str) -> Callable[[Path, BadRows], Iterator[Placed]]:
    def read(path: Path, bad: BadRows) -> Iterator[Placed]:
        # Python's own limit of 128 KiB a field is meant for tables of numbers.
        csv.field_size_limit(MAX_LINE_BYTES)
        with _opened(path) as file:
            reader = csv.reader((_decoded(path, number, line) for number, line in _lines(path, file)), delimiter=delimiter, strict=True)
            header: list[str] | None = None
            try:
                for fields in reader:
                    if header is None:
                        header = fields
                        if len(set(header)) < len(header):
                            raise ValueError(f"{path}:1: two columns have the same name")
                    elif len(fields) == len(header):
                        # A table has no null but the empty field.
                        yield f"{path}:{reader.line_num}", {name: text for name, text in zip(header, fields, strict=True) if text}
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
        number = 0
        for batch in file.iter_batches(PARQUET_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", {key: value for key, value in row.items() if value is not None}


def _text(path: Path, bad: BadRows) -> Iterator[Placed]:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path}: one document of over {MAX_TEXT_BYTES // 2**30} GiB; write its documents as .jsonl, a row with `text` each")
    with _opened(path) as file:
        try:
            yield str(path), {"text": file.read().decode("utf-8")}
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield file  # type: ignore[misc]


@contextmanager
def _sentence_for_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error):
        raise ValueError(f"{path}: the compressed file ends too early or is damaged: was its download cut off?") from None
    except (OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: a column holds what Python cannot read ({error}); leave it out or write it as text") from None
    except (gzip.BadGzipFile, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: damaged, cut off, or not a {path.suffix} file ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


READERS: dict[str, Callable[[Path, BadRows], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_array,
    ".json.gz": _json_array,
    ".parquet": _parquet,
    ".csv": _separated(","),
    ".csv.gz": _separated(","),
    ".tsv": _separated("\t"),
    ".tsv.gz": _separated("\t"),
    **dict.fromkeys(TEXT_SUFFIXES, _text),
}
