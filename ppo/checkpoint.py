"""Checkpoints of a PPO run, with its complete state (modeling/checkpoint.py has the format)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from modeling import checkpoint
from modeling.checkpoint import random_state
from modeling.sharded_checkpoint import allocate_optimizer, optimizer_tensors, weight_tensors
from ppo.actor_critic import ActorCritic
from ppo.ema import MovingAverage
from ppo.optimizers import Optimizers


class Stateful(Protocol):
    """Adaptive state that consists of a few numbers. Floats are restored exactly."""

    def state_dict(self) -> dict[str, float | int]:
        """The numbers."""

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Restores them."""


@dataclass
class Progress:
    """The progress of a run between two iterations."""

    iteration: int
    """Number of finished iterations."""
    prompt_position: int
    text_position: int
    states: dict[str, dict[str, float | int]]
    """The state of each `Stateful`, by name."""
    random: dict[str, Tensor]
    """This process's `random_state`."""


@dataclass
class Trained:
    """The training state, which must be the same in all processes."""

    models: ActorCritic
    optimizers: Optimizers
    average: MovingAverage
    stateful: Mapping[str, Stateful] = field(default_factory=dict)

    def states(self) -> dict[str, dict[str, float | int]]:
        """The current states of `stateful`."""
        return {name: item.state_dict() for name, item in self.stateful.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The weights, EMA and optimizer states."""
        policy, value = self.models.policy_parameters, self.models.value_parameters
        return {
            **weight_tensors("policy", policy),
            **weight_tensors("value", value),
            **weight_tensors("average", self.average.average),
            **optimizer_tensors("policy_optimizer", self.optimizers.policy, policy),
            **optimizer_tensors("value_optimizer", self.optimizers.value, value),
        }

    def allocate(self, saved: Mapping[str, torch.Size]) -> None:
        """Allocates the optimizers' states."""
        allocate_optimizer("policy_optimizer", self.optimizers.policy, self.models.policy_parameters, saved)
        allocate_optimizer("value_optimizer", self.optimizers.value, self.models.value_parameters, saved)

    def bytes_once_saved(self) -> int:
        """The size of a checkpoint: weights, two moments each, and the policy's EMA."""
        policy, value = (
            sum(p.numel() * p.element_size() for p in parameters.values())
            for parameters in (self.models.policy_parameters, self.models.value_parameters)
        )
        return 4 * policy + 3 * value + 2**16


class Checkpoints(checkpoint.Checkpoints):
    """The folder of a PPO run's checkpoints."""

    stage = "ppo"
    unit = "episode"
    remedy = "free some space, lower ppo.keep_checkpoints, or choose another --runs_folder"

    def begin(self, trained: Trained) -> Progress:
        """Restores the newest complete checkpoint, see `resume`; without one, returns the initial progress."""
        kept = self.resume(trained)
        if kept is None:
            return Progress(0, 0, 0, trained.states(), random_state(self.accelerator.device))
        for name, state in kept["states"].items():
            if name in trained.stateful:
                trained.stateful[name].load_state_dict(state)
        return Progress(**kept, random=random_state(self.accelerator.device))

    def save(self, progress: Progress, trained: Trained) -> None:
        """Writes a checkpoint, see `write`."""
        numbers = {
            "iteration": progress.iteration,
            "prompt_position": progress.prompt_position,
            "text_position": progress.text_position,
            "states": progress.states,
        }
        self.write(progress.iteration, numbers, progress.random, trained)
