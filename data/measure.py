"""What only reading a row tells: its length in tokens, its language, and whether it holds personal data.

The one slow step of curation, so it looks at each row once, only at rows that the cheaper rules kept, and in several
processes if asked to.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.few_shot import expand, whole_text
from data.language import identify
from data.records import Demonstration, FewShot, Prompt, Ranking
from data.sets import record_of
from data.spool import Spool

Mask = NDArray[np.bool_]
PartT = TypeVar("PartT")


@dataclass(frozen=True)
class Measurer:
    """How rows are measured: all three take many at a time."""

    prompt_tokens: Callable[[Sequence[Prompt]], list[int]]
    """Tokens of each prompt with its chat template, in the policy's tokens."""
    answer_tokens: Callable[[Sequence[str]], list[int]]
    """Tokens of each answer with its EOS."""
    personal: Callable[[str], bool] | None
    """Whether a text holds personal data; None looks for none."""


@dataclass
class Measures:
    """Columns over N rows; -1, `und` and false where a row was not looked at."""

    prompt_tokens: NDArray[np.int32]
    answer_tokens: NDArray[np.int32]
    """Of the longest answer where a row has several, -1 where it has none."""
    language: NDArray[np.object_]
    personal: Mask

    @staticmethod
    def blank(count: int) -> "Measures":
        """Nothing measured yet."""
        unknown = np.full(count, -1, dtype=np.int32)
        return Measures(unknown, unknown.copy(), np.full(count, "und", dtype=object), np.zeros(count, dtype=bool))


def measure(
    spool: Spool, record_type: type[Prompt], looked_at: Mask, for_training: Mask, measurer: Measurer, workers: int
) -> Measures:
    """Measures the rows that are `looked_at`, and searches for personal data those that are `for_training` too (section
    3.2).
    """
    found = Measures.blank(spool.count)
    job = Job(spool, record_type, looked_at, for_training, measurer)
    for rows, part in tqdm(
        _in_processes(job, workers), desc="data: tokens, languages", total=spool.batch_count, disable=None, leave=False
    ):
        found.prompt_tokens[rows], found.answer_tokens[rows] = part.prompt_tokens, part.answer_tokens
        found.language[rows], found.personal[rows] = part.language, part.personal
    return found


@dataclass(frozen=True)
class Job:
    """One spool's measuring, batch by batch."""

    spool: Spool
    record_type: type[Prompt]
    looked_at: Mask
    for_training: Mask
    measurer: Measurer

    def batch(self, index: int) -> tuple[NDArray[np.int64], Measures]:
        """(row numbers, what was found)."""
        batch = self.spool.batch(index)
        start = self.spool.starts[index]
        rows = start + np.flatnonzero(self.looked_at[start : start + len(batch)])
        records = [record_of(row, self.record_type) for row in batch.take(rows - start).to_pylist()]
        found = Measures.blank(len(records))
        found.prompt_tokens[:] = _longest(records, _prompts, self.measurer.prompt_tokens)
        found.answer_tokens[:] = _longest(records, answers, self.measurer.answer_tokens)
        found.language[:] = identify([record.text for record in records])
        if self.measurer.personal is not None:
            train = self.for_training[rows]
            found.personal[:] = [
                bool(wanted) and self.measurer.personal(full_text(record))
                for record, wanted in zip(records, train, strict=True)
            ]
        return rows, found


def answers(record: Prompt) -> list[str]:
    """All answers that a record brings."""
    if isinstance(record, Ranking):
        return record.completions
    if isinstance(record, FewShot):
        return [example["completion"] for example in record.examples]
    return [record.completion] if isinstance(record, Demonstration) else []


def full_text(record: Prompt) -> str:
    """Prompt and answers: everything of the record that a model would read."""
    return whole_text(record) if isinstance(record, FewShot) else "\n".join([record.text, *answers(record)])


def _prompts(record: Prompt) -> list[Prompt]:
    return list(expand(record)) if isinstance(record, FewShot) else [record]


def _longest(
    records: Sequence[Prompt], parts: Callable[[Prompt], list[PartT]], count: Callable[[Sequence[PartT]], list[int]]
) -> list[int]:
    """The count of each record's longest part, -1 where it has none; all parts are counted in one call."""
    split = [parts(record) for record in records]
    flat = [part for each in split for part in each]
    counts = iter(count(flat) if flat else [])
    return [max((next(counts) for _ in each), default=-1) for each in split]


_JOB: Job | None = None


def _in_processes(job: Job, workers: int) -> Iterator[tuple[NDArray[np.int64], Measures]]:
    indices = range(job.spool.batch_count)
    if workers == 1 or len(indices) == 1:
        yield from map(job.batch, indices)
        return
    # Forked workers inherit the tokenizer, the language model and the masks, and share the spool's mapped pages; only
    # numbers travel back.
    identify([])
    global _JOB
    _JOB = job
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            yield from pool.map(_batch, indices)
    finally:
        _JOB = None


def _batch(index: int) -> tuple[NDArray[np.int64], Measures]:
    assert _JOB is not None
    return _JOB.batch(index)
