"""How much a text repeats itself, and how much of a reference answer it has: plain counts that no model was taught."""

from collections.abc import Hashable, Sequence

import sacrebleu

TOKEN_RUN = 4
"""Tokens of a run that counts as repetition when a response has it again. Ours."""


def repeated_share(items: Sequence[Hashable], length: int) -> float:
    """Share of the runs of `length` neighbouring items (words, tokens) that repeat an earlier run; 0 where there is
    none.
    """
    runs = list(zip(*(items[start:] for start in range(length)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def chrf(text: str, reference: str) -> float:
    """Overlap of character n-grams with a reference answer, from 0 to 1 (Popović 2015)."""
    return float(sacrebleu.sentence_chrf(text, [reference]).score) / 100
