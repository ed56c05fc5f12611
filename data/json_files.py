"""Reads rows from JSON Lines and JSON arrays, strictly, with the place of every error."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.lines import MAX_LINE_BYTES, BadRows, Placed, numbered_lines, opened, text_of

MAX_JSON_BYTES = 2 * 2**30
"""A JSON array is parsed as a whole, so it must fit into memory."""
HALF_A_PAIR = "not text: half of a surrogate pair (\\ud800 to \\udfff) stands alone"
JSON_SPACE = " \t\r\n"


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


def read_json(path: Path, bad: BadRows) -> Iterator[Placed]:
    """Both suffixes, .json and .jsonl, are used for files of either kind."""
    return _json_array(path, bad) if _is_array(path) else _json_lines(path, bad)


def _is_array(path: Path) -> bool:
    """Whether the file is one JSON value rather than one per line."""
    named_lines = ".jsonl" in path.name.lower()
    with opened(path) as file:
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
    with opened(path) as file:
        for number, line in numbered_lines(path, file):
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


def _json_array(path: Path, bad: BadRows) -> Iterator[Placed]:
    too_large = (
        f"{path}: a JSON array of over {MAX_JSON_BYTES // 2**30} GiB must be held in memory whole; write it "
        "as .jsonl, one row per line"
    )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(too_large)
    with opened(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(too_large)
    text = text_of(path, content)
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
