"""Checkpoints of a reward model in training (modeling/checkpoint.py has the format)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeling import checkpoint
from modeling.checkpoint import random_state
from modeling.sharded_checkpoint import allocate_optimizer, optimizer_tensors, weight_tensors


@dataclass
class Trained:
    """The trained weights, their optimizer, its schedule and the loss scale, which are the same in all processes."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler

    def tensors(self) -> dict[str, Tensor]:
        """The weights and Adam's state."""
        weights = weight_tensors("reward", self.parameters)
        return weights | optimizer_tensors("optimizer", self.optimizer, self.parameters)

    def allocate(self, saved: Mapping[str, torch.Size]) -> None:
        """Allocates Adam's state."""
        allocate_optimizer("optimizer", self.optimizer, self.parameters, saved)

    def set_step(self, step: int) -> None:
        """Sets the schedule to its state after `step` optimizer steps."""
        peaks_and_factors = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        rates = [peak * factor(step) for peak, factor in peaks_and_factors]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        then = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        self.schedule.load_state_dict(self.schedule.state_dict() | then)

    def bytes_once_saved(self) -> int:
        """The size of a checkpoint: weights and two moments."""
        return 3 * sum(p.numel() * p.element_size() for p in self.parameters.values()) + 2**16


class Checkpoints(checkpoint.Checkpoints):
    """The folder of a reward model's checkpoints."""

    stage = "reward"
    unit = "prompt"

    def begin(self, trained: Trained) -> tuple[int, list[dict[str, Any]]]:
        """Restores the newest complete checkpoint, see `resume`: (finished steps, the evaluation after each epoch)."""
        kept = self.resume(trained)
        if kept is None:
            return 0, []
        trained.set_step(kept["step"])
        trained.scaler.load_state_dict(kept["scaler"])
        return kept["step"], kept["epochs"]

    def save(self, step: int, epochs: list[dict[str, Any]], trained: Trained) -> None:
        """Writes a checkpoint, see `write`."""
        numbers = {"step": step, "epochs": epochs, "scaler": trained.scaler.state_dict()}
        self.write(step, numbers, random_state(self.accelerator.device), trained)
