"""Rows under curation: the texts wait in a spool, the columns that rules decide by are here, and the ledger knows who
left and why.
"""

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.answers import has_strict_pair, identical_pairs
from data.few_shot import distinct_pairs, whole_text
from data.measure import Measures, answers
from data.near_duplicates import comparable
from data.records import SPLITS, USE_CASES, Demonstration, FewShot, Prompt, Ranking
from data.sets import packed
from data.split import hash64, splits_of, user_hash
from data.spool import Spool

Mask = NDArray[np.bool_]
EXAMPLES_KEPT = 5
JUDGMENT = ("ranks", "preferences", "ties", "labeler_id", "labeler", "complete", "ratings")
"""What two rankings of the same answers must share to be one."""
TRAIN, VALID, TEST = range(len(SPLITS))


class Ledger:
    """Which of N rows are left, and what each rule removed."""

    def __init__(self, count: int) -> None:
        self.keep: Mask = np.ones(count, dtype=bool)
        self.removed: dict[str, int] = {}
        self.examples: dict[str, list[int]] = {}

    def apply(self, rule: str, stays: Mask) -> None:
        """Removes the rows that are left and not in the mask of N, counts them, and remembers a few of them, spread
        evenly.
        """
        gone = np.flatnonzero(self.keep & ~stays)
        self.removed[rule] = self.removed.get(rule, 0) + len(gone)
        shown = min(EXAMPLES_KEPT, len(gone))
        self.examples[rule] = [int(gone[place * len(gone) // shown]) for place in range(shown)]
        self.keep &= stays


@dataclass
class Part:
    """Prompts or rankings: N rows in the order in which they were read."""

    spool: Spool
    group_by: Literal["user", "organisation"]
    salt: str
    ledger: Ledger = field(default_factory=lambda: Ledger(0))
    measures: Measures = field(default_factory=lambda: Measures.blank(0))
    datasets: list[str] = field(default_factory=list)
    """Names of sources; `dataset` holds places in it."""
    group: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Hash of the user or organisation, which its split comes from."""
    item: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Hash of the prompt as near-duplicates see it."""
    row: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Hash of the prompt with all that was answered and judged."""
    identity: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Hash of the prompt's id."""
    dataset: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    api: Mask = field(default_factory=lambda: np.empty(0, bool))
    answered: Mask = field(default_factory=lambda: np.empty(0, bool))
    copies: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Rows that a record becomes: K for a few-shot prompt of K different pairs, else 1."""
    few_shot: Mask = field(default_factory=lambda: np.empty(0, bool))
    conversational: Mask = field(default_factory=lambda: np.empty(0, bool))
    use_case: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    """Place in USE_CASES, -1 where none was given."""
    answers: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Number of a ranking's answers in the source."""
    identical: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Number of a ranking's judgments between identical answers (data/answers.py)."""
    informative: Mask = field(default_factory=lambda: np.empty(0, bool))
    """False if a ranking has such judgments and none that puts an answer above a different one."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Answers dropped from rankings that were kept, by rule."""
    split: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    """Place in SPLITS."""

    @property
    def count(self) -> int:
        """N."""
        return self.spool.count

    def kept(self, split: int | None = None) -> Mask:
        """The rows that are left, in a split or in all of them."""
        return self.ledger.keep if split is None else self.ledger.keep & (self.split == split)


class Collector:
    """Fills a part, a record at a time: what a rule needs of a text is computed while the text is at hand."""

    def __init__(self, path: Path, schema: pa.Schema, group_by: Literal["user", "organisation"], salt: str) -> None:
        self.part = Part(Spool(path, schema), group_by, salt)
        self._hashes: dict[str, array[int]] = {name: array("Q") for name in ("group", "item", "row", "identity")}
        self._numbers: dict[str, array[int]] = {
            name: array("i")
            for name in (
                "dataset", "api", "answered", "copies", "few_shot", "conversational", "use_case", "answers",
                "identical", "informative",
            )
        }  # fmt: skip
        self._datasets: dict[str, int] = {}

    def add(self, record: Prompt) -> None:
        """One more row."""
        key = comparable(asked(record))
        self.part.spool.append(packed(record, key))
        group = record.user_id if self.part.group_by == "user" else record.organisation_id
        same = identical_pairs(record) if isinstance(record, Ranking) else 0
        judged = [getattr(record, name) for name in JUDGMENT] if isinstance(record, Ranking) else []
        for name, value in (
            ("group", user_hash(group, self.part.salt)),
            ("item", hash64(key)),
            ("row", hash64(repr((record.messages, answers(record), judged)))),
            ("identity", hash64(record.prompt_id)),
        ):
            self._hashes[name].append(value)
        for name, number in (
            ("dataset", self._datasets.setdefault(record.dataset, len(self._datasets))),
            ("api", record.source == "api"),
            ("answered", isinstance(record, Demonstration | FewShot)),
            ("copies", len(distinct_pairs(record)) if isinstance(record, FewShot) else 1),
            ("few_shot", isinstance(record, FewShot)),
            ("conversational", not isinstance(record.prompt, str)),
            ("use_case", USE_CASES.index(record.use_case) if record.use_case is not None else -1),
            ("answers", len(record.completions) if isinstance(record, Ranking) else 0),
            ("identical", same),
            ("informative", not same or not isinstance(record, Ranking) or has_strict_pair(record)),
        ):
            self._numbers[name].append(number)

    def finish(self, valid_fraction: float, test_fraction: float) -> Part:
        """The part, all of its rows still in it, each with its split."""
        part = self.part
        part.spool.close()
        part.ledger, part.measures, part.datasets = Ledger(part.count), Measures.blank(part.count), list(self._datasets)
        for name, hashes in self._hashes.items():
            setattr(part, name, np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, np.uint64))
        for name, numbers in self._numbers.items():
            kind = getattr(part, name).dtype
            setattr(part, name, np.frombuffer(numbers, dtype=np.int32).astype(kind) if numbers else np.empty(0, kind))
        part.split = splits_of(part.group, valid_fraction, test_fraction)
        return part


def asked(record: Prompt) -> str:
    """What near-duplicates are told by: of a conversation the newest turn first, since many share a system prompt or a
    long history.
    """
    if isinstance(record, FewShot):
        return whole_text(record)
    return "\n".join(message["content"] for message in reversed(record.messages))


def first_among(hashes: NDArray[np.uint64], rows: Mask) -> Mask:
    """True where a value stands for the first time among the rows of the mask."""
    first = np.zeros(len(hashes), dtype=bool)
    numbers = np.flatnonzero(rows)
    first[numbers[np.unique(hashes[numbers], return_index=True)[1]]] = True
    return first
