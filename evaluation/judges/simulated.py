"""Judges that compare answers with the reference: the simulated labeler's rubric, and chrF."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Generic, TypeVar

from data.overlap import chrf
from data.records import Demonstration
from evaluation.compare import Answer, Answers
from evaluation.judges.protocol import ScoringJudge
from labeling.config import LabelsConfig
from labeling.judges import Closeness, closeness_judge
from labeling.rubric import Answered, Judged, judge

T = TypeVar("T")
Asked = tuple[Demonstration, Answer]


class Once(Generic[T]):
    """Caches the judgment of each answer, since an answer is in several comparisons.

    `judge` returns a value for each (prompt, answer) of a list.
    """

    def __init__(self, judge: Callable[[Sequence[Asked]], Sequence[T]]) -> None:
        self.judge = judge
        self.known: dict[tuple[str, str, bool], T] = {}

    def __call__(self, prompts: Sequence[Demonstration], answers: Sequence[Sequence[Answer]]) -> list[list[T]]:
        """A value for each answer to each prompt."""
        new = {
            key(prompt, answer): (prompt, answer)
            for prompt, row in zip(prompts, answers, strict=True)
            for answer in row
            if key(prompt, answer) not in self.known
        }
        if new:
            self.known |= dict(zip(new, self.judge(list(new.values())), strict=True))
        return [
            [self.known[key(prompt, answer)] for answer in row] for prompt, row in zip(prompts, answers, strict=True)
        ]


def key(prompt: Demonstration, answer: Answer) -> tuple[str, str, bool]:
    """Answers to a prompt with the same text and ending are the same answer."""
    return prompt.prompt_id, answer.text, answer.complete


class RubricJudge(ScoringJudge):
    """The simulated labeler, without its random errors."""

    name = "rubric"

    def __init__(self, labels: LabelsConfig) -> None:
        self.labels, self.tie_width = labels, labels.tie_width
        self.parts = Once(self._judge)
        """`parts(prompts, answers)`: the rubric's parts and weighted score of each answer."""

    def scores(self, prompts: Sequence[Demonstration], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """See `ScoringJudge`."""
        return [[judged.score for judged in row] for row in self.parts(prompts, answers)]

    @cached_property
    def closeness(self) -> Closeness:
        """Loaded on first use."""
        return closeness_judge(self.labels.closeness)

    def _judge(self, asked: Sequence[Asked]) -> list[Judged]:
        answered = [Answered(prompt.text, answer.text, answer.complete, prompt.completion) for prompt, answer in asked]
        return judge(answered, self.labels.weights, self.closeness)


class ChrfJudge(ScoringJudge):
    """Character overlap with the reference, on which no model was trained."""

    name = "chrf"

    def __init__(self) -> None:
        self.overlap = Once(lambda asked: [chrf(answer.text, prompt.completion) for prompt, answer in asked])

    def scores(self, prompts: Sequence[Demonstration], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """See `ScoringJudge`."""
        return self.overlap(prompts, answers)


def with_parts(
    prompts: Sequence[Demonstration], answers: Answers, rubric: RubricJudge, overlap: ChrfJudge
) -> list[list[Answer]]:
    """The answers with the rubric's parts, its `score` and `chrf` as their parts."""
    return [
        [replace(answer, parts=vars(judged) | {"chrf": shared}) for answer, judged, shared in zip(*rows, strict=True)]
        for rows in zip(answers, rubric.parts(prompts, answers), overlap.scores(prompts, answers), strict=True)
    ]
