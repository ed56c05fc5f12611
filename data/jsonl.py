"""JSON Lines files, read with the place of every mistake and written so that no half file is ever seen under the final name."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.records import Prompt, RecordT, parse, to_row


def read_rows(path: Path, skipped: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (`file:line`, decoded JSON).

    A line that is not JSON or not UTF-8 raises ValueError naming its place; when a `skipped` list is given, the sentence goes there instead.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                problem = f"{place}: not UTF-8 text (byte {error.start} of the line)"
            except json.JSONDecodeError as error:
                problem = f"{place}: not valid JSON: {error.msg} at column {error.colno}"
            else:
                yield place, row
                continue
            if skipped is None:
                raise ValueError(problem)
            skipped.append(problem)


def read_records(path: Path, record_type: type[RecordT], skipped: list[str] | None = None) -> list[RecordT]:
    """All records of a file.

    A row that is not JSON or not a `record_type` raises ValueError as `file:line: what is wrong`; when a `skipped` list is given, the sentence is
    appended there instead and the row is left out. A file without a single row raises ValueError.
    """
    records: list[RecordT] = []
    skipped_before = len(skipped or ())
    for place, row in read_rows(path, skipped):
        try:
            records.append(parse(row, record_type))
        except ValueError as error:
            if skipped is None:
                raise ValueError(f"{place}: {error}") from None
            skipped.append(f"{place}: {error}")
    if not records and len(skipped or ()) == skipped_before:
        raise ValueError(f"{path}: the file has no rows")
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
