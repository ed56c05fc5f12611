"""The simulated labeler's rubric. Helpful: close to the reference answer, complete, not repetitive. Harmless: not
offensive.

The rubric stands in for human labelers, so that the whole pipeline can be run, measured and understood on one machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.overlap import repeated_share
from labeling.config import RubricWeights
from labeling.judges import Closeness, profanity

PARTS = ("closeness", "complete", "repetition", "profanity")
PENALTIES = ("repetition", "profanity")
"""The parts that are subtracted."""


@dataclass(frozen=True)
class Judged:
    """An answer's parts, each in [0, 1], and their weighted sum."""

    closeness: float
    complete: float
    repetition: float
    profanity: float
    score: float


def judge(
    answers: Sequence[str],
    complete: Sequence[bool],
    references: Sequence[str],
    weights: RubricWeights,
    closeness: Closeness,
) -> list[Judged]:
    """Scores each answer: weighted closeness and completeness, less weighted repetition and profanity."""
    judged = []
    for near, ended, repeats, offence in zip(
        closeness(answers, references), complete, map(repetition, answers), profanity(answers), strict=True
    ):
        parts = dict(zip(PARTS, (near, float(ended), repeats, offence), strict=True))
        judged.append(Judged(**parts, score=weighted(parts, weights)))
    return judged


def weighted(parts: Mapping[str, float], weights: RubricWeights, names: Sequence[str] = PARTS) -> float:
    """The score from the named parts of the rubric only."""
    return sum((-1 if name in PENALTIES else 1) * getattr(weights, name) * parts[name] for name in names)


def repetition(text: str) -> float:
    """Share of the text's word trigrams that repeat an earlier one; 0 for texts of fewer than four words."""
    return repeated_share(text.lower().split(), 3)
