"""Reads rows from JSON Lines and JSON arrays, strictly, with the place of every error."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.lines import MAX_LINE_BYTES, BadRows, Placed, numbered_lines, opened, text_of

MAX_JSON_BYTES = 2 * 2**30
"""A JSON array is read as a whole, so it must fit into memory."""
SPACE = re.compile(r"[ \t\r\n]*")


class StrictDecoder(json.JSONDecoder):
    """Python's decoder accepts NaN and half a surrogate pair and, for duplicate keys, uses the last."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant)
        self.problem = ""

    def value(self, text: str, start: int = 0) -> tuple[Any, int]:
        """(value that begins at `start`, the place of the next character that is no space). Raises JSONDecodeError.

        `problem` says what is wrong with a value that can be decoded.
        """
        self.problem = ""
        found, end = self.raw_decode(text, start)
        if not self.problem and "\\ud" in text[start:end].lower():
            try:
                json.dumps(found, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                self.problem = "not text: half of a surrogate pair (\\ud800 to \\udfff) stands alone"
        return found, after_space(text, end)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.problem = self.problem or f"not valid JSON: duplicate key {key!r} in one object"
            found[key] = value
        return found

    def _constant(self, name: str) -> None:
        self.problem = f"not valid JSON: {name} is not a JSON number; write null for a missing value"


def after_space(text: str, place: int) -> int:
    return SPACE.match(text, place).end()  # type: ignore[union-attr]


def read_json(path: Path, bad: BadRows) -> Iterator[Placed]:
    """Files with the suffix .json, .jsonl or .ndjson may be of either kind, so the beginning decides."""
    decoder = StrictDecoder()
    rows = array_rows(path, decoder) if is_array(path) else line_rows(path, decoder, bad)
    for place, row in rows:
        if decoder.problem:
            bad(place, decoder.problem)
        else:
            yield place, row


def is_array(path: Path) -> bool:
    """Whether the file is one JSON value rather than one per line."""
    with opened(path) as file:
        head = file.read(2**16).removeprefix(codecs.BOM_UTF8).lstrip()
        if re.search(r"\.(jsonl|ndjson)", path.name.lower()):
            return re.match(rb"\[\s*\{", head) is not None
        if head[:1] != b"{":
            return True
        first, _, rest = (head + file.read(MAX_LINE_BYTES)).partition(b"\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not rest.strip()


def line_rows(path: Path, decoder: StrictDecoder, bad: BadRows) -> Iterator[Placed]:
    with opened(path) as file:
        for number, line in numbered_lines(path, file):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8").strip(" \t\r\n")
                row, end = decoder.value(text)
                if end < len(text):
                    raise json.JSONDecodeError("Extra data", text, end)
                yield f"{path}:{number}", row
            except UnicodeDecodeError as error:
                bad(f"{path}:{number}", f"not UTF-8 text (byte {error.start} of the line)")
            except json.JSONDecodeError as error:
                is_cut = not line.endswith(b"\n") and error.msg != "Extra data"
                hint = "; the file ends in the middle of this row, was it cut off?" if is_cut else ""
                bad(f"{path}:{number}", _described(error) + hint)
            except RecursionError:
                bad(f"{path}:{number}", "not valid JSON: nested too deep")
            except ValueError as error:  # a number of thousands of digits
                bad(f"{path}:{number}", f"not valid JSON: {error}")


def array_rows(path: Path, decoder: StrictDecoder) -> Iterator[Placed]:
    with opened(path) as file:
        content = file.read(MAX_JSON_BYTES + 1) if path.stat().st_size <= MAX_JSON_BYTES else None
    if content is None or len(content) > MAX_JSON_BYTES:
        raise ValueError(
            f"{path}: a JSON array of over {MAX_JSON_BYTES // 2**30} GiB must be held in memory whole; write it "
            "as .jsonl, one row per line"
        )
    text = text_of(path, content)
    try:
        for number, row in enumerate(items(path, text, decoder), start=1):
            yield f"{path}: row {number}", row
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated")
        raise ValueError(f"{path}:{error.lineno}: {_described(error)}{'; was it cut off?' if is_cut else ''}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: nested too deep") from None


def items(path: Path, text: str, decoder: StrictDecoder) -> Iterator[Any]:
    """The items of a JSON array, one at a time. Raises JSONDecodeError."""
    place = after_space(text, 0)
    if not text.startswith("[", place):
        found, _ = decoder.value(text, place)
        keys = f" with the keys {', '.join(map(repr, found))}" if isinstance(found, dict) and found else ""
        raise ValueError(f"{path}: expected an array of rows, found {type(found).__name__}{keys}")
    place = after_space(text, place + 1)
    closed = text.startswith("]", place)
    while not closed:
        item, place = decoder.value(text, place)
        yield item
        closed = text.startswith("]", place)
        if not closed and not text.startswith(",", place):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        place = place if closed else after_space(text, place + 1)
    if (end := after_space(text, place + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _described(error: json.JSONDecodeError) -> str:
    return f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
