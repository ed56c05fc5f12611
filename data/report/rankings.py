"""What the rankings hold: how many answers, how many of their pairs are ties, who ranked, and whether length gives the
order away.

Rankings stream through in batches, as columns; what is kept of each is two numbers. Lengths are in characters.

Shapes: N rankings of a batch, A answers of all of them in a row, P judged pairs of answers.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.build import Built
from data.intervals import ratio_interval
from data.pages import Interval

COLUMNS = ("completions", "ranks", "preferences", "ties", "labeler", "labeler_id")
MOST_UNITS = 1000
"""The bootstrap draws from no more units than these; more rankings are dealt in turn into as many groups, which are as
independent as they are.
"""
RESAMPLES = 2000
Numbers = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers that somebody compared: P places of rankings and of answers."""

    ranking: Places
    better: Places
    worse: Places
    tied: NDArray[np.bool_]
    """Of a tie neither is better."""


@dataclass
class RankingFacts:
    """Sums over all rankings."""

    answers: Counter[int] = field(default_factory=Counter)
    """Rankings by K."""
    forms: Counter[str] = field(default_factory=Counter)
    """`ranks` or `preferences`."""
    labelers: Counter[str] = field(default_factory=Counter)
    """human, simulated, llm."""
    by_labeler: Counter[str] = field(default_factory=Counter)
    """Rankings by labeler id; the empty one is nobody's."""
    strict: int = 0
    tied: int = 0
    unranked: int = 0
    """Answers that nobody compared with another."""
    longest_best: float = 0.0
    longest_chance: float = 0.0
    """Expected of a random answer instead of the longest."""
    longest_of: int = 0
    """Rankings by ranks that say anything about the longest answer."""
    longer_better: Interval | None = None
    """Strict pairs in which the longer answer is the better one, equal lengths counting half, with the interval over
    rankings.
    """

    @property
    def count(self) -> int:
        """Rankings."""
        return sum(self.answers.values())

    @property
    def tied_share(self) -> float:
        """Of judged pairs; 0 where there are none."""
        return self.tied / max(1, self.strict + self.tied)

    @property
    def unnamed_share(self) -> float:
        """Rankings without a labeler id; 0 where there are none."""
        return self.by_labeler[""] / max(1, self.count)


def ranking_facts(built: Built) -> RankingFacts:
    """Counts the rankings that curation kept, of all splits."""
    found, part, start = RankingFacts(), built.rankings, 0
    sums: list[Numbers] = []
    counts: list[Numbers] = []
    for batch in part.spool.batches(COLUMNS):
        kept = batch.filter(pa.array(part.kept()[start : start + len(batch)]))
        start += len(batch)
        if len(kept):
            longer, strict = add(found, kept)
            sums.append(longer)
            counts.append(strict)
    if found.strict:
        found.longer_better = interval_of(np.concatenate(sums), np.concatenate(counts))
    return found


def add(found: RankingFacts, batch: pa.RecordBatch) -> tuple[Numbers, Numbers]:
    """Counts N rankings in. Returns (pairs that the longer answer won, strict pairs) of each."""
    sizes = _lengths_of(batch["completions"])
    found.answers.update(sizes.tolist())
    found.forms.update("ranks" if ranked else "preferences" for ranked in batch["ranks"].is_valid().to_pylist())
    found.labelers.update(batch["labeler"].to_pylist())
    found.by_labeler.update(identity or "" for identity in batch["labeler_id"].to_pylist())
    length = _characters(batch)
    pairs = judged_pairs(batch)
    strict = ~pairs.tied
    found.strict += int(strict.sum())
    found.tied += int(pairs.tied.sum())
    found.unranked += int(sizes.sum()) - len(np.unique(np.concatenate([pairs.better, pairs.worse])))
    for best, chance in longest_best(batch, length):
        found.longest_best += best.sum()
        found.longest_chance += chance.sum()
        found.longest_of += len(best)
    won = (1 + np.sign(length[pairs.better] - length[pairs.worse])) / 2
    ranking = pairs.ranking[strict]
    return np.bincount(ranking, won[strict], len(batch)).astype(float), np.bincount(
        ranking, minlength=len(batch)
    ).astype(float)


def judged_pairs(batch: pa.RecordBatch) -> Pairs:
    """All pairs that ranks order or tie, and all raw judgments as they stand."""
    starts = _starts(batch)
    parts: list[tuple[Places, Places, Places, NDArray[np.bool_]]] = []
    for rows, ranks in ranks_by_size(batch):
        first, second = np.triu_indices(ranks.shape[1], 1)
        difference = ranks[:, second] - ranks[:, first]
        place, pair = np.nonzero(np.isfinite(difference))
        difference = difference[place, pair]
        ahead, behind = first[pair], second[pair]
        better, worse = np.where(difference >= 0, ahead, behind), np.where(difference >= 0, behind, ahead)
        parts.append((rows[place], starts[rows[place]] + better, starts[rows[place]] + worse, difference == 0))
    for column, tied in (("preferences", False), ("ties", True)):
        judged = batch[column]
        ranking = np.repeat(np.arange(len(batch)), _lengths_of(judged))
        both = judged.flatten().flatten().to_numpy(zero_copy_only=False).astype(np.int64).reshape(-1, 2)
        parts.append((ranking, starts[ranking] + both[:, 0], starts[ranking] + both[:, 1], np.full(len(ranking), tied)))
    ranking, better, worse, ties = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pairs(ranking, better, worse, ties)


def longest_best(batch: pa.RecordBatch, length: Places) -> Iterator[tuple[Numbers, Numbers]]:
    """By K: for each ranking (is its longest answer ranked best, what a random answer's chance is); several longest
    ones share.

    Rankings without two ranked answers, or with all ranked answers tied or equally long, say nothing and are left out.
    """
    starts = _starts(batch)
    for rows, ranks in ranks_by_size(batch):
        ranked = np.isfinite(ranks)
        rows, ranks, ranked = rows[ranked.any(1)], ranks[ranked.any(1)], ranked[ranked.any(1)]
        lengths = np.where(ranked, length[starts[rows][:, None] + np.arange(ranks.shape[1])], -1)
        longest = ranked & (lengths == lengths.max(1, keepdims=True, initial=-1))
        best = ranked & (ranks == np.nanmin(ranks, axis=1, keepdims=True, initial=np.inf))
        tells = (best.sum(1) < ranked.sum(1)) & (longest.sum(1) < ranked.sum(1))
        longest, best, ranked = longest[tells], best[tells], ranked[tells]
        yield (longest & best).sum(1) / longest.sum(1), best.sum(1) / ranked.sum(1)


def ranks_by_size(batch: pa.RecordBatch) -> Iterator[tuple[Places, Numbers]]:
    """By K: (places of the rankings that have ranks, their ranks with K columns), NaN where an answer is not ranked."""
    sizes = _lengths_of(batch["ranks"])
    starts = np.cumsum(sizes) - sizes
    flat = batch["ranks"].flatten().to_numpy(zero_copy_only=False).astype(float)
    for size in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == size)
        yield rows, flat[starts[rows][:, None] + np.arange(size)]


def interval_of(sums: Numbers, counts: Numbers) -> Interval:
    """The ratio of two sums with its bootstrap interval, in memory that does not grow with the units. Raises ValueError
    when there are none.
    """
    units = np.arange(len(sums)) % MOST_UNITS
    return ratio_interval(np.bincount(units, sums).tolist(), np.bincount(units, counts).tolist(), RESAMPLES)


def _starts(batch: pa.RecordBatch) -> Places:
    """Where each ranking's answers begin among all A."""
    sizes = _lengths_of(batch["completions"])
    starts: Places = np.cumsum(sizes) - sizes
    return starts


def _lengths_of(lists: pa.Array) -> Places:
    lengths: Places = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _characters(batch: pa.RecordBatch) -> Places:
    """Of each of the A answers."""
    found: Places = pc.utf8_length(batch["completions"].flatten()).to_numpy(zero_copy_only=False).astype(np.int64)
    return found
