"""Judges the answers of a comparison and writes the results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.files import write_rows
from data.intervals import Bootstrap
from data.records import Demonstration
from evaluation.best_of_n import BestOfN
from evaluation.compare import Answer, Answers, differences, parts_table, rubric_win_rates, with_part
from evaluation.comparison import Comparison
from evaluation.config import COMPARED, NULL_BASELINES
from evaluation.contest import Contest
from evaluation.judges.human import HumanJudge
from evaluation.judges.llm import LLMJudge
from evaluation.judges.protocol import Judge, ScoringJudge
from evaluation.judges.simulated import ChrfJudge, RubricJudge, with_parts
from evaluation.metadata import MetadataRater, RatedAnswer, metadata_table, rated_by_people
from labeling.config import LabelsConfig


@dataclass
class Results:
    """The results of a finished comparison, in the first process."""

    comparison: Comparison
    labels: LabelsConfig
    rater: MetadataRater | None = None
    """Rates the answers of the models."""

    def __post_init__(self) -> None:
        done = self.comparison
        self.settings, self.prompts, self.judges = done.settings, done.prompts, done.judges
        users = [prompt.user_id for prompt in self.prompts]
        self.bootstrap = Bootstrap(self.settings.bootstrap_resamples, users)
        own = {judge.name: judge for judge in self.judges}
        # All answers get the scores of these two, whatever the configured judges.
        self.rubric = own.get("rubric") or RubricJudge(self.labels)
        self.chrf = own.get("chrf") or ChrfJudge()
        self.kl = done.kl.get("ppo", [])

    def measured(
        self, prompts: Sequence[Demonstration], answers: Answers, judges: Sequence[Judge] = ()
    ) -> list[list[Answer]]:
        """The answers with the rubric's parts, chrF and the scores of these judges."""
        assert isinstance(self.rubric, RubricJudge)
        assert isinstance(self.chrf, ChrfJudge)
        found = with_parts(prompts, answers, self.rubric, self.chrf)
        for judge in judges:
            if isinstance(judge, ScoringJudge) and judge.name not in ("rubric", "chrf"):
                found = with_part(found, judge.name, judge.scores(prompts, answers))
        return found

    def evaluate(self, reward_model: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of evaluation.json; `reward_model` is the reward model's report on held-out rankings.

        Writes best_of_n.jsonl if best-of-n is configured.
        """
        done, bootstrap = self.comparison, self.bootstrap
        names = [*COMPARED, *(name for name in done.answers if name not in COMPARED)]
        self.answers = {name: self.measured(self.prompts, done.answers[name], self.judges) for name in names}
        self.contest = Contest(self.prompts, self.answers, self.judges, bootstrap)
        comparisons = self.contest.comparisons()
        if warning := self.contest.unjudged():
            print(f"evaluate: warning: {warning}", flush=True)
        evaluation = {
            "prompts": len(self.prompts),
            "users": len({prompt.user_id for prompt in self.prompts}),
            "weights": self.settings.weights,
            "answers_per_prompt": self.settings.answers_per_prompt,
            "generation": self.settings.recorded(done.run.seed),
            "judges": [{"name": judge.name, "taught": judge.taught} for judge in self.judges],
            **self.contest.headline(comparisons),
            **rubric_win_rates(self.answers["ppo"], self.answers["sft"], self.labels, bootstrap),
            "comparisons": comparisons,
            **{
                f"{part}_difference": bootstrap.interval(differences(self.answers["ppo"], self.answers["sft"], part))
                for part in ("chrf", "complete")
            },
            "judge_agreement": self.contest.agreement(),
            "models": parts_table(self.answers, bootstrap),
            "perplexity": done.perplexities,
            "kl": bootstrap.interval(self.kl) if self.kl else None,
            "kl_by_model": {name: bootstrap.interval(kl) for name, kl in done.kl.items()},
            "reward_model": reward_model,
        }
        if rated := self.rated():
            write_rows(done.out / "ratings.jsonl", (asdict(item) for item in rated))
            evaluation["metadata"] = metadata_table(rated, bootstrap.resamples)
        if self.rater is not None:
            evaluation["llm"] = self.rater.client.report()
        for judge in self.judges:
            if isinstance(judge, LLMJudge):
                evaluation["llm_judge"] = found = judge.report(bootstrap.resamples)
                if found["reason"]:
                    print(
                        f"evaluate: warning: the language model gave no verdict on {found['pairs_without_verdict']} of "
                        f"{found['pairs_without_verdict'] + found['pairs']} pairs, because {found['reason']}",
                        flush=True,
                    )
        if done.proxy is not None:
            evaluation["best_of_n"] = self.best_of_n()
        return evaluation

    def rated(self) -> list[RatedAnswer]:
        """The models' answers with ratings of the language model, or else of the people who judged."""
        answers = {model.name: self.answers[model.name] for model in self.comparison.models}
        if self.rater is not None:
            return self.rater.rate(self.prompts, answers)
        people = [judge.rankings for judge in self.judges if isinstance(judge, HumanJudge)]
        return rated_by_people(people[0], self.prompts, answers) if people else []

    def best_of_n(self) -> dict[str, Any]:
        """Best-of-n by the labeler; writes best_of_n.jsonl."""
        done = self.comparison
        ours, theirs = ([self.answers[name][index] for index in done.chosen] for name in ("ppo", "sft"))
        sampled = with_part(self.measured(done.chosen_prompts, done.candidates), "proxy", done.scores[0])
        rows = [
            {"prompt_id": prompt.prompt_id, "answers": [asdict(given) for given in row]}
            for prompt, row in zip(done.chosen_prompts, sampled, strict=True)
        ]
        write_rows(done.out / "best_of_n.jsonl", rows)
        kl, bootstrap = [self.kl[index] for index in done.chosen], self.bootstrap.among(done.chosen)
        ours = with_part(ours, "proxy", done.scores[1])
        return BestOfN(sampled, ours, theirs, kl, self.labels.tie_width).results(bootstrap)

    def write(self, reward_model: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
        """Writes evaluation.json, generations.jsonl and headline.json; returns the headline.

        Args:
            reward_model: as in `evaluate`.
            before: headline numbers of the stages before this one.
        """
        out, evaluation = self.comparison.out, self.evaluate(reward_model)
        (out / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n")
        write_rows(out / "generations.jsonl", [self._row(index) for index in range(len(self.prompts))])
        perplexities, best_of_n = self.comparison.perplexities, evaluation.get("best_of_n")
        against = best_of_n["ppo_against"] if best_of_n else None
        best = reward_model["baselines"][reward_model["best_baseline"]]
        headline = {
            "reward_accuracy": reward_model["accuracy"]["mean"],
            **ends("reward_accuracy_best_baseline", best["accuracy"]),
            **ends("reward_above_best_baseline", best["difference"]),
            **ends("win_rate", evaluation["win_rate"]["sft"]),
            **ends("win_rate_both_end", evaluation["win_rate_both_end"]),
            **ends("win_rate_length_controlled", evaluation["win_rate_length_controlled"]),
            # The best of one answer is a plain answer of SFT.
            **ends("win_rate_vs_best_of_n", against["win_rate"] if against and against["n"] > 1 else None),
            **ends("chrf_difference", evaluation["chrf_difference"]),
            "kl": evaluation["kl"] and evaluation["kl"]["mean"],
            "perplexity_sft": perplexities["sft"],
            "perplexity_ppo": perplexities["ppo"],
            **before,
        }
        (out / "headline.json").write_text(json.dumps(headline, indent=2) + "\n")
        return headline

    def _row(self, index: int) -> dict[str, Any]:
        """A prompt with all answers to it, for generations.jsonl."""
        prompt = self.prompts[index]
        answers = {name: [asdict(given) for given in rows[index]] for name, rows in self.answers.items()}
        others = {name: row for name, row in answers.items() if name not in (*COMPARED, *NULL_BASELINES, "best_of_n")}
        return {
            "prompt_id": prompt.prompt_id,
            "user_id": prompt.user_id,
            "use_case": prompt.use_case,
            "prompt": prompt.text,
            "reference": prompt.completion,
            "kl": self.kl[index] if self.kl else None,
            **{name: answers[name] for name in COMPARED},
            **({"others": others} if others else {}),
            "ppo_against_sft": self.contest.verdicts["ppo"][self.judges[0].name][index][0][0],
        }


def ends(name: str, found: Mapping[str, float] | None) -> dict[str, float | None]:
    """A mean and its interval as three headline numbers."""
    keys = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
    return {key: None if found is None else found[end] for key, end in keys.items()}
