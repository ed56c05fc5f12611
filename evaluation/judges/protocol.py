"""The base classes of judges, and of those that score single answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from data.records import Demonstration
from evaluation.compare import Answer, Answers, Verdicts, by_scores


class Judge(ABC):
    """Compares answers in pairs."""

    name: str
    taught = False
    """Whether the run's reward model was trained on its rankings."""
    max_prompts: int | None = None
    """Maximum number of prompts that it judges, spread evenly; None judges all."""

    @abstractmethod
    def preferences(self, prompts: Sequence[Demonstration], ours: Answers, theirs: Answers) -> Verdicts:
        """For each prompt a len(ours) x len(theirs) matrix, see `evaluation.compare.Verdicts`."""


class ScoringJudge(Judge):
    """A judge that gives every answer a score, and prefers the answer with the higher one."""

    tie_width = 0.0
    """Scores tie as in `labeling.simulated.ranks_of`: in the same bin of this width; 0 ties equal scores only."""

    @abstractmethod
    def scores(self, prompts: Sequence[Demonstration], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """The score of each answer to each prompt."""

    def preferences(self, prompts: Sequence[Demonstration], ours: Answers, theirs: Answers) -> Verdicts:
        """See `Judge`."""
        return by_scores(self.scores(prompts, ours), self.scores(prompts, theirs), self.tie_width)
