"""Rows that wait on disk while the rules decide about them, so that memory holds columns of numbers and never all
texts.

An Arrow file, memory-mapped for reading: the pages of a row come in when it is looked at and may leave again.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BATCH_ROWS, BATCH_CHARACTERS = 4096, 2**24
"""A batch ends at whichever comes first: a few long documents must not wait for thousands of others."""


class Spool:
    """Written once, a row after another, then read any number of times."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.starts = [0]
        """Number of each batch's first row, and last how many rows there are."""
        self._waiting: list[dict[str, Any]] = []
        self._characters = 0
        self._writer: pa.RecordBatchFileWriter | None = pa.ipc.new_file(path, schema)
        self._reader: pa.RecordBatchFileReader | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row of the schema; what it lacks is null."""
        self._waiting.append(row)
        self._characters += characters(row)
        if len(self._waiting) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self._flush()

    def close(self) -> None:
        """Ends the writing; reading begins."""
        assert self._writer is not None
        self._flush()
        self._writer.close()
        self._writer = None
        self._reader = pa.ipc.open_file(pa.memory_map(str(self.path)))

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.starts[-1] + len(self._waiting)

    @property
    def batch_count(self) -> int:
        """How many batches there are."""
        return len(self.starts) - 1

    def batch(self, index: int) -> pa.RecordBatch:
        """One batch; its first row is row `starts[index]`."""
        assert self._reader is not None, "close() comes first"
        return self._reader.get_batch(index)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, in order."""
        for index in range(self.batch_count):
            batch = self.batch(index)
            yield batch if columns is None else batch.select(list(columns))

    def column(self, name: str) -> Iterator[pa.Array]:
        """A column's chunks."""
        for batch in self.batches():
            yield batch.column(name)

    def rows(self, numbers: Sequence[int] | NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """The rows of these numbers, in their order."""
        for number in numbers:
            index = bisect_right(self.starts, int(number)) - 1
            yield self.batch(index).slice(int(number) - self.starts[index], 1).to_pylist()[0]

    def starting_with(self, column: str, prefix: str) -> Iterator[int]:
        """Numbers of the rows whose text in that column starts so."""
        for start, chunk in zip(self.starts, self.column(column), strict=False):
            hits = np.flatnonzero(pc.starts_with(chunk, pattern=prefix).to_numpy(zero_copy_only=False))
            yield from (start + int(hit) for hit in hits)

    def _flush(self) -> None:
        if self._waiting:
            assert self._writer is not None
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self.schema))
            self.starts.append(self.starts[-1] + len(self._waiting))
            self._waiting, self._characters = [], 0


def characters(row: dict[str, Any]) -> int:
    """How much text a row holds, near enough to bound a batch."""
    texts = (value if isinstance(value, list) else [value] for value in row.values())
    return sum(len(text) for values in texts for text in values if isinstance(text, str))
