"""Compares base, SFT and PPO on the prompts of held-out users: samples answers, scores them, writes the results."""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from data.files import write_rows
from data.intervals import Bootstrap
from data.records import Demonstration
from data.sets import evenly
from data.tokenize import pretraining_chunks
from evaluation.best_of_n import Proxy, best_of_n, with_proxy
from evaluation.compare import (
    MODELS,
    Scoring,
    judged_answers,
    kl_between,
    logprobs_of_answers,
    parts_table,
    perplexity,
    preference,
    rubric_win_rates,
    win_rate,
)
from evaluation.config import EvaluateConfig
from evaluation.length_control import length_controlled
from labeling.config import LabelsConfig
from labeling.judges import closeness_judge
from labeling.sampling import AnswerSampler
from labeling.scratch import remembered
from modeling.config import ModelConfig
from modeling.generation import Generation
from modeling.load import autocast, autocast_dtype, load_causal, load_tokenizer
from modeling.models import policy_model
from modeling.run import Run

SCORING_BATCH = 16
"""Sequences per forward pass of scoring, which limits the memory for logits."""


@dataclass(kw_only=True)
class Comparison:
    """The comparison, and its results so far.

        comparison = Comparison(...)
        comparison.sample_and_score()
        evaluation = comparison.compare(reward_model)   # in the first process
        comparison.write(evaluation, seconds)

    A run that was killed continues from the folder `run.out/scratch`.
    """

    settings: EvaluateConfig
    labels: LabelsConfig
    model_config: ModelConfig
    run: Run
    places: Mapping[str, str]
    """The folders of PPO's, SFT's and the base model, in this order."""
    prompts: Sequence[Demonstration]
    texts: Sequence[str]
    """Documents for perplexity."""
    text_tokens: int
    """Tokens per example that they are cut into."""
    proxy: Proxy | None
    """The reward model, for best-of-n."""
    max_tokens: int
    """Maximum number of tokens per forward pass of the reward model."""
    generations: dict[str, list[list[Generation]]] = field(default_factory=dict, init=False)
    """The answers of each model to each prompt."""
    perplexities: dict[str, float] = field(default_factory=dict, init=False)
    logprobs: dict[str, list[list[float]]] = field(default_factory=dict, init=False)
    """Log-probabilities of PPO's answers under PPO and under SFT."""
    candidates: list[list[Generation]] = field(default_factory=list, init=False)
    """SFT's answers for best-of-n, to the prompts of `chosen`."""
    scores: list[list[list[float]]] = field(default_factory=list, init=False)
    """The reward model's scores of `candidates`, and of PPO's answers to the same prompts."""

    def __post_init__(self) -> None:
        """Raises ValueError for a prompt that leaves no room for an answer in the reward model's context."""
        assert self.run.out is not None
        self.out, self.scratch, self.accelerator = self.run.out, self.run.out / "scratch", self.run.accelerator
        self.chosen = evenly(range(len(self.prompts)), self.settings.best_of_n_prompts)
        self.chosen_prompts = [self.prompts[index] for index in self.chosen]
        if self.proxy is not None:
            self.proxy.check(self.chosen_prompts)

    def sample_and_score(self) -> None:
        """Runs the models, one after the other, and the reward model on the answers."""
        for name, place in self.places.items():
            config = self.model_config if name == "base" else self.model_config.of_export()
            tokenizer = load_tokenizer(place, config)
            model = load_causal(place, config, tokenizer).to(self.accelerator.device)
            self.sample(name, model, tokenizer)
            self.score(name, model, tokenizer)
            del model
            gc.collect()
        if self.proxy is not None:
            sets = [self.candidates, [self.generations["ppo"][index] for index in self.chosen]]
            score = partial(self.proxy.scores, self.chosen_prompts, sets, self.max_tokens, self.accelerator)
            self.scores = remembered(self.scratch, "reward scores", self.accelerator, score)

    def sample(self, name: str, model: Any, tokenizer: Any) -> None:
        """Samples a model's answers, and from SFT the candidates for best-of-n."""
        how = self.settings
        sampler = AnswerSampler(model, tokenizer, how, self.run.seed, self.accelerator, self.scratch)
        count = 1 if name == "base" else how.answers_per_prompt
        with autocast(self.model_config, self.accelerator.device):
            self.generations[name] = sampler.answers(self.prompts, count, f"evaluate {name}")
            if name == "sft" and self.proxy is not None:
                self.candidates = sampler.answers(self.chosen_prompts, how.best_of_n, "best of n")

    def score(self, name: str, model: Any, tokenizer: Any) -> None:
        """Computes a model's perplexity, and its log-probabilities of PPO's answers, in the same batches for PPO and
        SFT.
        """
        policy = policy_model(model, autocast_dtype(self.model_config, self.accelerator.device))
        chunks = pretraining_chunks(tokenizer, self.texts, self.text_tokens)
        texts = evenly(chunks, self.settings.perplexity_examples)
        measure = partial(perplexity, policy, texts, SCORING_BATCH, self.accelerator)
        self.perplexities[name] = remembered(self.scratch, f"perplexity {name}", self.accelerator, measure)
        if name != "base" and not self.settings.greedy:
            how = Scoring(self.settings.temperature, SCORING_BATCH, self.accelerator)
            look = partial(logprobs_of_answers, policy, tokenizer, self.prompts, self.generations["ppo"], how)
            self.logprobs[name] = remembered(self.scratch, f"log-probabilities by {name}", self.accelerator, look)

    def compare(self, reward_model: Mapping[str, Any]) -> dict[str, Any]:
        """The contents of evaluation.json; `reward_model` is the reward model's report on held-out rankings.

        Judges the answers, and writes best_of_n.jsonl if best-of-n is configured.
        """
        labels, width = self.labels, self.labels.tie_width
        bootstrap = Bootstrap(self.settings.bootstrap_resamples, [prompt.user_id for prompt in self.prompts])
        self.kl = [] if self.settings.greedy else kl_between(self.logprobs["ppo"], self.logprobs["sft"])
        judge = closeness_judge(labels.closeness)
        tokenizer = load_tokenizer(self.places["base"], self.model_config)
        self.answers = {
            name: judged_answers(tokenizer, self.prompts, self.generations[name], labels, judge) for name in MODELS
        }
        answers = self.answers
        evaluation = {
            "prompts": len(self.prompts),
            "users": len({prompt.user_id for prompt in self.prompts}),
            "weights": self.settings.weights,
            "answers_per_prompt": self.settings.answers_per_prompt,
            "win_rate": {name: win_rate(answers["ppo"], answers[name], width, bootstrap) for name in ("sft", "base")},
            "win_rate_length_controlled": length_controlled(answers["ppo"], answers["sft"], width, bootstrap),
            **rubric_win_rates(answers["ppo"], answers["sft"], labels, bootstrap),
            "models": parts_table(answers, bootstrap),
            "perplexity": self.perplexities,
            "kl": bootstrap.interval(self.kl) if self.kl else None,
            "reward_model": reward_model,
        }
        if self.proxy is not None:
            ours, theirs = ([answers[name][index] for index in self.chosen] for name in ("ppo", "sft"))
            sampled = judged_answers(tokenizer, self.chosen_prompts, self.candidates, labels, judge)
            sampled = with_proxy(sampled, self.scores[0])
            kl = [self.kl[index] for index in self.chosen]
            evaluation["best_of_n"] = best_of_n(
                sampled, with_proxy(ours, self.scores[1]), theirs, kl, width, bootstrap.among(self.chosen)
            )
            rows = [
                {"prompt_id": prompt.prompt_id, "answers": [asdict(given) for given in row]}
                for prompt, row in zip(self.chosen_prompts, sampled, strict=True)
            ]
            write_rows(self.out / "best_of_n.jsonl", rows)
        return evaluation

    def write(self, evaluation: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Writes evaluation.json, generations.jsonl and headline.json; returns the headline.

        Args:
            seconds: wall seconds of the stages before this one.
        """
        (self.out / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n")
        write_rows(self.out / "generations.jsonl", [self._row(index) for index in range(len(self.prompts))])
        won, reward_model = evaluation["win_rate"]["sft"], evaluation["reward_model"]
        headline = {
            "reward_accuracy": reward_model["accuracy"]["mean"],
            "win_rate": won["mean"],
            "win_rate_low": won["low"],
            "win_rate_high": won["high"],
            **ends("win_rate_both_end", evaluation["win_rate_both_end"]),
            **ends("win_rate_length_controlled", evaluation["win_rate_length_controlled"]),
            "kl": evaluation["kl"] and evaluation["kl"]["mean"],
            "perplexity_sft": self.perplexities["sft"],
            "perplexity_ppo": self.perplexities["ppo"],
            "seconds_before_evaluation": seconds,
        }
        (self.out / "headline.json").write_text(json.dumps(headline, indent=2) + "\n")
        return headline

    def _row(self, index: int) -> dict[str, Any]:
        """A prompt with all answers to it, for generations.jsonl."""
        prompt, answers = self.prompts[index], {name: self.answers[name][index] for name in MODELS}
        ours, theirs = (answers[name][0].parts["score"] for name in ("ppo", "sft"))
        return {
            "prompt_id": prompt.prompt_id,
            "user_id": prompt.user_id,
            "use_case": prompt.use_case,
            "prompt": prompt.text,
            "reference": prompt.completion,
            "kl": self.kl[index] if self.kl else None,
            **{name: [asdict(given) for given in row] for name, row in answers.items()},
            "ppo_against_sft": preference(ours, theirs, self.labels.tie_width),
        }


def ends(name: str, found: Mapping[str, float] | None) -> dict[str, float | None]:
    """A mean and its interval as three headline numbers."""
    keys = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
    return {key: None if found is None else found[end] for key, end in keys.items()}
