"""A saved model to be evaluated: likelihoods of texts, and greedy answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.records import Prompt
from data.tokenize import check_prompt, count_prompt_tokens, decode_completion
from evaluation.likelihood import likelihoods
from evaluation.models import ComparedModel
from evaluation.tax.choices import Choice
from evaluation.tax.config import TaxConfig
from labeling.sampling import AnswerSampler
from modeling.config import GenerationSettings
from modeling.foreign import refuse_other_kinds
from modeling.load import autocast, autocast_dtype, context_length, load_causal, read_settings
from modeling.models import PolicyModel, policy_model
from reward.batches import RankingExample


@dataclass(frozen=True)
class Asked:
    """A prompt and its place in the user's file."""

    place: str
    prompt: Prompt


class TaxModel:
    """A model whose parts are loaded when they are first used, so that a resumed run loads no finished model."""

    def __init__(self, compared: ComparedModel, settings: TaxConfig, accelerator: Accelerator, scratch: Path) -> None:
        self.compared, self.settings, self.accelerator, self.scratch = compared, settings, accelerator, scratch
        self.name = compared.name

    @cached_property
    def model_settings(self) -> Any:
        """The configuration. Raises ValueError for anything but a causal language model."""
        refuse_other_kinds(self.compared.place, self.compared.config, f"tax: {self.name}")
        return read_settings(self.compared.place, self.compared.config)

    @cached_property
    def tokenizer(self) -> Any:
        """With the model's chat template."""
        return self.compared.tokenizer()

    @cached_property
    def causal(self) -> Any:
        """The language model."""
        return load_causal(self.compared.place, self.compared.config, self.tokenizer).to(self.accelerator.device)

    @cached_property
    def policy(self) -> PolicyModel:
        """The language model as a module that returns log-probabilities."""
        return policy_model(self.causal, autocast_dtype(self.compared.config, self.accelerator.device))

    @property
    def context(self) -> int:
        """Maximum number of tokens of a text whose likelihood is computed."""
        return context_length(self.model_settings)

    def likelihoods(self, choices: Sequence[Choice]) -> list[list[float]]:
        """The log-probability of each answer given its prompt, in nats."""
        items = [RankingExample(choice.prompt, choice.answers) for choice in choices]
        return likelihoods(self.policy, items, self.settings.max_tokens_per_micro_batch, self.accelerator)

    def check_room(self, asked: Sequence[Asked]) -> None:
        """Raises ValueError for a prompt that the chat template refuses, or that leaves no room for an answer."""
        context, new = context_length(self.model_settings), self.settings.max_new_tokens
        for one in asked:
            try:
                check_prompt(self.tokenizer, one.prompt)
            except ValueError as error:
                raise ValueError(f"{one.place}: {error} ({self.name})") from None
        for one, tokens in zip(asked, count_prompt_tokens(self.tokenizer, [one.prompt for one in asked]), strict=True):
            if tokens + new > context:
                raise ValueError(
                    f"{one.place}: the prompt has {tokens} tokens, which together with tax.max_new_tokens={new} "
                    f"exceeds the context of {self.name}, {context}"
                )

    def answers(self, asked: Sequence[Asked], stream: str) -> list[str]:
        """The greedy answer to each prompt, up to the first line break (appendix D)."""
        sampling = GenerationSettings(
            self.settings.max_new_tokens, temperature=0.0, batch_size=self.settings.batch_size
        )
        sampler = AnswerSampler(self.causal, self.tokenizer, sampling, 0, self.accelerator, self.scratch)
        with autocast(self.compared.config, self.accelerator.device):
            rows = sampler.answers([one.prompt for one in asked], 1, f"{self.compared.stream} {stream}")
        texts = [decode_completion(self.tokenizer, answer.ids, answer.ended) for (answer,) in rows]
        return [text.split("\n", 1)[0].strip() for text in texts]
