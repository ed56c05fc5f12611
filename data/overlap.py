"""How much a text repeats itself, copies from another, and shares with a reference answer: counts, without a model."""

from collections.abc import Hashable, Sequence

import sacrebleu

TOKEN_RUN = 4
"""Tokens of a run that counts as repetition when a response has it again. Ours."""


def repeated_share(items: Sequence[Hashable], length: int) -> float:
    """Share of the runs of `length` neighbouring items (words, tokens) that repeat an earlier run; 0 where there is
    none.
    """
    runs = runs_of(items, length)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def copied_share(items: Sequence[Hashable], source: Sequence[Hashable], length: int) -> float:
    """Share of the runs of `length` neighbouring items that `source` has too; 0 where there is none."""
    runs, known = runs_of(items, length), set(runs_of(source, length))
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def runs_of(items: Sequence[Hashable], length: int) -> list[tuple[Hashable, ...]]:
    """All runs of `length` neighbouring items."""
    return list(zip(*(items[start:] for start in range(length)), strict=False))


def chrf(text: str, reference: str) -> float:
    """Overlap of character n-grams with a reference answer, from 0 to 1 (Popović 2015)."""
    return float(sacrebleu.sentence_chrf(text, [reference]).score) / 100
