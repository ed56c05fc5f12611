"""One optimizer step on one minibatch: policy with the pretraining mix, then the value model (Ouyang et al. 2022,
section 3.5 and C.4).

Gradients of micro-batches and of processes add up to the whole minibatch's: every loss is divided by the whole
minibatch's token count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from modeling.batch import micro_batches
from modeling.config import ModelConfig
from modeling.finite import require_finite
from modeling.load import autocast
from modeling.logprobs import accumulate_gradient, text_batch
from modeling.processes import Processes, sum_gradients, sum_over_processes
from ppo.config import PPOConfig
from ppo.losses import kl_loss, largest_ratio, policy_loss, policy_sums
from ppo.models import PPOModels
from ppo.rollout import Rollout, value_backward

ADVICE = "lower ppo.learning_rate or ppo.value_learning_rate; the last checkpoint is kept"


@dataclass
class Optimizers:
    """Adam for the policy and for the value model, each with its learning rate."""

    policy: torch.optim.Optimizer
    value: torch.optim.Optimizer
    iteration: int = 0
    """The iteration, for the learning rates and error messages."""

    @staticmethod
    def make(models: PPOModels, config: PPOConfig) -> "Optimizers":
        """New optimizers. The decays are 0.9 and 0.95 in the paper (appendix C)."""
        betas = (config.adam_beta1, config.adam_beta2)
        return Optimizers(
            policy=torch.optim.Adam(
                models.policy_parameters.values(), lr=config.learning_rate, betas=betas, fused=True
            ),
            value=torch.optim.Adam(
                models.value_parameters.values(), lr=config.value_learning_rate, betas=betas, fused=True
            ),
        )

    def set_learning_rates(self, config: PPOConfig, iteration: int) -> float:
        """Both rates for this iteration; returns the factor on the peak."""
        self.iteration = iteration
        factor = warmup(iteration, config.warmup_iterations)
        for optimizer, peak in ((self.policy, config.learning_rate), (self.value, config.value_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        return factor

    def apply(
        self,
        name: Literal["policy", "value"],
        parameters: Sequence[nn.Parameter],
        max_norm: float | None,
    ) -> float:
        """Clips the gradient (None does not), takes a step and clears it; returns the norm before clipping.

        Raises ValueError, before the weights change, when the norm is not finite.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm))
        require_finite({f"{name}_grad_norm": norm}, f"ppo, iteration {self.iteration + 1}", ADVICE)
        optimizer: torch.optim.Optimizer = getattr(self, name)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm


def warmup(iteration: int, iterations: int) -> float:
    """From a tenth at iteration 0 in a straight line to 1 after `iterations`, then constant (C.4)."""
    return 1.0 if iteration >= iterations else 0.1 + 0.9 * iteration / iterations


def step(
    models: PPOModels, optimizers: Optimizers, rollout: Rollout, groups: Sequence[Sequence[int]],
    chunks: Sequence[list[int]], config: PPOConfig,
    model_config: ModelConfig, pad_id: int, team: Processes, kl_coef: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """Updates both models on the episodes of `groups` (this process's share of the minibatch, in micro-batches) and its
    share of `chunks`.

    `kl_coef` is the price of KL where it stands in the loss; without it, as the run starts. Returns the minibatch's
    numbers, over all processes.
    """
    kl_coef = config.kl_coef if kl_coef is None else kl_coef
    own_tokens = sum(len(rollout.responses[row]) for rows in groups for row in rows)
    tokens = float(sum_over_processes(torch.tensor(float(own_tokens), device=team.device)))
    # The value model first: its gradient may wait there since scoring, and goes before the policy's comes.
    value_numbers = value_gradient(models, rollout, groups, config, model_config, tokens, team)
    value_parameters = list(models.value_parameters.values())
    sum_gradients(value_parameters)
    value_numbers["value_grad_norm"] = optimizers.apply("value", value_parameters, config.max_grad_norm)

    numbers = policy_gradient(models, rollout, groups, config, model_config, tokens, team, kl_coef)
    policy_parameters = list(models.policy_parameters.values())
    sum_gradients(policy_parameters)
    if config.ptx_coef > 0:
        numbers |= add_ptx_gradient(models, chunks, config, model_config, pad_id, team)
    numbers["policy_grad_norm"] = optimizers.apply("policy", policy_parameters, config.max_grad_norm)
    return numbers | value_numbers


def policy_gradient(
    models: PPOModels, rollout: Rollout, groups: Sequence[Sequence[int]], config: PPOConfig, model_config: ModelConfig,
    tokens: float,
    team: Processes, kl_coef: float = 0.0,
) -> dict[str, float]:  # fmt: skip
    """Accumulates PPO's gradient in the policy's `.grad`."""
    totals = torch.zeros(4, dtype=torch.float64, device=team.device)
    ratio = 1.0
    with models.as_policy() as policy:
        for rows in groups:
            given = rollout.tokens(rows)
            old_1R, mask_1R = given["logprobs"][None], torch.ones_like(given["logprobs"], dtype=torch.bool)[None]

            def loss_of(
                logprobs_N: Tensor,
                part: slice,
                given: dict[str, Tensor] = given,
                old_1R: Tensor = old_1R,
                mask_1R: Tensor = mask_1R,
            ) -> Tensor:
                logprobs_1N, mask_1N = logprobs_N[None], mask_1R[:, part]
                loss = policy_loss(
                    logprobs_1N,
                    old_1R[:, part],
                    given["advantages"][None, part],
                    mask_1N,
                    config.clip_range,
                    normalizer=tokens,
                )
                if config.kl_placement == "loss":
                    loss = loss + kl_loss(
                        logprobs_1N, given["ref_logprobs"][None, part], mask_1N, kl_coef, normalizer=tokens
                    )
                return loss

            loss, logprobs_R, entropy_R = accumulate_gradient(
                policy,
                rollout.batches[tuple(rows)],
                loss_of,
                config.temperature,
                lambda: autocast(model_config, team.device),
            )
            sums = policy_sums(logprobs_R[None], old_1R, mask_1R, config.clip_range)
            ratio = max(ratio, largest_ratio(logprobs_R[None], old_1R, mask_1R))
            totals += torch.stack(
                [loss, entropy_R.sum() / tokens, sums["clipped"] / tokens, sums["approximate_kl"] / tokens]
            ).double()
    loss_sum, entropy_mean, clipped, moved = sum_over_processes(totals).tolist()
    return {
        "policy_loss": loss_sum,
        "entropy": entropy_mean,
        "clip_fraction": clipped,
        "approximate_kl": moved,
        "ratio_max": max(team.gather([ratio])),
    }


def add_ptx_gradient(
    models: PPOModels,
    chunks: Sequence[list[int]],
    config: PPOConfig,
    model_config: ModelConfig,
    pad_id: int,
    team: Processes,
) -> dict[str, float]:
    """Adds ptx_coef times the gradient of the pretraining loss to the PPO gradient in `.grad`.

    The pretraining loss is a mean over the predicted tokens of the minibatch's chunks (ours: the paper does not say
    whether it sums or averages). The PPO gradient is kept separately meanwhile, so that the norm ratio can be logged.
    """
    ppo_gradients = {
        name: parameter.grad for name, parameter in models.policy_parameters.items() if parameter.grad is not None
    }
    ppo_norm = float(torch.nn.utils.get_total_norm(ppo_gradients.values()))
    for parameter in models.policy_parameters.values():
        parameter.grad = None
    tokens = float(sum(len(chunk) - 1 for chunk in chunks))
    loss_sum = torch.zeros((), dtype=torch.float64, device=team.device)
    mine = team.share(sorted(chunks, key=len))
    with models.as_policy() as policy:
        for numbers in micro_batches(
            range(len(mine)), [len(chunk) for chunk in mine], config.max_tokens_per_micro_batch
        ):
            text = text_batch([mine[number] for number in numbers], pad_id, team.device)
            loss, _, _ = accumulate_gradient(
                policy,
                text,
                lambda logprobs_N, part: -config.ptx_coef * logprobs_N.sum() / tokens,
                forward=lambda: autocast(model_config, team.device),
            )
            loss_sum += loss.double() / config.ptx_coef
    sum_gradients(models.policy_parameters.values())
    ptx_norm = float(
        torch.nn.utils.get_total_norm([p.grad for p in models.policy_parameters.values() if p.grad is not None])
    )
    for name, gradient in ppo_gradients.items():
        parameter = models.policy_parameters[name]
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return {
        "ptx_loss": float(sum_over_processes(loss_sum)),
        "ppo_grad_norm": ppo_norm,
        "ptx_grad_norm": ptx_norm,
        "ptx_to_ppo_grad_ratio": ptx_norm / max(ppo_norm, 1e-12),
    }


def value_gradient(
    models: PPOModels,
    rollout: Rollout,
    groups: Sequence[Sequence[int]],
    config: PPOConfig,
    model_config: ModelConfig,
    tokens: float,
    team: Processes,
) -> dict[str, float]:
    """Accumulates the value loss's gradient in the value model's `.grad`, unless scoring has done so for this
    minibatch.
    """
    total = rollout.started_loss(groups)
    if total is None:
        total = torch.zeros((), dtype=torch.float64, device=team.device)
        with models.as_value() as value:
            for rows in groups:
                given = rollout.tokens(rows)
                with autocast(model_config, team.device):
                    values_R = value.values(rollout.batches[tuple(rows)])
                total += value_backward(values_R, given["values"], given["returns"], config.value_clip_range, tokens)
    return {"value_loss": float(sum_over_processes(total))}
