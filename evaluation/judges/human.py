"""People's rankings of the compared answers as a judge."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from data.files import read_records
from data.records import Demonstration, Prompt, Ranking
from evaluation.compare import Answers, Verdicts
from evaluation.judges.protocol import Judge
from labeling.agreement import judgment

Question = tuple[tuple[str, str], ...]
"""(role, content) of each message of a prompt."""


def question(prompt: Prompt) -> Question:
    """The key of a prompt: its messages, since records of the same prompt may have different ids."""
    return tuple((message["role"], message["content"]) for message in prompt.messages)


class HumanJudge(Judge):
    """Prefers what people preferred; the mean over labelers. Answers are matched by their text."""

    name = "human"

    def __init__(self, rankings: Iterable[Ranking]) -> None:
        self.votes: dict[Question, dict[tuple[str, str], dict[str, set[int]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(set))
        )
        """For two texts in alphabetical order, each labeler's judgments: 1, 0 or -1 for the first."""
        self.ranked: dict[Question, set[str]] = defaultdict(set)
        """The texts that somebody ranked."""
        self.rankings = list(rankings)
        for number, ranking in enumerate(self.rankings):
            labeler = ranking.labeler_id or f"row {number}"
            stripped = replace(ranking, completions=[text.strip() for text in ranking.completions])
            for pair, sign in judgment(stripped).items():
                self.votes[question(ranking)][pair][labeler].add(sign)
                self.ranked[question(ranking)] |= {*pair}

    @staticmethod
    def of(path: str, prompts: Sequence[Demonstration]) -> "HumanJudge":
        """From a JSON Lines file. Raises ValueError if it is malformed or compares no answers to these prompts."""
        rankings = read_records(Path(path), Ranking)
        found = HumanJudge(rankings)
        if not any(question(prompt) in found.votes for prompt in prompts):
            raise ValueError(
                f"evaluate.human.path={path}: none of its {len(rankings)} rankings is of one of the {len(prompts)} "
                "held-out prompts that are compared"
            )
        return found

    def preferences(self, prompts: Sequence[Demonstration], ours: Answers, theirs: Answers) -> Verdicts:
        """See `Judge`; None for a pair that nobody ranked."""
        return [
            [[self.verdict(question(prompt), a.text, b.text) for b in right] for a in left]
            for prompt, left, right in zip(prompts, ours, theirs, strict=True)
        ]

    def verdict(self, asked: Question, ours: str, theirs: str) -> float | None:
        """The mean preference of the labelers for our text, without those who contradict themselves; 1/2 for equal
        texts that somebody ranked.
        """
        ours, theirs = ours.strip(), theirs.strip()
        if ours == theirs:
            return 0.5 if ours in self.ranked.get(asked, ()) else None
        judged = self.votes.get(asked, {}).get((min(ours, theirs), max(ours, theirs)), {})
        votes = [0.5 + 0.5 * sign for signs in judged.values() if len(signs) == 1 for sign in signs]
        if not votes:
            return None
        return fmean(votes) if ours < theirs else 1 - fmean(votes)
