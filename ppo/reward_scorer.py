"""Scores responses with the reward model, tokenized in the form of the rankings that it was trained on.

Rankings are text, so the reward model was trained on answers that were decoded, stripped and tokenized again. A sampled
response may have different tokens for the same text (20 of 137 in the demo), and its score would differ. Every response
is therefore decoded and tokenized again, with the reward model's tokenizer and chat template, which may differ from the
policy's. Responses whose tokens stay the same are scored in the policy's micro-batches, whose frozen lower layers are
already computed. A response that does not fit the reward model's context is truncated at the end, and counted.
Shapes: B episodes of this process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tokenize import count_prompt_tokens, decode_completion, encode_prompt
from modeling.batch import Batch, micro_batches
from modeling.embeddings import embedding_count
from modeling.generation import Generation
from modeling.load import context_length, same_tokenizer
from modeling.models import RewardModel, answer_suffix_of, plain
from modeling.sharding import Sharding
from reward.batches import answer_ids, fitted

Batches = Mapping[tuple[int, ...], Batch]
"""Micro-batches in the policy's tokens, by the indices of their episodes."""


@dataclass(frozen=True)
class Episode:
    """A prompt and its response in the policy's tokens, and the prompt's record for tokenizing it again."""

    prompt: list[int]
    response: Generation
    record: Prompt | None = None


@dataclass(frozen=True)
class Tokens:
    """Converts the policy's tokens to the reward model's."""

    policy_tokenizer: Any
    tokenizer: Any
    """The reward model's."""
    context: int
    """Context length of the reward model."""
    same_prompts: bool
    """Whether prompts have the same tokens for both models."""
    answer_suffix: list[int] | None
    """Tokens appended to every answer, see `modeling.models.answer_suffix_of`."""
    embedding_count: int
    """The reward model's."""

    @staticmethod
    def between(policy_tokenizer: Any, tokenizer: Any, settings: Any) -> "Tokens":
        """For a reward model with this tokenizer and configuration."""
        context, answer_suffix = context_length(settings), answer_suffix_of(settings, tokenizer)
        same = same_tokenizer(policy_tokenizer, tokenizer)
        return Tokens(policy_tokenizer, tokenizer, context, same, answer_suffix, embedding_count(settings))

    def check(
        self, prompts: Sequence[Prompt], remedy: str = "lower data.max_prompt_tokens, or choose another reward model"
    ) -> None:
        """Raises ValueError for a prompt that leaves no room for an answer, or that the chat template rejects."""
        for prompt, count in zip(prompts, count_prompt_tokens(self.tokenizer, prompts), strict=True):
            if self.room(count) < 1:
                raise ValueError(
                    f"prompt {prompt.prompt_id!r} has {count} tokens for the reward model, which leaves no room for an "
                    f"answer in its context of {self.context}: {remedy}"
                )

    def room(self, prompt_tokens: int) -> int:
        """Number of answer tokens that fit after a prompt."""
        return self.context - prompt_tokens - len(self.answer_suffix or [])

    def prompt(self, episode: Episode) -> list[int]:
        """The prompt in the reward model's tokens."""
        if self.same_prompts:
            return episode.prompt
        assert episode.record is not None, "a reward model with another tokenizer needs the prompt's text"
        return encode_prompt(self.tokenizer, episode.record)

    def answer(self, response: Generation) -> list[int]:
        """The response in the reward model's tokens, in the form of the rankings."""
        text = decode_completion(self.policy_tokenizer, response.ids, response.ended)
        return answer_ids(self.tokenizer, text, response.ended, self.answer_suffix)

    def reads(self, episode: Episode) -> bool:
        """Whether the reward model has all of the policy's tokens of an episode, and they fit its context."""
        ids = [*episode.prompt, *episode.response.ids]
        return len(ids) <= self.context and max(ids) < self.embedding_count

    def rows(self, episodes: Sequence[Episode]) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        """(the reward model's tokens of the prompts, of the responses, whether a response was truncated)."""
        prompts, answers, truncated = [], [], []
        for episode in episodes:
            before, after = self.prompt(episode), self.answer(episode.response)
            room = self.room(len(before))
            assert room > 0, "check() comes first"
            prompts.append(before)
            answers.append(fitted(after, room, self.answer_suffix))
            truncated.append(len(answers[-1]) < len(after))
        return prompts, answers, truncated


@dataclass
class RewardScorer:
    """A reward model and its tokenization. If `tokens` is None, the policy's tokens are scored unchanged."""

    model: RewardModel
    tokens: Tokens | None

    @staticmethod
    def between(model: RewardModel, policy_tokenizer: Any, tokenizer: Any) -> "RewardScorer":
        """For a reward model that was saved here, with this tokenizer."""
        settings = plain(model.encoder.model).config
        return RewardScorer(model, Tokens.between(policy_tokenizer, tokenizer, settings))

    def check(self, prompts: Sequence[Prompt]) -> None:
        """See `Tokens.check`."""
        if self.tokens is not None:
            self.tokens.check(prompts)

    @torch.no_grad()
    def scores(self, batches: Batches, episodes: Sequence[Episode], max_tokens: int) -> tuple[Tensor, Tensor]:
        """(scores_B at each response's last token, truncated_B).

        Args:
            batches: the episodes in the policy's tokens.
            max_tokens: size of the micro-batches of responses whose tokens differ.
        """
        if not batches:  # a process may have no prompts; in `layer` mode it still makes passes
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        given = [(episode.prompt, episode.response.ids) for episode in episodes]
        if self.tokens is None:
            prompts, answers = [prompt for prompt, _ in given], [answer for _, answer in given]
            truncated = [False] * len(episodes)
        else:
            prompts, answers, truncated = self.tokens.rows(episodes)
        readable = [self.tokens is None or self.tokens.reads(episode) for episode in episodes]
        # A pass takes a whole micro-batch, with responses whose tokens differ.
        same = {
            row
            for rows in batches
            if all(readable[row] for row in rows)
            for row in rows
            if (prompts[row], answers[row]) == given[row]
        }
        passes = [(rows, batch) for rows, batch in batches.items() if same.intersection(rows)]
        # The others have other lengths, so they get separate micro-batches. Responses to one prompt stay together.
        others = sorted(
            set(range(len(episodes))) - same, key=lambda row: (len(prompts[row]), prompts[row], len(answers[row]))
        )
        sizes = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        device = next(iter(batches.values())).device
        for group in micro_batches(others, sizes, max_tokens):
            batch = Batch([prompts[row] for row in group], [answers[row] for row in group], device)
            passes.append((tuple(group), batch))
        found: dict[int, Tensor] = {}
        for rows, batch in Sharding.of(self.model.encoder.model).even(passes, ((-1,), Batch([[0]], [[0]], device))):
            wanted = same.intersection(rows) or rows
            found |= {row: score for row, score in zip(rows, self.model(batch), strict=True) if row in wanted}
        scores = [found[row] for row in range(len(episodes))]
        truncated_B = torch.tensor(truncated, dtype=torch.bool, device=device)
        return torch.stack(scores) if scores else torch.zeros(0), truncated_B
