"""Compares models on the prompts of held-out users: samples their answers, and scores them with models.

evaluation/results.py judges the answers and writes the results.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data.records import Demonstration
from data.sets import evenly
from data.tokenize import pretraining_chunks
from evaluation.baselines import answers_to_others, best, echo, longest, spread
from evaluation.best_of_n import Proxy
from evaluation.compare import Answer, Answers, kl_between
from evaluation.config import COMPARED, EvaluateConfig
from evaluation.judges.gold import GoldJudge
from evaluation.judges.likelihood import ReferenceLikelihoodJudge
from evaluation.judges.protocol import Judge
from evaluation.likelihood import answered_prompts, likelihoods, perplexity
from evaluation.models import ComparedModel
from labeling.sampling import AnswerSampler
from labeling.scratch import remembered
from modeling.generation import Generation
from modeling.load import autocast, autocast_dtype, context_length, load_causal
from modeling.models import policy_model
from modeling.run import Run


@dataclass(kw_only=True)
class Comparison:
    """The comparison, and its results so far.

        comparison = Comparison(...)
        comparison.sample_and_score()
        Results(comparison, labels).write(...)   # in the first process

    A run that was killed continues from the folder `run.out/scratch`.
    """

    settings: EvaluateConfig
    run: Run
    models: Sequence[ComparedModel]
    """Base, SFT, PPO and others; SFT scores the answers of those before it."""
    prompts: Sequence[Demonstration]
    judges: Sequence[Judge]
    texts: Sequence[str]
    """Documents for perplexity."""
    text_tokens: int
    """Tokens per example that they are cut into."""
    proxy: Proxy | None
    """The reward model, for best-of-n."""
    max_tokens: int
    """Maximum number of tokens per forward pass of scoring."""
    generations: dict[str, list[list[Generation]]] = field(default_factory=dict, init=False)
    """The responses of each model to each prompt."""
    answers: dict[str, Answers] = field(default_factory=dict, init=False)
    """Their texts, and those of the null baselines and of best-of-n."""
    perplexities: dict[str, float] = field(default_factory=dict, init=False)
    kl: dict[str, list[float]] = field(default_factory=dict, init=False)
    """KL to SFT for each prompt, of the models that read prompts as SFT does; empty with greedy decoding."""
    candidates: list[list[Answer]] = field(default_factory=list, init=False)
    """SFT's answers for best-of-n, to the prompts at the indices `chosen`."""
    scores: list[list[list[float]]] = field(default_factory=list, init=False)
    """The reward model's scores of `candidates`, and of PPO's answers to the same prompts."""

    def __post_init__(self) -> None:
        """Raises ValueError for a prompt that leaves no room for an answer in the context of a model."""
        assert self.run.out is not None
        self.out, self.scratch, self.accelerator = self.run.out, self.run.out / "scratch", self.run.accelerator
        self.chosen = evenly(range(len(self.prompts)), self.settings.best_of_n_prompts)
        self.chosen_prompts = [self.prompts[index] for index in self.chosen]
        if self.proxy is not None:
            self.proxy.check(self.chosen_prompts)
        others = [model for model in self.models if model.name not in COMPARED]
        for model in others:
            model.check(self.prompts, self.settings.max_new_tokens)
        self.sft_tokenizer = next(model for model in self.models if model.name == "sft").tokenizer()
        self.alike = ["ppo", *(model.name for model in others if model.reads_as(self.sft_tokenizer))]
        """The models whose KL to SFT is estimated."""
        self.logprobs: dict[tuple[str, str], list[list[float]]] = {}
        """Log-probabilities of the first model's answers under the second one."""

    def sample_and_score(self) -> None:
        """Runs the models one after the other, then the reward models on their answers."""
        for model in self.models:
            tokenizer = model.tokenizer()
            loaded = load_causal(model.place, model.config, tokenizer).to(self.accelerator.device)
            self.sample(model, loaded, tokenizer)
            self.measure_perplexity(model, loaded, tokenizer)
            self.score(model, loaded, tokenizer)
            del loaded
            gc.collect()
        if not self.settings.greedy:
            self.kl = {name: kl_between(self.logprobs[name, name], self.logprobs[name, "sft"]) for name in self.alike}
        self.choose_best()
        self.add_null_baselines()
        of_prompt = [[answer for row in rows for answer in row] for rows in zip(*self.answers.values(), strict=True)]
        for judge in self.judges:
            if isinstance(judge, GoldJudge | ReferenceLikelihoodJudge):  # the others judge in the first process alone
                judge.scores(self.prompts, of_prompt)

    def sample(self, model: ComparedModel, loaded: Any, tokenizer: Any) -> None:
        """Samples a model's answers, and from SFT the candidates for best-of-n."""
        sampler = AnswerSampler(loaded, tokenizer, self.settings, self.run.seed, self.accelerator, self.scratch)
        read = partial(model.answers, tokenizer=tokenizer, sft_tokenizer=self.sft_tokenizer)
        with autocast(model.config, self.accelerator.device):
            found = sampler.answers(model.asked(self.prompts), model.answers_per_prompt, model.stream)
            if model.name == "sft" and self.proxy is not None:
                self.generations["best_of_n"] = sampler.answers(
                    self.chosen_prompts, self.settings.best_of_n, "best of n"
                )
                self.candidates = read(self.generations["best_of_n"])
        self.generations[model.name], self.answers[model.name] = found, read(found)

    def measure_perplexity(self, model: ComparedModel, loaded: Any, tokenizer: Any) -> None:
        """Computes a model's perplexity if it has SFT's tokenizer: otherwise it is not comparable."""
        fits = context_length(loaded.config) >= self.text_tokens
        if model.name in COMPARED or (model.name in self.alike and fits):
            policy = policy_model(loaded, autocast_dtype(model.config, self.accelerator.device))
            chunks = pretraining_chunks(tokenizer, self.texts, self.text_tokens)
            texts = evenly(chunks, self.settings.perplexity_examples)
            if model.name == "sft" and len(texts) < self.settings.perplexity_examples:
                self.accelerator.print(
                    f"evaluate: warning: the held-out pretraining text has {len(texts)} examples "
                    f"({sum(map(len, texts))} tokens) for the perplexity, fewer than evaluate.perplexity_examples="
                    f"{self.settings.perplexity_examples}: add documents to data.pretraining"
                )
            measure = partial(perplexity, policy, texts, self.max_tokens, self.accelerator)
            name = f"perplexity {model.stream}"
            self.perplexities[model.name] = remembered(self.scratch, name, self.accelerator, measure)

    def score(self, model: ComparedModel, loaded: Any, tokenizer: Any) -> None:
        """Computes log-probabilities for the KL to SFT, by the model and by SFT in the same batches."""
        if self.settings.greedy:
            return
        policy = policy_model(loaded, autocast_dtype(model.config, self.accelerator.device))
        for one in self.models:
            if one.name in self.alike and model.name in (one.name, "sft"):
                items = answered_prompts(tokenizer, self.prompts, self.generations[one.name])
                temperature = self.settings.temperature
                look = partial(likelihoods, policy, items, self.max_tokens, self.accelerator, temperature)
                name = f"log-probabilities of {one.stream} by {model.stream}"
                self.logprobs[one.name, model.name] = remembered(self.scratch, name, self.accelerator, look)

    def choose_best(self) -> None:
        """Scores the candidates for best-of-n and PPO's answers with the reward model; the best become answers."""
        if self.proxy is None:
            return
        sets = [self.generations["best_of_n"], [self.generations["ppo"][index] for index in self.chosen]]
        score = partial(self.proxy.scores, self.chosen_prompts, sets, self.max_tokens, self.accelerator)
        self.scores = remembered(self.scratch, "reward scores", self.accelerator, score)
        chosen = best(self.candidates, self.scores[0])
        self.answers["best_of_n"] = spread(chosen, self.chosen, len(self.prompts))

    def add_null_baselines(self) -> None:
        """Adds the null baselines that are possible."""
        sft = self.answers["sft"]
        several = spread(self.candidates, self.chosen, len(self.prompts)) if self.candidates else sft
        found = {
            "random": answers_to_others(sft, self.run.seed),
            "longest": longest(several),
            "echo": echo(self.prompts, self.sft_tokenizer),
        }
        self.answers |= {name: answers for name, answers in found.items() if answers is not None}
