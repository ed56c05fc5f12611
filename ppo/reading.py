"""What a reward model of its own reads of an episode, where it cannot take the policy's tokens as they are.

One of another family has a tokenizer and a chat template of its own and was trained on text laid out with them. So it gets the text: the
prompt's record in its template, the response decoded and encoded anew, as an answer was before somebody ranked it. A response longer than its
context has room for is cut at the end, and counted. Shapes: B episodes of this process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tokenize import count_prompt_tokens, decode_completion, encode_prompt
from modeling.batch import Batch, micro_batches
from modeling.load import context_length, same_tokenizer
from modeling.processes import sum_over_processes
from modeling.scalar import ScalarModel, closing_of
from reward.batches import answer_ids


@dataclass(frozen=True)
class Reading:
    """From the policy's tokens to the reward model's."""

    policy_tokenizer: Any
    tokenizer: Any
    """The reward model's."""
    context: int
    """The most tokens that the reward model takes."""
    rewrites: bool
    """Whether its tokens are others; else it reads the policy's."""
    closing: list[int] | None
    """What a reward model of other people's wants to see after any answer, see `modeling.scalar.closing_of`."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError for a prompt after which not one token of an answer would fit, or that the template refuses."""
        for prompt, count in zip(prompts, count_prompt_tokens(self.tokenizer, prompts), strict=True):
            if self.room(count) < 1:
                raise ValueError(
                    f"prompt {prompt.prompt_id!r} has {count} tokens as the reward model reads it, which leaves no room for an answer in its context "
                    f"of {self.context}: lower data.max_prompt_tokens, or choose another reward.base"
                )

    def room(self, prompt_tokens: int) -> int:
        """Tokens of an answer that fit behind a prompt."""
        return self.context - prompt_tokens - len(self.closing or [])

    def answer(self, response_ids: list[int]) -> list[int]:
        """A response in the reward model's tokens, without the closing."""
        if not self.rewrites:
            ended = response_ids[-1] == self.policy_tokenizer.eos_token_id
            return response_ids[:-1] if ended and self.closing is not None else response_ids
        text, ended = decode_completion(self.policy_tokenizer, response_ids)
        return answer_ids(self.tokenizer, text, ended, closing=None if self.closing is None else [])

    def rows(
        self, prompts: Sequence[Prompt], ids: Sequence[list[int]], responses: Sequence[list[int]]
    ) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        """(the reward model's tokens of the prompts, of the responses, whether a response was cut to fit). `ids` are the prompts in the policy's."""
        read_prompts, read_responses, truncated = [], [], []
        for prompt, prompt_ids, response_ids in zip(prompts, ids, responses, strict=True):
            before = encode_prompt(self.tokenizer, prompt) if self.rewrites else prompt_ids
            after, room = self.answer(response_ids), self.room(len(before))
            assert room > 0, "check() comes first"
            read_prompts.append(before)
            read_responses.append([*after[:room], *(self.closing or [])])
            truncated.append(len(after) > room)
        return read_prompts, read_responses, truncated

    def scores(
        self,
        reward: ScalarModel,
        prompts: Sequence[Prompt],
        ids: Sequence[list[int]],
        responses: Sequence[list[int]],
        max_tokens: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """(scores_B, truncated_B): the score at each response's last token, as the reward model reads it; whether that one was cut to fit."""
        befores, afters, truncated = self.rows(prompts, ids, responses)
        tokens = [len(before) + len(after) for before, after in zip(befores, afters, strict=True)]
        # The policy's micro-batches are sorted by its own tokens; these may be of quite other lengths. Responses to one prompt stand together.
        order = sorted(range(len(befores)), key=lambda row: (len(befores[row]), befores[row], len(afters[row])))
        scores_B = torch.zeros(len(order), device=device)
        for rows in micro_batches(order, tokens, max_tokens):
            scores_B[rows] = reward.scores(Batch([befores[row] for row in rows], [afters[row] for row in rows], self.tokenizer.pad_token_id, device))
        return scores_B, torch.tensor(truncated, device=device)


def read_scores(
    reading: Reading | None, reward: ScalarModel, batches: Iterable[tuple[Sequence[int], Batch]], prompts: Sequence[Prompt],
    ids: Sequence[list[int]], responses: Sequence[list[int]], max_tokens: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(scores_B, truncated_B or None where nothing can be cut) of all episodes, which `batches` hold by their numbers in the policy's tokens."""
    batches = list(batches)
    if not batches:  # a process may have no share
        return torch.zeros(0), None
    if reading is not None:
        return reading.scores(reward, prompts, ids, responses, max_tokens, batches[0][1].device)
    found_B = torch.cat([reward.scores(batch) for _, batch in batches])
    scores_B = torch.empty_like(found_B)
    scores_B[[row for rows, _ in batches for row in rows]] = found_B
    return scores_B, None


def reading_between(policy_tokenizer: Any, policy_context: int, tokenizer: Any, settings: Any) -> Reading | None:
    """How a reward model with this tokenizer and configuration reads; None where it takes the policy's tokens, and as many of them."""
    rewrites, closing = not same_tokenizer(policy_tokenizer, tokenizer), closing_of(settings, tokenizer)
    context = context_length(settings, generating=False)
    if not rewrites and closing is None and context >= policy_context:
        return None
    return Reading(policy_tokenizer, tokenizer, context, rewrites, closing)


def reading_numbers(truncated_B: Tensor | None) -> dict[str, float]:
    """`reward_truncated`, the share of all processes' responses that were cut to fit the reward model's context; nothing where none can be."""
    if truncated_B is None:
        return {}
    cut, count = sum_over_processes(torch.stack([truncated_B.double().sum(), torch.ones_like(truncated_B, dtype=torch.float64).sum()])).tolist()
    return {"reward_truncated": cut / count}
