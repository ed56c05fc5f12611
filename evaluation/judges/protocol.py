"""The interfaces of judges: a judge scores single answers or compares pairs."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from data.records import Demonstration
from evaluation.compare import Answer, Answers, Verdicts, by_scores


class ScoringJudge(Protocol):
    """Gives every answer a score; the answer with the higher one is preferred."""

    name: str
    taught: bool
    """Whether the run's reward model was trained on its rankings."""
    tie_width: float
    """Scores tie as in `labeling.simulated.ranks_of`: in the same bin of this width; 0 ties equal scores only."""

    def scores(
        self, prompts: Sequence[Demonstration], answers: Sequence[Sequence[Answer]]
    ) -> Sequence[Sequence[float]]:
        """The score of each answer to each prompt."""
        ...


@runtime_checkable
class PairwiseJudge(Protocol):
    """Compares answers in pairs."""

    name: str
    taught: bool
    """As in ScoringJudge."""

    def preferences(self, prompts: Sequence[Demonstration], ours: Answers, theirs: Answers) -> Verdicts:
        """For each prompt a len(ours) x len(theirs) matrix, see `evaluation.compare.Verdicts`."""
        ...


Judge = ScoringJudge | PairwiseJudge


def preferences(judge: Judge, prompts: Sequence[Demonstration], ours: Answers, theirs: Answers) -> Verdicts:
    """The verdicts of either kind of judge on all pairs of our answers and theirs."""
    if isinstance(judge, PairwiseJudge):
        return judge.preferences(prompts, ours, theirs)
    return by_scores(judge.scores(prompts, ours), judge.scores(prompts, theirs), judge.tie_width)
