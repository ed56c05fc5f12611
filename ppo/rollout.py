"""One roll-out: responses, scores, log-probabilities of policy and reference, values, rewards, advantages.

Shapes: B episodes of this process, T response tokens, R the response tokens of some episodes, one episode after the
    other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tokenize import encode_prompt
from modeling.batch import Batch
from modeling.config import ModelConfig
from modeling.generation import Generation, Generator, Sampling, generator_for
from modeling.load import autocast, mixed_precision
from modeling.logprobs import response_logprobs
from modeling.processes import sum_over_processes
from modeling.seeds import derive_seed
from modeling.sequences import real_columns
from ppo.advantages import gae, whiten
from ppo.config import PPOConfig
from ppo.losses import value_loss
from ppo.models import PPOModels
from ppo.reading import Episode, read_scores
from ppo.rewards import token_rewards
from ppo.scaling import ScoreScale


@dataclass
class Rollout:
    """Episodes with all that the update needs. Rows are episodes; columns beyond a row's response are masked."""

    prompts: list[list[int]]
    responses: list[list[int]]
    ended_B: Tensor
    scores_B: Tensor
    """The reward model's, as they are."""
    logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    mask_BT: Tensor
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    batches: dict[tuple[int, ...], Batch] = field(default_factory=dict)
    """Micro-batches by their rows, with what left the trunk."""
    scaled_scores_B: Tensor | None = None
    """Scaled and cut as rewards are made from them; None where scores are taken as they are."""
    reward_truncated_B: Tensor | None = None
    """Whether a response was cut to fit the reward model's context; None where none can be."""
    started: tuple[tuple[tuple[int, ...], ...], Tensor] | None = None
    """A minibatch whose value gradient waits in `.grad` already, and its loss."""

    def started_loss(self, groups: Sequence[Sequence[int]]) -> Tensor | None:
        """This process's part of the value loss, once, if the value gradient of this minibatch is there already."""
        started, self.started = self.started, None
        return started[1] if started is not None and started[0] == tuple(map(tuple, groups)) else None

    def regroup(self, groups: Sequence[Sequence[int]]) -> None:
        """Replaces the micro-batches with those of another inner epoch."""
        like = next(iter(self.batches.values()))
        self.batches = {
            tuple(rows): replace(
                like,
                prompts=[self.prompts[row] for row in rows],
                responses=[self.responses[row] for row in rows],
                trunk_hidden=None,
            )
            for rows in groups
        }

    def tokens(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The per-token tensors of some episodes without padding, x_R each, by their names without the suffix."""
        mask_BT = self.mask_BT[list(rows)]
        names = [item.name for item in fields(self) if item.name.endswith("_BT") and item.name != "mask_BT"]
        return {name.removesuffix("_BT"): getattr(self, name)[list(rows)][mask_BT] for name in names}


def roll_out(
    models: PPOModels, prompts: Sequence[Prompt], config: PPOConfig, tokenizer: Any, seed: int, iteration: int,
    numbers: Sequence[int],
    generator: Generator | None = None,
) -> tuple[list[list[int]], list[Generation]]:  # fmt: skip
    """(prompt ids, responses) at the sampling temperature, by `generator_for` unless a generator is given.

    `numbers` are the episodes' numbers in the whole roll-out: each has its own stream.
    """
    distinct = {id(prompt): prompt for prompt in prompts}
    ids_of = {key: encode_prompt(tokenizer, prompt) for key, prompt in distinct.items()}
    ids = [ids_of[id(prompt)] for prompt in prompts]
    sampling = Sampling(config.max_new_tokens, config.temperature, batch_size=config.rollout_batch_size)
    seeds = [derive_seed(seed, "rollout", iteration, number) for number in numbers]
    with models.as_policy() as policy:
        return ids, (generator or generator_for(policy)).generate(policy, ids, seeds, sampling)


def refuse_recorded_logprobs(config: PPOConfig, model_config: ModelConfig, device: torch.device) -> None:
    """Raises ValueError when log-probabilities recorded while decoding would be compared with others in bfloat16.

    Decoding rounds differently from scoring and updating, so KL and ratios would mix two computations, which differ by
    0.05 nats per answer and more between equal models. In float32 they agree to about 1e-5.
    """
    if config.old_logprobs == "rollout" and mixed_precision(model_config, device):
        raise ValueError(
            "ppo.old_logprobs=rollout needs float32, but model.precision means bfloat16 here: set "
            "ppo.old_logprobs=recompute, or set model.precision=float32"
        )


def in_order(rows: Sequence[int], prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
    """Rows by length, those that share a prompt side by side."""
    longest: dict[tuple[int, ...], int] = {}
    for row in rows:
        key = tuple(prompts[row])
        longest[key] = max(longest.get(key, 0), lengths[row])
    return sorted(rows, key=lambda row: (longest[tuple(prompts[row])], prompts[row], lengths[row]))


@torch.no_grad()
def score(
    models: PPOModels, prompts: list[list[int]], responses: list[Generation], groups: Sequence[Sequence[int]],
    config: PPOConfig,
    model_config: ModelConfig, pad_id: int, device: torch.device, records: Sequence[Prompt] = (),
    kl_coef: float | None = None,
    scale: ScoreScale | None = None, first: Sequence[Sequence[int]] = (),
) -> Rollout:  # fmt: skip
    """Everything that models say about the episodes, and the advantages that follow from it.

    `groups` are the micro-batches that the update will use. `records` are the prompts again, for a reward model that
    reads text. `kl_coef` and `scale` are as the run has them by now; without them, as it starts. `first` are the
    micro-batches of the first minibatch, if the value model may learn from them at once.
    """
    kl_coef, scale = config.kl_coef if kl_coef is None else kl_coef, scale or ScoreScale(config)
    count, width = len(responses), max(len(response.ids) for response in responses)
    logprobs_BT, ref_logprobs_BT, values_BT = (
        torch.zeros((count, width), device=device, dtype=models.dtype) for _ in range(3)
    )
    lengths_B = torch.tensor([len(response.ids) for response in responses], device=device)
    mask_BT = real_columns(width, lengths_B)
    ended_B = torch.tensor([response.ended for response in responses], device=device)
    batches = {
        tuple(rows): Batch(
            [prompts[i] for i in rows], [responses[i].ids for i in rows], pad_id, device, trunk=models.trunk
        )
        for rows in groups
    }

    with models.as_reference() as reference, autocast(model_config, device):
        for rows, batch in batches.items():
            fill(ref_logprobs_BT, mask_BT, rows, response_logprobs(reference, batch, config.temperature))
    if config.old_logprobs == "recompute":
        with models.as_policy() as policy, autocast(model_config, device):
            for rows, batch in batches.items():
                fill(logprobs_BT, mask_BT, rows, response_logprobs(policy, batch, config.temperature))
    else:
        every = [logprob for response in responses for logprob in response.logprobs or ()]
        assert len(every) == int(lengths_B.sum()), "the configuration refuses generators that record none"
        fill(logprobs_BT, mask_BT, range(count), torch.tensor(every, device=device, dtype=models.dtype))
    with models.as_reward() as reward, autocast(model_config, device):
        known: Sequence[Prompt | None] = records or [None] * count
        episodes = [Episode(*episode) for episode in zip(prompts, responses, known, strict=True)]
        scores_B, truncated_B = read_scores(
            models.reading, reward, batches, episodes, config.max_tokens_per_micro_batch
        )

    scaled_B = scale(scores_B)
    charged_B = scaled_B - config.missing_eos_penalty * (~ended_B).to(scores_B)
    rewards_BT = token_rewards(
        charged_B, logprobs_BT, ref_logprobs_BT, mask_BT, kl_coef if config.kl_placement == "reward" else 0.0
    )
    value_loss_sum = values(models, batches, first, values_BT, rewards_BT, mask_BT, config, model_config, device)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, config.discount, config.gae_lambda)
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT)
    return Rollout(
        prompts=prompts,
        responses=[response.ids for response in responses],
        ended_B=ended_B,
        scores_B=scores_B,
        scaled_scores_B=scaled_B if scale.active else None,
        logprobs_BT=logprobs_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        values_BT=values_BT,
        mask_BT=mask_BT,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
        batches=batches,
        reward_truncated_B=truncated_B,
        started=None if value_loss_sum is None else (tuple(map(tuple, first)), value_loss_sum),
    )


def values(
    models: PPOModels, batches: Mapping[tuple[int, ...], Batch], first: Sequence[Sequence[int]], values_BT: Tensor,
    rewards_BT: Tensor,
    mask_BT: Tensor, config: PPOConfig, model_config: ModelConfig, device: torch.device,
) -> Tensor | None:  # fmt: skip
    """Fills values_BT, and goes backward at once where micro-batches are of the first minibatch: its update would only
    compute the same again.

    Returns this process's part of the first minibatch's loss, whose gradient then waits in `.grad`; None where there is
    no `first`.
    """
    learning = set(map(tuple, first))
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    tokens = float(sum_over_processes(mask_BT[[row for rows in first for row in rows]].sum())) if first else 0.0
    with models.as_value() as value:
        for rows, batch in batches.items():
            with torch.set_grad_enabled(rows in learning), autocast(model_config, device):
                values_R = value.values(batch)
            fill(values_BT, mask_BT, rows, values_R.detach())
            if rows in learning:
                index = list(rows)
                _, returns_BT = gae(
                    rewards_BT[index], values_BT[index], mask_BT[index], config.discount, config.gae_lambda
                )
                loss_sum += value_backward(
                    values_R, values_R.detach(), returns_BT[mask_BT[index]], config.value_clip_range, tokens
                )
    return loss_sum if first else None


def value_backward(
    values_R: Tensor, old_values_R: Tensor, returns_R: Tensor, clip_range: float | None, tokens: float
) -> Tensor:
    """Accumulates the value loss's gradient; returns the loss."""
    with torch.enable_grad():
        loss = value_loss(
            values_R[None],
            old_values_R[None],
            returns_R[None],
            torch.ones_like(values_R[None]),
            clip_range,
            normalizer=tokens,
        )
    loss.backward()
    return loss.detach().double()


def fill(target_BT: Tensor, mask_BT: Tensor, rows: Sequence[int], found_R: Tensor) -> None:
    """Puts tokens of some episodes in their places."""
    index = torch.tensor(rows, device=target_BT.device)
    row_R, column_R = mask_BT[index].nonzero(as_tuple=True)
    target_BT[index[row_R], column_R] = found_R
