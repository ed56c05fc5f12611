"""Opens text files, reads their lines, and collects malformed rows."""

import codecs
import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MAX_LINE_BYTES = 64 * 2**20
"""Longer lines are refused, since a file without line breaks would fill the memory."""
LONGEST_PROBLEM = 300
"""Characters of the description of a malformed row, which may quote values of megabytes."""
Placed = tuple[str, Any]
"""(`file:line`, the row there)."""


class BadRows:
    """Malformed rows: either the first one raises ValueError, or all are counted and the first few described."""

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
        sentence = f"{place}: {problem if len(problem) <= LONGEST_PROBLEM else problem[:LONGEST_PROBLEM] + ' ...'}"
        if not self.skip:
            raise ValueError(sentence)
        self.count += 1
        if len(self.examples) < self.keep:
            self.examples.append(sentence)


STOP = BadRows()
"""For files that this project wrote itself."""


def opened(path: Path) -> IO[bytes]:
    """Opens a file for reading, decompressed if it ends in .gz."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def numbered_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number, line) from 1, without a byte order mark. Raises ValueError for a line over MAX_LINE_BYTES."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if len(text) > MAX_LINE_BYTES:
            # Not a malformed row to skip: the rest of the line would be read as further rows.
            raise ValueError(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB: is this a file with one "
                "row per line?"
            )
        yield number, text


def text_of(path: Path, content: bytes) -> str:
    """Decodes a whole file, without a byte order mark. Raises ValueError if it is not UTF-8."""
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
