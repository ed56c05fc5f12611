"""Adam for policy and value model, with warm-up and gradient clipping (Ouyang et al. 2022, appendices C and C.4)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from modeling import loss_scale
from modeling.finite import require_finite
from modeling.sharding import gradient_norm
from ppo.actor_critic import ActorCritic
from ppo.config import PPOConfig

ADVICE = (
    "lower ppo.learning_rate or ppo.value_learning_rate, or with float16 try another model.precision; the last "
    "checkpoint is kept"
)

Name = Literal["policy", "value"]


@dataclass
class Optimizers:
    """Adam for the policy and for the value model, each with its learning rate."""

    config: PPOConfig
    policy: torch.optim.Optimizer
    value: torch.optim.Optimizer
    scalers: dict[str, torch.amp.GradScaler]
    """Loss scalers of `policy` and `value`, enabled in float16."""
    iteration: int = 0
    """Index of the current iteration."""

    @staticmethod
    def make(models: ActorCritic, config: PPOConfig) -> "Optimizers":
        """New optimizers. The paper's betas are 0.9 and 0.95 (appendix C)."""
        betas = (config.adam_beta1, config.adam_beta2)

        def adam(parameters: dict[str, torch.nn.Parameter], learning_rate: float) -> torch.optim.Adam:
            return torch.optim.Adam(parameters.values(), lr=learning_rate, betas=betas, fused=True)

        policy = adam(models.policy_parameters, config.learning_rate)
        value = adam(models.value_parameters, config.value_learning_rate)
        parameters = {"policy": models.policy_parameters, "value": models.value_parameters}
        scalers = {
            name: loss_scale.loss_scaler(models.autocast_dtype, list(weights.values()))
            for name, weights in parameters.items()
        }
        return Optimizers(config, policy, value, scalers)

    def start_iteration(self, iteration: int) -> float:
        """Sets both learning rates; returns the policy's, 0 while only the value model is trained."""
        self.iteration, config = iteration, self.config
        own = iteration - config.value_warmup_iterations
        rate = 0.0 if self.value_only else config.learning_rate * warmup(own, config.warmup_iterations)
        value_rate = config.value_learning_rate * warmup(iteration, config.warmup_iterations)
        for optimizer, current in ((self.policy, rate), (self.value, value_rate)):
            for group in optimizer.param_groups:
                group["lr"] = current
        return rate

    @property
    def value_only(self) -> bool:
        """Whether the current iteration trains only the value model (`value_warmup_iterations`)."""
        return self.iteration < self.config.value_warmup_iterations

    @property
    def loss_scales(self) -> dict[str, Any]:
        """The enabled scalers, whose states are saved in checkpoints."""
        return {f"{name}_loss_scale": scaler for name, scaler in self.scalers.items() if scaler.is_enabled()}

    def backward(self, name: Name, loss: Tensor) -> None:
        """Adds the loss's gradient, scaled in float16."""
        self.scalers[name].scale(loss).backward()

    def part_norms(self, ppo: Iterable[Tensor], ptx: Iterable[Tensor]) -> dict[str, float]:
        """Norms of the two parts of the policy's gradient, which are still scaled, and their ratio; {} if one of them
        is not finite, since the step will then be skipped or raise.
        """
        scale = self.scalers["policy"].get_scale()
        ppo_norm, ptx_norm = gradient_norm(ppo) / scale, gradient_norm(ptx) / scale
        if not math.isfinite(ppo_norm + ptx_norm):
            return {}
        ratio = ptx_norm / max(ppo_norm, 1e-12)
        return {"ppo_grad_norm": ppo_norm, "ptx_grad_norm": ptx_norm, "ptx_to_ppo_grad_ratio": ratio}

    def step(self, name: Name) -> dict[str, float]:
        """Clips the gradient, which is already summed over the processes, takes a step and clears it; returns the norm
        before clipping and, in float16, whether the step was skipped.

        Raises ValueError, before the weights change, if the norm is not finite and this is not due to float16.
        """
        optimizer, scaler = getattr(self, name), self.scalers[name]
        norm, skipped = loss_scale.unscale_and_clip(scaler, optimizer, self.config.max_grad_norm)
        numbers = {} if skipped else {f"{name}_grad_norm": norm}
        require_finite(numbers, f"ppo, iteration {self.iteration + 1}", ADVICE)
        loss_scale.step(scaler, optimizer)
        return numbers | ({f"{name}_skipped": float(skipped)} if scaler.is_enabled() else {})


def warmup(iteration: int, iterations: int) -> float:
    """The factor on learning rates: linear from 0.1 at iteration 0 to 1 after `iterations`, then constant (C.4)."""
    return 1.0 if iteration >= iterations else 0.1 + 0.9 * iteration / iterations
