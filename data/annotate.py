"""Annotations of records: what the rules of curation need to know, computed once for each record, in `data.workers`
processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

from data.answers import has_strict_pair, identical_pairs
from data.config import DataConfig
from data.few_shot import distinct_pairs, prompts, whole_text
from data.language import identify
from data.near_duplicates import comparable
from data.records import SPLITS, USE_CASES, Demonstration, FewShot, Prompt, Ranking
from data.sets import record_of
from data.split import hash64, splits_of, user_hash

PartT = TypeVar("PartT")
TRAIN = SPLITS.index("train")
ROWS_PER_WORKER = 1000
"""A worker for fewer rows than this costs more than it saves."""
JUDGMENT = ("ranks", "preferences", "ties", "labeler_id", "labeler", "complete", "ratings")
"""Two rankings of the same answers are the same if all of these are equal."""
NOTES = pa.schema(
    [
        ("key", pa.string()),  # near-duplicates are detected by it
        ("group", pa.uint64()),  # hash of the user or organisation
        ("item", pa.uint64()),  # hash of the key
        ("row", pa.uint64()),  # hash of the prompt with all answers and judgments
        ("identity", pa.uint64()),  # hash of prompt_id
        ("dataset", pa.int16()),  # index of the source
        ("split", pa.int8()),  # index in SPLITS
        ("use_case", pa.int8()),  # index in USE_CASES, -1 if there is none
        ("api", pa.bool_()),
        ("answered", pa.bool_()),
        ("conversational", pa.bool_()),
        ("few_shot", pa.bool_()),
        ("copies", pa.int32()),  # rows of a set: K for a few-shot prompt of K different pairs, else 1
        ("answers", pa.int32()),  # of a ranking
        ("identical", pa.int32()),  # judgments between identical answers
        ("decided", pa.bool_()),  # whether a ranking puts an answer above a different one
        ("prompt_tokens", pa.int32()),  # of the longest prompt of a few-shot prompt
        ("answer_tokens", pa.int32()),  # of the longest answer, -1 if there is none
        ("language", pa.string()),
        ("personal", pa.bool_()),  # only training rows are searched
    ]
)


@dataclass(frozen=True)
class Annotator:
    """Annotates batches of records. The functions must be picklable by dill when there are several workers."""

    config: DataConfig
    prompt_tokens: Callable[[Sequence[Prompt]], list[int]]
    """Numbers of tokens of prompts with their chat template, in the policy's tokens."""
    answer_tokens: Callable[[Sequence[str]], list[int]]
    """Numbers of tokens of answers with their EOS."""
    personal: Callable[[str], object] | None
    """Finds personal data in a text (a true value if there is some); None if it is not searched for."""

    def annotate(self, records: Dataset, sources: Sequence[str]) -> Dataset:
        """The annotations of all records, with the columns NOTES."""
        if not len(records):  # `map` would return a dataset without columns
            return Dataset(NOTES.empty_table())
        workers = min(self.config.workers, len(records) // ROWS_PER_WORKER)
        identify([])  # workers inherit the language model
        try:
            return records.map(
                partial(self.batch, sources=list(sources)),
                batched=True,
                remove_columns=records.column_names,
                features=Features.from_arrow_schema(NOTES),
                num_proc=workers if workers > 1 else None,
                new_fingerprint=f"{records._fingerprint}-notes",
                desc="data: tokens, languages",
            )
        except (RuntimeError, TimeoutError, ConnectionError, EOFError) as error:
            if workers < 2 or (isinstance(error, RuntimeError) and "died" not in str(error)):
                raise
            raise ValueError(
                f"a process that counts tokens was killed ({type(error).__name__}), probably because memory ran out: "
                "lower data.workers"
            ) from error

    def batch(self, batch: dict[str, list[Any]], sources: Sequence[str]) -> dict[str, Any]:
        """The annotations of a batch of rows of POOL_SCHEMA or RANKING_SCHEMA."""
        kind: type[Prompt] = Ranking if "completions" in batch else Prompt
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        records = [record_of(row, kind) for row in rows]
        found = [self._facts(record, sources) for record in records]
        columns: dict[str, Any] = {name: [facts[name] for facts in found] for name in found[0]}
        columns |= {name: np.array(columns[name], dtype=np.uint64) for name in ("group", "item", "row", "identity")}
        splits = splits_of(columns["group"], self.config.valid_fraction, self.config.test_fraction)
        find = self.personal or (lambda text: None)
        return columns | {
            "split": splits,
            "personal": [
                bool(split == TRAIN and find(full_text(record))) for record, split in zip(records, splits, strict=True)
            ],
            "prompt_tokens": _longest([prompts(record) for record in records], self.prompt_tokens),
            "answer_tokens": _longest([answers(record) for record in records], self.answer_tokens),
            "language": identify([record.text for record in records]),
        }

    def _facts(self, record: Prompt, sources: Sequence[str]) -> dict[str, Any]:
        config = self.config
        group = record.user_id if config.group_by == "user" else record.organisation_id
        ranking = record if isinstance(record, Ranking) else None
        judged = [getattr(record, name) for name in JUDGMENT] if ranking else []
        key = comparable(asked(record))
        return {
            "key": key,
            "group": user_hash(group, config.split_salt),
            "item": hash64(key),
            "row": hash64(repr((record.messages, answers(record), judged))),
            "identity": hash64(record.prompt_id),
            "dataset": sources.index(record.dataset),
            "use_case": USE_CASES.index(record.use_case) if record.use_case is not None else -1,
            "api": record.source == "api",
            "answered": isinstance(record, Demonstration | FewShot),
            "conversational": not isinstance(record.prompt, str),
            "few_shot": isinstance(record, FewShot),
            "copies": len(distinct_pairs(record)) if isinstance(record, FewShot) else 1,
            "answers": len(ranking.completions) if ranking else 0,
            "identical": identical_pairs(ranking) if ranking else 0,
            "decided": ranking is not None and has_strict_pair(ranking),
        }


def asked(record: Prompt) -> str:
    """The text by which near-duplicates are detected. Conversations are joined from the newest turn back, since many
    share a system prompt or history.
    """
    if isinstance(record, FewShot):
        return whole_text(record)
    return "\n".join(message["content"] for message in reversed(record.messages))


def answers(record: Prompt) -> list[str]:
    """All answers in a record."""
    if isinstance(record, Ranking):
        return record.completions
    if isinstance(record, FewShot):
        return [example["completion"] for example in record.examples]
    return [record.completion] if isinstance(record, Demonstration) else []


def full_text(record: Prompt) -> str:
    """The prompt and all answers."""
    return whole_text(record) if isinstance(record, FewShot) else "\n".join([record.text, *answers(record)])


def _longest(parts: Sequence[list[PartT]], count: Callable[[Sequence[PartT]], list[int]]) -> list[int]:
    """The count of each record's longest part, -1 if it has none. All parts are counted in one call."""
    flat = list(chain.from_iterable(parts))
    counts = iter(count(flat) if flat else [])
    return [max(islice(counts, len(each)), default=-1) for each in parts]
