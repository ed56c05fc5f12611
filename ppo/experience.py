"""The episodes of a roll-out with everything that the update needs. Tensors over tokens are flat: the R response tokens
of all episodes of this process, concatenated.

Shapes: B episodes, R response tokens, T tokens of the longest response.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from data.records import Prompt
from modeling.batch import Batch, micro_batches
from modeling.generation import Generation
from modeling.sharding import Sharding
from modeling.shared_prefix import real_columns
from ppo.reward_scorer import Episode

Rows = tuple[int, ...]
"""Indices of the episodes of a micro-batch."""
IDLE: Rows = ()
"""A micro-batch of weight zero, see `Sharding.even`."""


@dataclass
class Rollout:
    """The sampled episodes of this process."""

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    responses: list[Generation]
    device: torch.device
    sharding: Sharding = field(default_factory=Sharding)
    minibatches: list[list[Rows]] = field(default_factory=list)
    """The micro-batches of each minibatch, see `make_micro_batches`."""
    batches: dict[Rows, Batch] = field(default_factory=dict)
    """The same micro-batches as batches."""

    @property
    def ids(self) -> list[list[int]]:
        """The tokens of each response."""
        return [response.ids for response in self.responses]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each response."""
        return [len(response.ids) for response in self.responses]

    @property
    def ended_B(self) -> Tensor:
        """Whether each response ends with an end token."""
        return torch.tensor([response.ended for response in self.responses], dtype=torch.bool, device=self.device)

    @property
    def mask_BT(self) -> Tensor:
        """True on response tokens up to and including the end token."""
        lengths_B = torch.tensor(self.lengths, device=self.device)
        return real_columns(max(self.lengths, default=0), lengths_B)

    def episodes(self) -> list[Episode]:
        """The episodes, for the reward scorer."""
        known = zip(self.prompt_ids, self.responses, self.prompts, strict=True)
        return [Episode(*episode) for episode in known]

    def make_micro_batches(self, minibatches: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Splits each minibatch, a list of episodes, into micro-batches: `minibatches` and `batches`.

        Scoring and update use the same micro-batches, so the ratio is exactly 1 at learning rate 0.
        """
        sizes = [len(prompt) + length for prompt, length in zip(self.prompt_ids, self.lengths, strict=True)]
        longest: dict[tuple[int, ...], int] = {}
        for prompt, size in zip(self.prompt_ids, sizes, strict=True):
            longest[tuple(prompt)] = max(longest.get(tuple(prompt), 0), size)

        def by_length(row: int) -> tuple[int, list[int], int]:
            """Episodes that share a prompt stay together."""
            return longest[tuple(self.prompt_ids[row])], self.prompt_ids[row], sizes[row]

        self.minibatches = [
            self.sharding.even(
                [tuple(rows) for rows in micro_batches(sorted(minibatch, key=by_length), sizes, max_tokens)], IDLE
            )
            for minibatch in minibatches
        ]
        self.batches = {rows: self.batch(rows) for of_minibatch in self.minibatches for rows in of_minibatch}

    def batch(self, rows: Rows) -> Batch:
        """A micro-batch; `IDLE` is one prompt token with an empty response."""
        if rows == IDLE:
            return Batch([[0]], [[]], self.device)
        return Batch([self.prompt_ids[row] for row in rows], [self.responses[row].ids for row in rows], self.device)

    def index(self, rows: Sequence[int]) -> Tensor:
        """Index of the tokens of these episodes in the flat tensors."""
        starts = torch.tensor([0, *self.lengths], dtype=torch.long).cumsum(0).tolist()
        spans = [torch.arange(starts[row], starts[row] + self.lengths[row]) for row in rows]
        return torch.cat([torch.arange(0), *spans]).to(self.device)

    def each_token(self, compute: Callable[[Batch], Tensor], dtype: torch.dtype) -> Tensor:
        """x_R of all micro-batches; `compute` returns that of one."""
        found_R = torch.zeros(sum(self.lengths), dtype=dtype, device=self.device)
        for rows in chain.from_iterable(self.minibatches):
            found_R[self.index(rows)] = compute(self.batches[rows]).to(dtype)
        return found_R

    def padded(self, x_R: Tensor) -> Tensor:
        """x_BT with zeros after the end of each response."""
        return torch.nn.utils.rnn.pad_sequence(list(x_R.split(self.lengths)), batch_first=True)

    def flat(self, x_BT: Tensor) -> Tensor:
        """x_R, the inverse of `padded`."""
        return x_BT[self.mask_BT]


@dataclass
class Scores:
    """The outputs of the models for a roll-out, without gradients."""

    rewards_B: Tensor
    """The total score of each episode, the weighted sum of the terms of `ppo.rewards`."""
    truncated_B: Tensor
    """Whether a response was truncated to a reward model's context."""
    logprobs_R: Tensor
    """Of the sampling policy: the old log-probabilities in PPO's ratio."""
    ref_logprobs_R: Tensor
    values_R: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    """The values_B of each term of the reward by name, before weighting."""


@dataclass
class Experience:
    """A scored roll-out with advantages."""

    rollout: Rollout
    scores: Scores
    scaled_B: Tensor | None
    """Scores after scaling and clipping; None if scores are used as they are."""
    rewards_R: Tensor
    """Of each token (ppo/rewards.py)."""
    advantages_R: Tensor
    returns_R: Tensor
