"""A language model as judge, which is asked about each pair of answers in both orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.intervals import Bootstrap
from data.records import Demonstration
from data.sets import evenly
from evaluation.compare import Answer
from evaluation.judges.llm_client import LLMClient
from evaluation.judges.llm_prompts import EXAMPLE, PromptFile, last_object

FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0}
"""Preference of each verdict for the answer that is shown first."""


@dataclass(frozen=True)
class Pair:
    """The two verdicts on a pair of answers."""

    user_id: str
    ours_first: str
    theirs_first: str

    @property
    def preference(self) -> float:
        """The mean over both orders, between 0 (theirs) and 1 (ours)."""
        return (FIRST[self.ours_first] + 1 - FIRST[self.theirs_first]) / 2

    @property
    def follows_position(self) -> float:
        """1 if the same position won in both orders, otherwise 0."""
        return float(self.ours_first == self.theirs_first != "tie")

    @property
    def first_wins(self) -> float | None:
        """The share of the pair's verdicts, ties left out, that prefer the answer shown first."""
        strict = [FIRST[verdict] for verdict in (self.ours_first, self.theirs_first) if verdict != "tie"]
        return sum(strict) / len(strict) if strict else None


class LLMJudge:
    """Asks for each pair of different answers which one is better, once with each of them first.

        judge = LLMJudge(LLMClient(config.llm))
        judge.check()                                        # before anything is sampled
        wins = judge.preferences(prompts, ours, theirs)
        results = judge.report()

    The verdict on a pair is the mean over the two orders: 1/2 if they contradict each other, and 1/4 or 3/4 if one of
    them is a tie. A judge that always prefers the same position therefore gives 1/2 to every pair.
    """

    name = "llm"
    taught = False
    """As in Judge."""

    def __init__(self, client: LLMClient) -> None:
        """Raises ValueError if the prompt file cannot be used."""
        self.client = client
        self.prompt_file = PromptFile.read(client.config.prompt_file, "compare.j2")
        self.prompt_file.check(["Paris, of course.", "Rome."])
        self._pairs: list[Pair] = []
        self._identical = self._without_verdict = 0

    def check(self) -> None:
        """Asks about a simple pair. Raises ValueError as `LLMClient.check`, or if the reply has no verdict."""
        reply = self.client.check(self.prompt_file.render(EXAMPLE, ["Paris.", "Rome."]))
        try:
            parse_verdict(reply)
        except ValueError:
            raise ValueError(
                f"the language model's reply to a simple question has no verdict: {reply[-200:]!r}; raise "
                "max_tokens in its section if it was cut off, or change prompt_file or the model"
            ) from None

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
        for index in evenly(range(len(prompts)), self.client.config.max_prompts):
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
            pair = Pair(prompts[index].user_id, first, second)
            self._pairs.append(pair)
            matrices[index][row][column] = pair.preference
        return matrices

    def report(self, resamples: int = 10_000) -> dict[str, Any]:
        """The contents of `llm_judge` in evaluation.json; intervals resample users.

        `position_bias`: `share` of the pairs in which the same position won in both orders, and `first`, the share of
        strict verdicts for the answer shown first: 1/2 without bias, since each answer is shown first once.
        """
        bias = None
        if self._pairs:
            bootstrap = Bootstrap(resamples, [pair.user_id for pair in self._pairs])
            first = [pair.first_wins for pair in self._pairs]
            bias = {
                "share": bootstrap.interval([pair.follows_position for pair in self._pairs]),
                "first": bootstrap.interval(first) if any(rate is not None for rate in first) else None,
            }
        return {
            **self.client.report(),
            "prompt_file": str(self.prompt_file.path.name),
            "prompt_sha256": self.prompt_file.sha256,
            "pairs": len(self._pairs),
            "identical_pairs": self._identical,
            "pairs_without_verdict": self._without_verdict,
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
