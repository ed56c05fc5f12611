"""Checkpoints of a PPO run: everything that its future depends on, as safetensors and JSON.

A checkpoint is written beside its final name, flushed, then renamed, so that a folder `checkpoint-<iteration>` is whole or not there.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ppo.ema import MovingAverage
from ppo.models import PPOModels
from ppo.update import Optimizers


@dataclass
class Progress:
    """Where a run is."""

    iteration: int = 0
    """Roll-outs finished."""
    prompt_position: int = 0
    text_position: int = 0


def newest(folder: Path) -> Path | None:
    """The last whole checkpoint below a folder."""
    found = sorted(folder.glob("checkpoint-????????"))
    return found[-1] if found else None


def save_checkpoint(folder: Path, progress: Progress, models: PPOModels, optimizers: Optimizers, average: MovingAverage, keep: int) -> None:
    """Writes one and removes all but the newest `keep`."""
    final = folder / f"checkpoint-{progress.iteration:08d}"
    beside = folder / f".{final.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tensors = {
        "policy": detached(models.policy_parameters),
        "value": detached(models.value_parameters),
        "average": average.average,
        "policy_optimizer": optimizer_tensors(optimizers.policy, models.policy_parameters),
        "value_optimizer": optimizer_tensors(optimizers.value, models.value_parameters),
        "random": {"cpu": torch.get_rng_state()},
    }
    for name, values in tensors.items():
        save_file({key: value.contiguous() for key, value in values.items()}, beside / f"{name}.safetensors")
    (beside / "progress.json").write_text(json.dumps(asdict(progress)))
    for path in beside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    for old in sorted(folder.glob("checkpoint-????????"))[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(place: Path, models: PPOModels, optimizers: Optimizers, average: MovingAverage, device: torch.device) -> Progress:
    """Puts everything back where it was."""

    def tensors(name: str) -> dict[str, Tensor]:
        return load_file(place / f"{name}.safetensors", device=str(device))

    with torch.no_grad():
        for name, parameters in (("policy", models.policy_parameters), ("value", models.value_parameters)):
            saved = tensors(name)
            for key, parameter in parameters.items():
                parameter.copy_(saved[key])
    average.average = {key: value.clone() for key, value in tensors("average").items()}
    restore_optimizer(optimizers.policy, models.policy_parameters, tensors("policy_optimizer"))
    restore_optimizer(optimizers.value, models.value_parameters, tensors("value_optimizer"))
    torch.set_rng_state(load_file(place / "random.safetensors")["cpu"])
    return Progress(**json.loads((place / "progress.json").read_text()))


def detached(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The weights as plain tensors."""
    return {name: parameter.detach() for name, parameter in parameters.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Adam's state under `<parameter>//<name>`; the learning rate follows from the iteration."""
    return {f"{name}//{key}": value for name, p in parameters.items() for key, value in optimizer.state.get(p, {}).items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`."""
    for path, value in saved.items():
        name, key = path.split("//")
        # Adam keeps its step counter on the CPU, and would wait for the device at every step if it were elsewhere.
        optimizer.state[parameters[name]][key] = value.cpu() if key == "step" else value.clone()
