"""Measures one policy of a sweep on held-out prompts and texts: its answers, their scores, its KL to SFT and its loss
on pretraining text.

All policies sample with the same random numbers, which reduces the noise of their differences; SFT uses others.
Shapes: P prompts, C chunks of text.
"""

import gc
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data.intervals import Bootstrap
from data.records import Demonstration
from data.tokenize import chunks_of_documents, decode_completion
from evaluation.best_of_n import Proxy
from evaluation.compare import Answer, kl_between, with_part
from evaluation.judges.simulated import ChrfJudge, RubricJudge, with_parts
from evaluation.likelihood import answered_prompts, likelihoods, text_losses
from labeling.config import LabelsConfig
from labeling.sampling import AnswerSampler
from labeling.scratch import remembered
from modeling.config import GenerationSettings, ModelConfig
from modeling.disk import write_whole
from modeling.generation import Generation
from modeling.load import autocast, autocast_dtype, load_causal, load_tokenizer
from modeling.models import PolicyModel, policy_model
from modeling.run import Run

FILE = "measured.json"
JUDGES = ("proxy", "gold", "chrf")
"""The reward model that PPO and best-of-n optimize, the gold judge, and chrF, on which no model was trained."""
OTHERS = ("complete", "tokens")
"""Context for the scores: the share of answers that end by themselves, and their length."""


@dataclass(frozen=True)
class Measured:
    """A policy's results."""

    answers: list[list[Answer]]
    """Of each prompt; their parts include `proxy`, the run's reward model, and `gold`."""
    kl: list[float]
    """Of each prompt, to SFT, in nats: an estimate from its answers."""
    losses: list[float]
    """Of each chunk of pretraining text, in nats per token."""
    documents: list[int]
    """The document of each chunk."""
    users: list[str]
    """The user of each prompt."""

    def write(self, folder: Path) -> None:
        """Writes measured.json."""
        write_whole(folder / FILE, f"{json.dumps(asdict(self))}\n".encode())

    @staticmethod
    def read(folder: Path) -> "Measured":
        """What `write` wrote."""
        found = json.loads((folder / FILE).read_text())
        return Measured(**found | {"answers": [[Answer(**given) for given in row] for row in found["answers"]]})

    def means(self, part: str) -> list[float]:
        """The mean of a part over each prompt's answers; `tokens` and `complete` too."""
        return [sum(value_of(answer, part) for answer in row) / len(row) for row in self.answers]

    def loss_interval(self, losses: Sequence[float], bootstrap: Bootstrap) -> dict[str, float]:
        """{mean, low, high, n, documents} of a number per chunk of text; documents are resampled.

        Args:
            bootstrap: for the number of resamples and the seed.
        """
        found = Bootstrap(bootstrap.resamples, self.documents, bootstrap.seed).interval(losses)
        return {("documents" if name == "users" else name): value for name, value in found.items()}


def value_of(answer: Answer, part: str) -> float:
    """A part of an answer's judgment, or its length."""
    return float(answer.tokens) if part == "tokens" else answer.parts[part]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The settings shared by all policies of a sweep. A measurement that was killed resumes from `run.out/scratch`."""

    run: Run
    sft: Path
    model_config: ModelConfig
    """For models that this run has saved."""
    prompts: Sequence[Demonstration]
    texts: Iterable[str]
    text_tokens: int
    """Tokens per chunk of the texts."""
    examples: int
    """Number of chunks, spread evenly over the texts."""
    sampling: GenerationSettings
    labels: LabelsConfig
    proxy: Proxy
    gold: Proxy | None
    """The gold reward model; None uses the rubric."""
    max_tokens: int
    """Maximum number of tokens per forward pass of scoring."""

    def measure(self, load: Callable[[], Any] | None, answers: int) -> Measured | None:
        """Results of the policy that `load` loads, or of SFT if that is None; the first process gets them, the others
        None.

        Raises ValueError for a prompt that leaves no room for an answer in a reward model's context.
        """
        judges = {"proxy": self.proxy} | ({"gold": self.gold} if self.gold is not None else {})
        for judge in judges.values():
            judge.tokens.check(self.prompts, "lower data.max_prompt_tokens")
        tokenizer = self._tokenizer
        chunks, documents = chunks_of_documents(tokenizer, self.texts, self.text_tokens, self.examples)
        generations, losses, logprobs = self._by_policy(load, answers, chunks)
        kl = [0.0] * len(self.prompts)
        if logprobs is not None:
            name, reference = "log-probabilities by SFT", partial(self._logprobs_by_sft, generations)
            kl = kl_between(logprobs, remembered(self._scratch, name, self.run.accelerator, reference))
        scores = {name: self._scores(name, judge, generations) for name, judge in judges.items()}
        if not self.run.accelerator.is_main_process:
            return None
        answered = [
            [Answer(decode_completion(tokenizer, one.ids, one.ended), one.ended, len(one.ids)) for one in row]
            for row in generations
        ]
        judged = with_parts(self.prompts, answered, RubricJudge(self.labels), ChrfJudge())
        judged = with_gold(with_part(judged, "proxy", scores["proxy"]), scores.get("gold"))
        return Measured(judged, kl, losses, documents, [prompt.user_id for prompt in self.prompts])

    def _by_policy(
        self, load: Callable[[], Any] | None, count: int, chunks: Sequence[list[int]]
    ) -> tuple[list[list[Generation]], list[float], list[list[float]] | None]:
        """(answers to each prompt, the loss of each chunk, log-probabilities of the answers: None for SFT)."""
        accelerator, tokenizer = self.run.accelerator, self._tokenizer
        policy = self._policy(load or self._load_sft)
        sampler = AnswerSampler(policy.causal, tokenizer, self.sampling, self.run.seed, accelerator, self._scratch)
        with autocast(self.model_config, accelerator.device):
            stream = "sweep SFT" if load is None else "sweep policy"
            generations = sampler.answers(self.prompts, count, stream)
        measure = partial(text_losses, policy, chunks, self.max_tokens, accelerator)
        losses = remembered(self._scratch, "losses", accelerator, measure)
        if load is None:
            return generations, losses, None
        look = partial(self._logprobs, policy, generations)
        return generations, losses, remembered(self._scratch, "log-probabilities", accelerator, look)

    def _logprobs_by_sft(self, given: Sequence[Sequence[Generation]]) -> list[list[float]]:
        return self._logprobs(self._policy(self._load_sft), given)

    def _logprobs(self, policy: PolicyModel, given: Sequence[Sequence[Generation]]) -> list[list[float]]:
        """A model's log-probabilities of all answers."""
        items = answered_prompts(self._tokenizer, self.prompts, given)
        return likelihoods(policy, items, self.max_tokens, self.run.accelerator, self.sampling.temperature)

    def _scores(self, name: str, judge: Proxy, given: Sequence[Sequence[Generation]]) -> list[list[float]]:
        """A reward model's scores of all answers."""
        score = partial(judge.scores, self.prompts, [given], self.max_tokens, self.run.accelerator)
        return remembered(self._scratch, f"{name} scores", self.run.accelerator, score)[0]

    @property
    def _scratch(self) -> Path:
        assert self.run.out is not None
        return self.run.out / "scratch"

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.sft, self.model_config)

    def _load_sft(self) -> Any:
        return load_causal(self.sft, self.model_config, self._tokenizer)

    def _policy(self, load: Callable[[], Any]) -> PolicyModel:
        gc.collect()  # frees the model before
        device = self.run.accelerator.device
        return policy_model(load().to(device), autocast_dtype(self.model_config, device))


def with_gold(answers: Sequence[Sequence[Answer]], scores: Sequence[Sequence[float]] | None) -> list[list[Answer]]:
    """The answers with the gold score among their parts: these, or the rubric's."""
    given = scores or [[answer.parts["score"] for answer in row] for row in answers]
    return with_part(answers, "gold", given)
