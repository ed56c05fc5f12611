"""Rows that wait on disk while the rules decide about them, so that memory holds columns of numbers and never all texts.

An Arrow file of equal batches, memory-mapped for reading: the pages of a row come in when it is looked at and may leave again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BATCH_ROWS = 4096
"""Rows of a batch."""


class Spool:
    """Written once, a row after another, then read any number of times."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.count = 0
        self._waiting: list[dict[str, Any]] = []
        self._writer: pa.RecordBatchFileWriter | None = pa.ipc.new_file(path, schema, options=pa.ipc.IpcWriteOptions(unify_dictionaries=False))
        self._reader: pa.RecordBatchFileReader | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row of the schema; what it lacks is null."""
        self._waiting.append(row)
        self.count += 1
        if len(self._waiting) == BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        """Ends the writing; reading begins."""
        assert self._writer is not None
        self._flush()
        self._writer.close()
        self._writer = None
        self._reader = pa.ipc.open_file(pa.memory_map(str(self.path)))

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows, in batches of BATCH_ROWS but for the last."""
        for index in range(self.batch_count):
            batch = self.batch(index)
            yield batch if columns is None else batch.select(list(columns))

    @property
    def batch_count(self) -> int:
        """How many batches there are."""
        return -(-self.count // BATCH_ROWS)

    def batch(self, index: int) -> pa.RecordBatch:
        """One batch."""
        assert self._reader is not None, "close() comes first"
        return self._reader.get_batch(index)

    def column(self, name: str) -> Iterator[pa.Array]:
        """A column's chunks."""
        for batch in self.batches():
            yield batch.column(name)

    def rows(self, numbers: Sequence[int] | NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """The rows of these numbers, in their order."""
        for number in numbers:
            batch = self.batch(int(number) // BATCH_ROWS)
            yield batch.slice(int(number) % BATCH_ROWS, 1).to_pylist()[0]

    def starting_with(self, column: str, prefix: str) -> Iterator[int]:
        """Numbers of the rows whose text in that column starts so."""
        for index, chunk in enumerate(self.column(column)):
            hits = np.flatnonzero(pc.starts_with(chunk, pattern=prefix).to_numpy(zero_copy_only=False))
            yield from (index * BATCH_ROWS + int(hit) for hit in hits)

    def _flush(self) -> None:
        if self._waiting:
            assert self._writer is not None
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self.schema))
            self._waiting = []
