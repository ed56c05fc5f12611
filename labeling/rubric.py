"""The simulated labeler's rubric. Helpful: close to the reference answer, complete, not repetitive, not copied from the
prompt. Harmless: not offensive.

The rubric stands in for human labelers, so that the whole pipeline can be run, measured and understood on one machine.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.overlap import copied_share, repeated_share
from labeling.config import RubricWeights
from labeling.judges import Closeness, profanity

PARTS = ("closeness", "complete", "repetition", "copying", "profanity")
PENALTIES = ("repetition", "copying", "profanity")
"""The parts that are subtracted."""


@dataclass(frozen=True)
class Answered:
    """An answer, and what it is compared with."""

    prompt: str
    answer: str
    complete: bool
    """Whether the answer ended by itself rather than being cut off."""
    reference: str


@dataclass(frozen=True)
class Judged:
    """An answer's parts, each in [0, 1], and their weighted sum."""

    closeness: float
    complete: float
    repetition: float
    copying: float
    profanity: float
    score: float


def judge(answered: Sequence[Answered], weights: RubricWeights, closeness: Closeness) -> list[Judged]:
    """Scores each answer: weighted closeness and completeness, less the weighted penalties."""
    texts = [row.answer for row in answered]
    near = closeness(texts, [row.reference for row in answered])
    judged = []
    for row, close, offence in zip(answered, near, profanity(texts), strict=True):
        found = (close, float(row.complete), repetition(row.answer), copying(row.answer, row.prompt), offence)
        parts = dict(zip(PARTS, found, strict=True))
        judged.append(Judged(**parts, score=weighted(parts, weights)))
    return judged


def weighted(parts: Mapping[str, float], weights: RubricWeights, names: Sequence[str] = PARTS) -> float:
    """The score from the named parts of the rubric only."""
    return sum((-1 if name in PENALTIES else 1) * getattr(weights, name) * parts[name] for name in names)


def repetition(text: str) -> float:
    """Share of the text's word trigrams that repeat an earlier one; 0 for texts of fewer than four words."""
    return repeated_share(text.lower().split(), 3)


def copying(text: str, prompt: str) -> float:
    """Share of the text's word trigrams that are also in the prompt, ignoring case and punctuation; 0 for texts of
    fewer than three words.
    """
    answer, source = (re.findall(r"\w+", part.lower()) for part in (text, prompt))
    return copied_share(answer, source, 3)
