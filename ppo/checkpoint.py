"""Checkpoints of a PPO run, with its complete state (modeling/checkpoint.py has the format)."""

from dataclasses import dataclass

from torch import Tensor

from modeling import checkpoint
from modeling.checkpoint import TrainingState, random_state


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


class Checkpoints(checkpoint.Checkpoints):
    """The folder of a PPO run's checkpoints."""

    stage = "ppo"
    unit = "episode"
    remedy = "free some space, lower ppo.keep_checkpoints, or choose another --runs_folder"

    def begin(self, trained: TrainingState) -> Progress:
        """Restores the newest complete checkpoint, see `resume`; without one, returns the initial progress."""
        kept = self.resume(trained)
        if kept is None:
            return Progress(0, 0, 0, trained.states(), random_state(self.accelerator.device))
        trained.load_states(kept["states"])
        return Progress(**kept, random=random_state(self.accelerator.device))

    def save(self, progress: Progress, trained: TrainingState) -> None:
        """Writes a checkpoint, see `write`."""
        numbers = {
            "iteration": progress.iteration,
            "prompt_position": progress.prompt_position,
            "text_position": progress.text_position,
            "states": progress.states,
        }
        self.write(progress.iteration, numbers, progress.random, trained)
