"""A language model as judge, which is asked about each pair of answers in both orders."""

from collections.abc import Sequence
from typing import Any

from data.intervals import Bootstrap
from data.records import Demonstration
from data.sets import evenly
from evaluation.compare import Answer, mean
from evaluation.judges.llm_client import LLMClient
from evaluation.judges.llm_prompts import EXAMPLE, PromptFile, last_object
from evaluation.judges.protocol import Judge

FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0}
"""Preference of each verdict for the answer that is shown first."""


class LLMJudge(Judge):
    """Asks for each pair of different answers which one is better, once with each of them first.

        judge = LLMJudge(LLMClient(config.llm))
        judge.check()                                        # before anything is sampled
        wins = judge.preferences(prompts, ours, theirs)
        results = judge.report()

    The verdict on a pair is the mean over the two orders: 1/2 if they contradict each other, and 1/4 or 3/4 if one of
    them is a tie. A judge that always prefers the same position therefore gives 1/2 to every pair.
    """

    name = "llm"

    def __init__(self, client: LLMClient) -> None:
        """Raises ValueError if the prompt file cannot be used."""
        self.client, self.max_prompts = client, client.config.max_prompts
        self.prompt_file = PromptFile.read(client.config.prompt_file, "compare.j2")
        self.prompt_file.check(["Paris, of course.", "Rome."])
        self._pairs: list[tuple[str, float, float]] = []
        """(user, verdict with ours first, verdict with theirs first): 1 prefers the answer shown first, 0 the other,
        0.5 neither.
        """
        self._identical = self._without_verdict = 0

    def check(self) -> None:
        """Asks about a simple pair. Raises ValueError as `LLMClient.check`, or if the reply has no verdict."""
        self.client.check_parsed(self.prompt_file.render(EXAMPLE, ["Paris.", "Rome."]), parse_verdict, "verdict")

    def preferences(
        self, prompts: Sequence[Demonstration], ours: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[Answer]]
    ) -> list[list[list[float | None]]]:
        """For each prompt a matrix of our answers by theirs: from 0 (theirs is better) to 1 (ours is better).

        None where an order has no verdict, and for prompts that `max_prompts` leaves out. Equal texts tie, without a
        question.
        """
        matrices: list[list[list[float | None]]] = [
            [[None] * len(right) for _ in left] for left, right in zip(ours, theirs, strict=True)
        ]
        places, questions = [], []
        for index in evenly(range(len(prompts)), self.max_prompts):
            for row, mine in enumerate(ours[index]):
                for column, other in enumerate(theirs[index]):
                    if mine.text.strip() == other.text.strip():
                        matrices[index][row][column] = 0.5
                        self._identical += 1
                        continue
                    places.append((index, row, column))
                    questions.append(self.prompt_file.render(prompts[index], [mine.text, other.text]))
                    questions.append(self.prompt_file.render(prompts[index], [other.text, mine.text]))
        verdicts = self.client.ask_parsed(questions, parse_verdict, "LLM judge")
        for (index, row, column), first, second in zip(places, verdicts[::2], verdicts[1::2], strict=True):
            if first is None or second is None:
                self._without_verdict += 1
                continue
            self._pairs.append((prompts[index].user_id, FIRST[first], FIRST[second]))
            matrices[index][row][column] = (FIRST[first] + 1 - FIRST[second]) / 2
        return matrices

    def report(self, resamples: int = 10_000) -> dict[str, Any]:
        """The contents of `llm_judge` in evaluation.json; intervals resample users.

        `reason`: why most pairs have no verdict, if so.

        `position_bias`: `share` of the pairs in which the same position won in both orders, and `first`, the share of
        strict verdicts for the answer shown first: 1/2 without bias, since each answer is shown first once.
        """
        bias = None
        if self._pairs:
            bootstrap = Bootstrap(resamples, [user for user, *_ in self._pairs])
            strict = [[value for value in pair if value != 0.5] for _, *pair in self._pairs]
            bias = {
                "share": bootstrap.interval([float(first == second != 0.5) for _, first, second in self._pairs]),
                "first": bootstrap.interval([mean(values) for values in strict]) if any(strict) else None,
            }
        return {
            **self.client.report(),
            "prompt_file": str(self.prompt_file.path.name),
            "prompt_sha256": self.prompt_file.sha256,
            "pairs": len(self._pairs),
            "identical_pairs": self._identical,
            "pairs_without_verdict": self._without_verdict,
            "reason": self.client.failure() if self._without_verdict > len(self._pairs) else None,
            "position_bias": bias,
        }


def parse_verdict(reply: str) -> str:
    """`A`, `B` or `tie`. Raises ValueError, with a sentence for the judge, for anything else."""
    found = last_object(reply)
    verdict = found.get("verdict")
    if set(found) != {"verdict"} or not isinstance(verdict, str) or verdict not in FIRST:
        raise ValueError(
            'Your reply must end with a line that holds only {"verdict": "A"}, {"verdict": "B"} or {"verdict": "tie"}.'
        )
    return verdict
