"""One roll-out: responses, scores, log-probabilities of policy and reference, values, rewards, advantages.

Shapes: B episodes of this process, T response tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tokenize import encode_prompt
from modeling.config import ModelConfig
from modeling.generate import Generation, Sampling, generate
from modeling.load import autocast
from modeling.logprobs import response_logprobs
from modeling.seeds import derive_seed
from modeling.sequences import Sequences
from modeling.trunk import Trunk, recorded
from ppo.advantages import gae, whiten
from ppo.config import PPOConfig
from ppo.models import PPOModels
from ppo.rewards import token_rewards


@dataclass
class Rollout:
    """Episodes with all that the update needs. Rows are episodes; columns beyond a row's response are masked."""

    prompts: list[list[int]]
    responses: list[list[int]]
    ended_B: Tensor
    scores_B: Tensor
    logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    mask_BT: Tensor
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    trunk: Trunk | None = None
    trunk_of: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    """For micro-batches, by their rows, what left the trunk."""
    reward_truncated_B: Tensor | None = None
    """Whether a response was cut to fit the reward model's context; None where none can be."""

    def sequences(self, rows: Sequence[int], pad_id: int) -> Sequences:
        """Some episodes laid out for a forward pass."""
        found = Sequences.pad([self.prompts[i] for i in rows], [self.responses[i] for i in rows], pad_id, self.mask_BT.device)
        return replace(found, trunk=self.trunk, trunk_BSH=self.trunk_of.get(tuple(rows)))

    def columns(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Per-token tensors of some episodes, cut to the longest response among them."""
        width = int(self.mask_BT[list(rows)].sum(1).max())
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value[list(rows), :width] for name, value in found.items() if name.endswith("_BT")}


def roll_out(
    models: PPOModels, prompts: Sequence[Prompt], config: PPOConfig, tokenizer: Any, seed: int, iteration: int, numbers: Sequence[int],
    on_batch: Callable[[int], object] | None = None,
) -> tuple[list[list[int]], list[Generation]]:  # fmt: skip
    """(prompt ids, responses) at the sampling temperature. `numbers` are the episodes' numbers in the whole roll-out: each has its own stream."""
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    sampling = Sampling(config.max_new_tokens, config.temperature, config.rollout_batch_size)
    seeds = [derive_seed(seed, "rollout", iteration, number) for number in numbers]
    with models.as_policy() as policy:
        return ids, generate(policy, ids, seeds, sampling, tokenizer.eos_token_id, tokenizer.pad_token_id, on_batch)


def micro_batches(rows: Sequence[int], size: int) -> list[list[int]]:
    """Rows in groups of at most `size`, in their given order: scoring and update must group alike for a ratio of exactly 1 at lr 0."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@torch.no_grad()
def score(
    models: PPOModels, prompts: list[list[int]], responses: list[Generation], groups: Sequence[Sequence[int]], config: PPOConfig,
    model_config: ModelConfig, pad_id: int, device: torch.device, records: Sequence[Prompt] = (),
) -> Rollout:  # fmt: skip
    """Everything that models say about the episodes, and the advantages that follow from it.

    `groups` are the micro-batches that the update will use. `records` are the prompts again, for a reward model that reads text.
    """
    count, width = len(responses), max(len(response.ids) for response in responses)
    logprobs_BT, ref_logprobs_BT, values_BT = (torch.zeros((count, width), device=device) for _ in range(3))
    scores_B = torch.zeros(count, device=device)
    lengths_B = torch.tensor([len(response.ids) for response in responses], device=device)
    mask_BT = torch.arange(width, device=device) < lengths_B[:, None]
    ended_B = torch.tensor([response.ended for response in responses], device=device)

    layouts = [Sequences.pad([prompts[i] for i in rows], [responses[i].ids for i in rows], pad_id, device) for rows in groups]

    def fill(target_BT: Tensor, rows: Sequence[int], found_BT: Tensor) -> None:
        target_BT[list(rows), : found_BT.shape[1]] = found_BT.float()

    trunk_of: dict[tuple[int, ...], Tensor] = {}
    with models.as_reference() as reference, autocast(model_config, device):
        for index, rows in enumerate(groups):
            with recorded(models.trunk) as passed:
                fill(ref_logprobs_BT, rows, response_logprobs(reference, layouts[index], config.temperature))
            if passed:
                trunk_of[tuple(rows)] = passed[0]
                layouts[index] = replace(layouts[index], trunk=models.trunk, trunk_BSH=passed[0])
    if config.old_logprobs == "recompute":
        with models.as_policy() as policy, autocast(model_config, device):
            for rows, sequences in zip(groups, layouts, strict=True):
                fill(logprobs_BT, rows, response_logprobs(policy, sequences, config.temperature))
    else:
        for row, response in enumerate(responses):
            logprobs_BT[row, : len(response.logprobs)] = torch.tensor(response.logprobs, device=device)
    with models.as_value() as value, autocast(model_config, device):
        for rows, sequences in zip(groups, layouts, strict=True):
            fill(values_BT, rows, value.values(sequences))
    truncated_B = None
    with models.as_reward() as reward, autocast(model_config, device):
        if models.reading is not None:
            tokens = [response.ids for response in responses]
            scores_B, truncated_B = models.reading.scores(reward, records, prompts, tokens, config.micro_batch_size, device)
        else:
            for rows, sequences in zip(groups, layouts, strict=True):
                scores_B[list(rows)] = reward.scores(sequences)

    rewards_BT = token_rewards(scores_B - config.missing_eos_penalty * (~ended_B).float(), logprobs_BT, ref_logprobs_BT, mask_BT, config.kl_coef)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, config.discount, config.gae_lambda)
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT)
    return Rollout(
        prompts=prompts,
        responses=[response.ids for response in responses],
        ended_B=ended_B,
        scores_B=scores_B,
        logprobs_BT=logprobs_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        values_BT=values_BT,
        mask_BT=mask_BT,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
        trunk=models.trunk,
        trunk_of=trunk_of,
        reward_truncated_B=truncated_B,
    )
