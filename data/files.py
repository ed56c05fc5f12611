"""Reads rows from JSON Lines, JSON, CSV, TSV, Parquet, Arrow and plain text, and writes JSON Lines atomically.

Errors name the file and the line or row. Files are streamed, so only a few rows are in memory, except for JSON arrays,
which are parsed as a whole. The beginning of a JSON file, not its name, determines whether it is an array or has one
row per line.
"""

import codecs
import csv
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.records import Prompt, RecordT, parse, to_row

MAX_LINE_BYTES = 64 * 2**20
"""No row of text is longer; a file that has no line breaks must not fill the memory before anybody learns what is wrong
with it.
"""
HALF_A_PAIR = "not text: half of a surrogate pair (\\ud800 to \\udfff) stands alone"
JSON_SPACE = " \t\r\n"
MAX_JSON_BYTES = MAX_TEXT_BYTES = 2 * 2**30
"""What is one value, and so must be in memory whole, is no larger."""
LONGEST_PROBLEM = 300
"""Characters of what is said of a malformed row."""
PARQUET_BATCH = 1024
PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|")
"""Names of pandas' index column in Parquet, in a table that was read again, and in CSV. It is not data."""
MESSAGES_AS_TEXT = re.compile(
    r"\s*\[\s*\{(?=.*['\"](role|from)['\"]\s*:)(?=.*['\"](content|value)['\"]\s*:).*\}\s*\]\s*", re.DOTALL
)
"""A conversation in a cell of a table, as pandas writes it: the text of a Python list, NumPy array or JSON list."""
OTHER_FORMATS = "a table holds plain text only; save conversations as JSON Lines or Parquet"
TEXT_SUFFIXES = (".txt", ".md")

Placed = tuple[str, Any]
"""(`file:line`, the row there)."""


class BadRows:
    """What happens to malformed rows: the first one stops the run, or all are counted and the first few kept in
    words.
    """

    def __init__(self, skip: bool = False, keep: int = 20) -> None:
        self.skip, self.keep = skip, keep
        self.count = 0
        self.examples: list[str] = []
        self.of_source: Counter[tuple[str, str]] = Counter()
        """Number of malformed rows by the role and the name of their source."""
        self.ignored: Counter[str] = Counter()
        """Number of messages for each key that was left out of the messages of well-formed rows."""

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
    """Yields (`file:line`, decoded row), by the file's suffix, of which `.gz` may follow the text forms; one without is
    plain text.

    A malformed row goes to `bad`. Raises ValueError when the file is missing, empty, cut off, damaged or of an unknown
    form.
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


class _Decoder(json.JSONDecoder):
    """Strict JSON. Python's own decoder accepts NaN and, for duplicate keys, uses the last."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant)
        self._problem = ""

    def value(self, text: str, start: int = 0) -> tuple[Any, int, str]:
        """(value that begins at `start`, its end, a problem that decoding does not report or ""). Raises
        JSONDecodeError."""
        self._problem = ""
        found, end = self.raw_decode(text, start)
        if not self._problem and "\\ud" in text[start:end].lower() and not _encodable(found):
            self._problem = HALF_A_PAIR
        return found, end, self._problem

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for place, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:place]))
            self._problem = f"not valid JSON: duplicate key {twice!r} in one object"
        return found

    def _constant(self, name: str) -> None:
        self._problem = f"not valid JSON: {name} is not a JSON number; write null for a missing value"


def _json(path: Path, bad: BadRows) -> Iterator[Placed]:
    """Both suffixes, .json and .jsonl, are used for files of either kind."""
    return _json_array(path, bad) if _is_array(path) else _json_lines(path, bad)


def _is_array(path: Path) -> bool:
    """Whether the file is one JSON value rather than one per line."""
    named_lines = ".jsonl" in path.name.lower()
    with _opened(path) as file:
        head = file.read(2**16).removeprefix(codecs.BOM_UTF8).lstrip()
        if named_lines:
            return re.match(rb"\[\s*\{", head) is not None
        if head[:1] != b"{":
            return True
        first, _, rest = (head + file.read(MAX_LINE_BYTES)).partition(b"\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not rest.strip()


def _json_lines(path: Path, bad: BadRows) -> Iterator[Placed]:
    decoder = _Decoder()
    with _opened(path) as file:
        for number, line in _lines(path, file):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8").strip(JSON_SPACE)
                row, end, problem = decoder.value(text)
                if end < len(text):
                    raise json.JSONDecodeError("Extra data", text, _after_space(text, end))
            except UnicodeDecodeError as error:
                bad(place, f"not UTF-8 text (byte {error.start} of the line)")
            except json.JSONDecodeError as error:
                cut = (
                    ""
                    if line.endswith(b"\n") or error.msg == "Extra data"
                    else "; the file ends in the middle of this row, was it cut off?"
                )
                bad(place, f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}{cut}")
            except RecursionError:
                bad(place, "not valid JSON: nested too deep")
            except ValueError as error:  # a number of thousands of digits
                bad(place, f"not valid JSON: {error}")
            else:
                if problem:
                    bad(place, problem)
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
            # What follows the break would be read as rows of their own, so this is no row to skip but the end of the
            # file.
            raise ValueError(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB: is this a file with one "
                "row per line?"
            )
        yield number, line


def _json_array(path: Path, bad: BadRows) -> Iterator[Placed]:
    too_large = (
        f"{path}: a JSON array of over {MAX_JSON_BYTES // 2**30} GiB must be held in memory whole; write it "
        "as .jsonl, one row per line"
    )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(too_large)
    with _opened(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(too_large)
    text = _text_of(path, content)
    try:
        for number, (row, problem) in enumerate(_items(path, text), start=1):
            if problem:
                bad(f"{path}: row {number}", problem)
            else:
                yield f"{path}: row {number}", row
    except json.JSONDecodeError as error:
        hint = (
            "; was it cut off?" if error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated") else ""
        )
        raise ValueError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}{hint}"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: nested too deep") from None


def _items(path: Path, text: str) -> Iterator[tuple[Any, str]]:
    """(item, its problem or "") of a JSON array. Raises JSONDecodeError."""
    decoder = _Decoder()
    place = _after_space(text, 0)
    if text[place : place + 1] != "[":
        found, _, _ = decoder.value(text, place)
        keys = f" with the keys {', '.join(map(repr, found))}" if isinstance(found, dict) and found else ""
        raise ValueError(f"{path}: expected an array of rows, found {type(found).__name__}{keys}")
    place = _after_space(text, place + 1)
    closed = text[place : place + 1] == "]"
    while not closed:
        item, end, problem = decoder.value(text, place)
        yield item, problem
        place = _after_space(text, end)
        closed = text[place : place + 1] == "]"
        if not closed:
            if text[place : place + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
            place = _after_space(text, place + 1)
    if (end := _after_space(text, place + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in JSON_SPACE:
        place += 1
    return place


def _text_of(path: Path, content: bytes) -> str:
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


def _separated(delimiter: str) -> Callable[[Path, BadRows], Iterator[Placed]]:
    def read(path: Path, bad: BadRows) -> Iterator[Placed]:
        # Python's own limit of 128 KiB a field is meant for tables of numbers.
        csv.field_size_limit(MAX_LINE_BYTES)
        with _opened(path) as file:
            reader = csv.reader(
                (_decoded(path, number, line) for number, line in _lines(path, file)), delimiter=delimiter, strict=True
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
    with _opened(path) as file:
        yield str(path), {"text": _text_of(path, file.read())}


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        yield file  # type: ignore[misc]


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
    ".jsonl": _json,
    ".jsonl.gz": _json,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".csv": _separated(","),
    ".csv.gz": _separated(","),
    ".tsv": _separated("\t"),
    ".tsv.gz": _separated("\t"),
    **dict.fromkeys(TEXT_SUFFIXES, _text),
}
