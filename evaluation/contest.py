"""Every compared model against SFT by every judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data.intervals import Bootstrap
from data.records import Demonstration
from data.sets import evenly
from evaluation.agreement import calls_of, judge_agreement
from evaluation.compare import Answers, Verdicts, among, both_end, like_length, win_rate
from evaluation.config import NULL_BASELINES
from evaluation.judges.protocol import Judge
from evaluation.length_control import length_controlled


@dataclass(frozen=True)
class Contest:
    """The answers of all models, and their judges."""

    prompts: Sequence[Demonstration]
    answers: Mapping[str, Answers]
    """By the model's name."""
    judges: Sequence[Judge]
    """The first gives the headline."""
    bootstrap: Bootstrap

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Verdicts]]:
        """The verdicts on each model against SFT, by model and judge."""
        return {
            name: {judge.name: judge.preferences(self.prompts, answers, self.answers["sft"]) for judge in self.judges}
            for name, answers in self.answers.items()
            if name != "sft"
        }

    def comparisons(self) -> dict[str, dict[str, Any]]:
        """The contents of `comparisons` in evaluation.json: results against SFT by model and judge."""
        return {name: {judge.name: self._result(name, judge) for judge in self.judges} for name in self.verdicts}

    def unjudged(self) -> str | None:
        """A warning if people judged fewer than half of the prompts to which PPO and SFT gave different answers; None
        otherwise. Of several answers to a prompt, people judge the first.
        """
        if (verdicts := self.verdicts["ppo"].get("human")) is None:
            return None
        judged = [
            any(value is not None for row in rows for value in row)
            for rows, ours, theirs in zip(verdicts, self.answers["ppo"], self.answers["sft"], strict=True)
            if ours[0].text.strip() != theirs[0].text.strip()
        ]
        if sum(judged) * 2 >= len(judged):
            return None
        return (
            f"people judged {sum(judged)} of the {len(judged)} prompts to which PPO and SFT gave different answers: "
            "if they ranked more than that, the rankings in evaluate.human.path are of other answers, since sampling "
            "differs between weights, settings and hardware: export the answers of this evaluation again"
        )

    def _result(self, name: str, judge: Judge) -> dict[str, Any]:
        ours, theirs, verdicts = self.answers[name], self.answers["sft"], self.verdicts[name][judge.name]
        judged = evenly(verdicts, judge.max_prompts)
        return {
            "win_rate": win_rate(verdicts, self.bootstrap),
            "length_controlled": length_controlled(ours, theirs, verdicts, self.bootstrap),
            "both_end": win_rate(among(verdicts, ours, theirs, both_end), self.bootstrap),
            "no_verdict": sum(value is None for rows in judged for row in rows for value in row),
        }

    def headline(self, comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """PPO's win rates by the first judge, as stored in evaluation.json: `win_rate` against every other model."""
        judge, ours, theirs = self.judges[0], self.answers["ppo"], self.answers["sft"]
        found, verdicts = comparisons["ppo"][judge.name], self.verdicts["ppo"][judge.name]
        others = [name for name in self.answers if name not in ("ppo", "sft", "best_of_n", *NULL_BASELINES)]
        return {
            "win_rate": {
                "sft": found["win_rate"],
                **{
                    name: win_rate(judge.preferences(self.prompts, ours, self.answers[name]), self.bootstrap)
                    for name in others
                },
            },
            "win_rate_length_controlled": found["length_controlled"],
            "win_rate_length_matched": win_rate(among(verdicts, ours, theirs, like_length), self.bootstrap),
            "win_rate_both_end": found["both_end"],
        }

    def agreement(self) -> dict[str, Any] | None:
        """Agreement between the judges on the answers of all models; null baselines, which are easy to judge, are left
        out."""
        models = [by_judge for name, by_judge in self.verdicts.items() if name not in NULL_BASELINES]
        return judge_agreement(
            {judge.name: [call for found in models for call in calls_of(found[judge.name])] for judge in self.judges}
        )
