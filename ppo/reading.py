"""Tokenises responses again for the reward model, in the same form as the rankings that it was trained on.

Rankings are text, so the reward model was trained on answers that were decoded, stripped and tokenised again. A
sampled response may have different tokens for the same text (20 of 137 in the demo), and its score would differ. Every
response is therefore decoded and tokenised again, with the reward model's tokenizer and chat template, which may be of
another family. Responses whose tokens stay the same are scored in the policy's own micro-batches. A response that does
not fit the reward model's context is truncated at the end, and counted. Shapes: B episodes of this process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tokenize import count_prompt_tokens, decode_completion, encode_prompt
from modeling.batch import Batch, micro_batches
from modeling.generation import Generation
from modeling.load import context_length, same_tokenizer
from modeling.processes import sum_over_processes
from modeling.scalar import ScalarModel, closing_of
from reward.batches import answer_ids

Batches = Mapping[tuple[int, ...], Batch]
"""Micro-batches of episodes in the policy's tokens, as lists of episode indices."""


@dataclass(frozen=True)
class Episode:
    """A prompt and its response in the policy's tokens, and the prompt's record for a reward model's own tokenizer."""

    prompt: list[int]
    response: Generation
    record: Prompt | None = None


@dataclass(frozen=True)
class Reading:
    """From the policy's tokens to the reward model's."""

    policy_tokenizer: Any
    tokenizer: Any
    """The reward model's."""
    context: int
    """The most tokens that the reward model takes."""
    same_prompts: bool
    """Whether the reward model uses the policy's tokens for prompts."""
    closing: list[int] | None
    """What a reward model of other people's wants to see after any answer, see `modeling.scalar.closing_of`."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError for a prompt after which not one token of an answer would fit, or that the template
        refuses.
        """
        for prompt, count in zip(prompts, count_prompt_tokens(self.tokenizer, prompts), strict=True):
            if self.room(count) < 1:
                raise ValueError(
                    f"prompt {prompt.prompt_id!r} has {count} tokens for the reward model, which leaves no room for "
                    "an answer in its context of "
                    f"{self.context}: lower data.max_prompt_tokens, or choose another reward.base"
                )

    def room(self, prompt_tokens: int) -> int:
        """Tokens of an answer that fit behind a prompt."""
        return self.context - prompt_tokens - len(self.closing or [])

    def prompt(self, episode: Episode) -> list[int]:
        """The prompt in the reward model's tokens."""
        if self.same_prompts:
            return episode.prompt
        assert episode.record is not None, "a reward model with another tokenizer needs the prompt's text"
        return encode_prompt(self.tokenizer, episode.record)

    def answer(self, response: Generation) -> list[int]:
        """The response in the reward model's tokens, in the form of the rankings, without the closing."""
        text = decode_completion(self.policy_tokenizer, response.ids, response.ended)
        return answer_ids(self.tokenizer, text, response.ended, closing=None if self.closing is None else [])

    def rows(self, episodes: Sequence[Episode]) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        """(the reward model's tokens of the prompts, of the responses, whether a response was cut to fit)."""
        prompts, answers, truncated = [], [], []
        for episode in episodes:
            before, after = self.prompt(episode), self.answer(episode.response)
            room = self.room(len(before))
            assert room > 0, "check() comes first"
            prompts.append(before)
            answers.append([*after[:room], *(self.closing or [])])
            truncated.append(len(after) > room)
        return prompts, answers, truncated

    @torch.no_grad()
    def scores(
        self, reward: ScalarModel, batches: Batches, episodes: Sequence[Episode], max_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """(scores_B, truncated_B): the score at each answer's last token; whether the answer was cut to fit."""
        prompts, answers, truncated = self.rows(episodes)
        device = next(iter(batches.values())).device
        own = {
            row
            for row, episode in enumerate(episodes)
            if (prompts[row], answers[row]) == (episode.prompt, episode.response.ids)
        }
        found: dict[int, Tensor] = {}
        for rows, batch in batches.items():
            if own.intersection(rows):
                found |= {row: score for row, score in zip(rows, reward.scores(batch), strict=True) if row in own}
        # Own micro-batches for the others, as their lengths may differ. Responses to one prompt stay together.
        others = sorted(
            set(range(len(episodes))) - own, key=lambda row: (len(prompts[row]), prompts[row], len(answers[row]))
        )
        tokens = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        for group in micro_batches(others, tokens, max_tokens):
            batch = Batch(
                [prompts[row] for row in group], [answers[row] for row in group], self.tokenizer.pad_token_id, device
            )
            found |= zip(group, reward.scores(batch), strict=True)
        return torch.stack([found[row] for row in range(len(episodes))]), torch.tensor(truncated, device=device)


def read_scores(
    reading: Reading | None, reward: ScalarModel, batches: Batches, episodes: Sequence[Episode], max_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """(scores_B, truncated_B) of all episodes; `batches` holds their indices.

    Without a reading, for models without text, the policy's own tokens are scored, and truncated_B is None.
    """
    if not batches:  # a process may have no share
        return torch.zeros(0), None
    if reading is not None:
        return reading.scores(reward, batches, episodes, max_tokens)
    found_B = torch.cat([reward.scores(batch) for batch in batches.values()])
    scores_B = torch.empty_like(found_B)
    scores_B[[row for rows in batches for row in rows]] = found_B
    return scores_B, None


def reading_between(policy_tokenizer: Any, tokenizer: Any, settings: Any) -> Reading:
    """The `Reading` for a reward model with this tokenizer and configuration."""
    context, closing = context_length(settings, generating=False), closing_of(settings, tokenizer)
    return Reading(policy_tokenizer, tokenizer, context, same_tokenizer(policy_tokenizer, tokenizer), closing)


def reading_numbers(truncated_B: Tensor | None) -> dict[str, float]:
    """`reward_truncated`, the share of responses, over all processes, truncated to the reward model's context; {}
    without a reading."""
    if truncated_B is None:
        return {}
    cut, count = sum_over_processes(
        torch.stack([truncated_B.double().sum(), torch.ones_like(truncated_B, dtype=torch.float64).sum()])
    ).tolist()
    return {"reward_truncated": cut / count}
