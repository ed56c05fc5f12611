"""The curation table: records in an Arrow file, and one row of numbers per record in memory.

The texts stay in the memory-mapped Arrow file; most rules read only the annotations, a few hundred bytes per record.
"""

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
from data.sets import record_of

Mask = NDArray[np.bool_]
EXAMPLES_KEPT = 5
BATCH = 10_000
"""Rows of an Arrow file that are looked at together."""


def stored(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema, batch: int = 1000) -> Dataset:
    """Writes rows to an Arrow file, `batch` of them at a time, and opens it as a memory-mapped Dataset."""
    with ArrowWriter(path=str(path), features=Features.from_arrow_schema(schema), writer_batch_size=batch) as writer:
        for row in rows:
            writer.write({name: row.get(name) for name in schema.names})
        writer.finalize()
    return Dataset.from_file(str(path))


class Table:
    """Prompts or rankings under curation: N records in the order in which they were read."""

    def __init__(self, records: Dataset, notes: Dataset, sources: Sequence[str]) -> None:
        """`notes` are the annotations of data/annotate.py; `sources` are the names of the sources, in order."""
        self.records = records
        self.sources = list(sources)
        self.rules: list[str] = []
        """The rules that were applied, in order."""
        self._keys = notes.select_columns(["key"]).with_format("arrow")
        self.notes: pd.DataFrame = notes.remove_columns(["key"]).to_pandas()
        """One row per record."""
        self.notes["removed"] = pd.Categorical([None] * len(self.notes))

    @property
    def count(self) -> int:
        """Number of records."""
        return len(self.notes)

    @property
    def is_rankings(self) -> bool:
        """Whether the records are Rankings."""
        return "completions" in self.records.column_names

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
        gone = np.flatnonzero(self.notes["removed"] == rule)
        shown = min(EXAMPLES_KEPT, len(gone))
        return [int(gone[index * len(gone) // shown]) for index in range(shown)]

    def read(self, numbers: Iterable[int]) -> Iterator[Any]:
        """The records with these numbers."""
        for number in numbers:
            yield record_of(self.records[int(number)], Ranking if self.is_rankings else Prompt)

    def each(self, mask: Mask) -> Iterator[Any]:
        """The records in the mask, in order."""
        for batch in self.batches(mask, self.records.column_names):
            for row in batch.to_pylist():
                yield record_of(row, Ranking if self.is_rankings else Prompt)

    def key(self, number: int) -> str:
        """The text by which near-duplicates of a record are detected."""
        return str(self._keys[number]["key"][0])

    def keys(self, mask: Mask) -> Iterator[pa.StringArray]:
        """The keys of the records in the mask, in chunks."""
        for start, batch in zip(range(0, self.count, BATCH), self._keys.iter(BATCH), strict=True):
            yield batch["key"].combine_chunks().filter(pa.array(mask[start : start + len(batch)]))

    def batches(self, mask: Mask, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the records in the mask, in chunks."""
        for start, batch in zip(
            range(0, self.count, BATCH),
            self.records.select_columns(list(columns)).with_format("arrow").iter(BATCH),
            strict=True,
        ):
            chosen = batch.filter(pa.array(mask[start : start + len(batch)]))
            if len(chosen):
                yield chosen

    def replace(self, records: dict[int, dict[str, Any]]) -> None:
        """Replaces the rows with these numbers."""
        self.records = self.records.map(
            lambda row, number: records.get(number, row),
            with_indices=True,
            features=self.records.features,
            desc="data: dropped answers",
        )
