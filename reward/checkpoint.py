"""Checkpoints of a reward model in training (modeling/checkpoint.py has the format)."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from modeling import checkpoint
from modeling.checkpoint import TrainingState, random_state


class Checkpoints(checkpoint.Checkpoints):
    """The folder of a reward model's checkpoints."""

    stage = "reward"
    unit = "prompt"

    def begin(self, trained: TrainingState) -> tuple[int, list[dict[str, Any]]]:
        """Restores the newest complete checkpoint, see `resume`: (finished steps, the evaluation after each epoch)."""
        kept = self.resume(trained)
        if kept is None:
            return 0, []
        trained.load_states(kept["states"])
        return kept["step"], kept["epochs"]

    def save(self, step: int, epochs: list[dict[str, Any]], trained: TrainingState) -> None:
        """Writes a checkpoint, see `write`."""
        numbers = {"step": step, "epochs": epochs, "states": trained.states()}
        self.write(step, numbers, random_state(self.accelerator.device), trained)


def set_step(schedule: LambdaLR, step: int) -> None:
    """Sets a schedule and its optimizer's learning rates to those after `step` optimizer steps."""
    peaks_and_factors = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    rates = [peak * factor(step) for peak, factor in peaks_and_factors]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    then = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    schedule.load_state_dict(schedule.state_dict() | then)
