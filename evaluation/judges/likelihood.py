"""A judge that scores an answer by the likelihood of the reference answer given it."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator

from data.messages import Message
from data.records import Demonstration, Prompt
from data.tokenize import encode_completion, encode_prompt
from evaluation.compare import Answer
from evaluation.judges.protocol import ScoringJudge
from evaluation.judges.simulated import Asked, Once
from evaluation.likelihood import likelihoods, per_token
from modeling.config import ModelConfig
from modeling.finite import OVERFLOW, require_finite
from modeling.load import autocast_dtype, context_length, load_causal, load_tokenizer, read_settings
from modeling.models import policy_model
from reward.batches import RankingExample

CUT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes from a part of a character."""
REQUEST: Message = {"role": "user", "content": "Say that again in other words."}


@dataclass
class ReferenceLikelihoodJudge(ScoringJudge):
    """Scores an answer by the mean log-probability per token, in nats, of the reference answer under the base model
    after the conversation: prompt, answer, `REQUEST`. Without the request, this is one direction of BARTScore (Yuan et
    al. 2021), log p(reference | answer), with the prompt before it.

    The score depends on the answer's text alone, not on whether it ended. As with `GoldJudge`, all processes must call
    `scores` the first time.
    """

    place: str
    """The base model: a folder, or a model on the Hub."""
    config: ModelConfig
    max_tokens: int
    """Maximum number of tokens per forward pass."""
    accelerator: Accelerator
    name = "reference_likelihood"

    def __post_init__(self) -> None:
        self.once = Once(self._judge)

    def check(self, prompts: Sequence[Demonstration]) -> None:
        """Raises ValueError for a prompt and a reference that leave no room for an answer, or if the chat template
        refuses the conversation.
        """
        for prompt in prompts:
            if self._room(prompt) < 1:
                raise ValueError(
                    f"evaluate.judges: for {self.name} the prompt {prompt.prompt_id!r} and its reference leave no room "
                    f"for an answer in the base model's context of {self._context} tokens: lower "
                    "data.max_prompt_tokens, or leave this judge out"
                )

    def scores(self, prompts: Sequence[Demonstration], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        """See `ScoringJudge`."""
        return self.once(prompts, answers)

    def _judge(self, asked: Sequence[Asked]) -> list[float]:
        items = [self._example(prompt, self._shortened(prompt, answer.text)) for prompt, answer in asked]
        model = load_causal(self.place, self.config, self._tokenizer).to(self.accelerator.device)
        policy = policy_model(model, autocast_dtype(self.config, self.accelerator.device))
        means = per_token(likelihoods(policy, items, self.max_tokens, self.accelerator), items)
        del model, policy
        gc.collect()
        total = sum(mean for (mean,) in means)
        require_finite({"a log-probability": total}, str(self.place), OVERFLOW)
        return [mean for (mean,) in means]

    def _example(self, prompt: Demonstration, text: str) -> RankingExample:
        """The conversation, and the reference in place of the answers of a ranking."""
        again = Prompt(prompt=[*prompt.messages, {"role": "assistant", "content": text}, REQUEST])
        reference = encode_completion(self._tokenizer, prompt.completion)
        return RankingExample(encode_prompt(self._tokenizer, again), [reference], torch.zeros(1, 1, dtype=torch.bool))

    def _shortened(self, prompt: Demonstration, text: str) -> str:
        """An answer that does not fit is truncated at the end, as in PPO."""
        ids, room = encode_completion(self._tokenizer, text, ends=False), self._room(prompt)
        if len(ids) <= room:
            return text
        for kept in range(room, -1, -1):  # a character that was cut in two may have more tokens than its half had
            shortened = str(self._tokenizer.decode(ids[:kept])).rstrip(CUT)
            example = self._example(prompt, shortened)
            if len(example.prompt) + len(example.answers[0]) <= self._context:
                return shortened
        raise AssertionError("check() refuses such prompts")

    def _room(self, prompt: Demonstration) -> int:
        """Number of answer tokens that fit into the context."""
        empty = self._example(prompt, "")
        return self._context - len(empty.prompt) - len(empty.answers[0])

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.place, self.config)

    @cached_property
    def _context(self) -> int:
        return context_length(read_settings(self.place, self.config))
