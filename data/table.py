"""The curation table: records in a memory-mapped Arrow file, and one row of annotations per record in memory."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray

from data.records import SPLITS, Prompt, Ranking
from data.sets import evenly, record_of

Mask = NDArray[np.bool_]
EXAMPLES_KEPT = 5
BATCH = 10_000
"""Rows of an Arrow file that are in memory together."""


def stored(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema, batch: int = 1000) -> Dataset:
    """Writes rows to an Arrow file, `batch` of them at a time, and opens it as a memory-mapped Dataset."""
    with ArrowWriter(path=str(path), features=Features.from_arrow_schema(schema), writer_batch_size=batch) as writer:
        for row in rows:
            writer.write({name: row.get(name) for name in schema.names})
        writer.finalize()
    return Dataset.from_file(str(path))


def filtered(rows: Dataset, mask: Mask) -> Iterator[pa.Table]:
    """The rows in the mask, in chunks."""
    for start, batch in zip(range(0, len(rows), BATCH), rows.with_format("arrow").iter(BATCH), strict=True):
        if mask[start : start + BATCH].any():
            yield batch.filter(pa.array(mask[start : start + BATCH]))


class Table:
    """Prompts or rankings under curation, in the order in which they were read."""

    def __init__(self, records: Dataset, notes: Dataset, sources: Sequence[str]) -> None:
        """`notes` are the annotations of data/annotate.py; `sources` are the names of the sources, in order."""
        self.records = records
        self.sources = list(sources)
        self.rules: list[str] = []
        """The rules that were applied, in order."""
        self._keys = notes.select_columns(["key"])
        self.notes: pd.DataFrame = notes.remove_columns(["key"]).to_pandas()
        self.count = len(self.notes)
        self.notes["removed"] = pd.Categorical([None] * self.count)
        self.record_type: type[Prompt] = Ranking if "completions" in records.column_names else Prompt

    def kept(self, split: str | None = None) -> Mask:
        """The records that no rule has removed, in a split or in all of them."""
        kept = self.notes["removed"].isna()
        if split is not None:
            kept &= self.notes["split"] == SPLITS.index(split)
        return kept.to_numpy()

    def left(self) -> pd.DataFrame:
        """The annotations of the records that no rule has removed."""
        return self.notes[self.kept()]

    def remove(self, rule: str, gone: pd.Series) -> None:
        """Removes the records where `gone` is true, which may have the index of `notes` or of `left`."""
        self.rules.append(rule)
        self.notes["removed"] = self.notes["removed"].cat.set_categories(self.rules)
        gone = gone.reindex(self.notes.index, fill_value=False)
        self.notes.loc[self.kept() & gone.to_numpy(), "removed"] = rule

    def removed(self) -> dict[str, int]:
        """Removed records by rule, in order."""
        return {rule: int((self.notes["removed"] == rule).sum()) for rule in self.rules}

    def examples(self, rule: str) -> list[int]:
        """A few of the records that a rule removed, evenly spaced."""
        return evenly(np.flatnonzero(self.notes["removed"] == rule).tolist(), EXAMPLES_KEPT)

    def read(self, numbers: Iterable[int]) -> Iterator[Any]:
        """The records with these numbers."""
        return (record_of(self.records[int(number)], self.record_type) for number in numbers)

    def each(self, mask: Mask) -> Iterator[Any]:
        """The records in the mask, in order."""
        for batch in filtered(self.records, mask):
            yield from (record_of(row, self.record_type) for row in batch.to_pylist())

    def key(self, number: int) -> str:
        """The text by which near-duplicates of a record are detected."""
        return str(self._keys[number]["key"])

    def keys(self, mask: Mask) -> Iterator[str]:
        """The keys of the records in the mask."""
        for batch in filtered(self._keys, mask):
            yield from batch["key"].to_pylist()

    def replace(self, records: dict[int, dict[str, Any]]) -> None:
        """Replaces the rows with these numbers."""
        self.records = self.records.map(
            lambda row, number: records.get(number, row),
            with_indices=True,
            features=self.records.features,
            desc="data: dropped answers",
        )
