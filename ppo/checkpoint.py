"""Checkpoints of a PPO run: everything that its future depends on, as safetensors and JSON.

A checkpoint is written beside its final name, flushed, then renamed; `checksums.json`, written last, lists its files with their sizes and digests, so
that one which a disk or a person has damaged is told from a whole one. The run folder must be on a file system that all processes see: the first one
writes and decides, and all of them read.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling.disk import discard, file_digest, free_bytes, mib, room_for, sync
from modeling.processes import Processes
from modeling.seeds import derive_seed
from ppo.ema import MovingAverage
from ppo.models import PPOModels
from ppo.update import Optimizers

SUMS = "checksums.json"


class Stateful(Protocol):
    """What adapts while a run goes on, and fits in a few numbers: floats come back to the last bit."""

    def state_dict(self) -> dict[str, float | int]:
        """The numbers."""

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Puts them back."""


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of this process's torch generators; everything else that is random has a stream of its own."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


@dataclass
class Progress:
    """Where a run is between two iterations."""

    iteration: int
    """Roll-outs finished."""
    prompt_position: int
    text_position: int
    states: dict[str, dict[str, float | int]]
    """Of each `Stateful`, by name."""
    random: dict[str, Tensor]
    """This process's `random_state`."""


@dataclass
class Trained:
    """What training changes. Everything in it must be the same in all processes."""

    models: PPOModels
    optimizers: Optimizers
    average: MovingAverage
    stateful: Mapping[str, Stateful] = field(default_factory=dict)

    def states(self) -> dict[str, dict[str, float | int]]:
        """Those of the `stateful`, as they are now."""
        return {name: item.state_dict() for name, item in self.stateful.items()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The weights, averages and optimizer states, by the name of the file they are kept in."""
        return {
            "policy": detached(self.models.policy_parameters),
            "value": detached(self.models.value_parameters),
            "average": self.average.average,
            "policy_optimizer": optimizer_tensors(self.optimizers.policy, self.models.policy_parameters),
            "value_optimizer": optimizer_tensors(self.optimizers.value, self.models.value_parameters),
        }

    def bytes_once_saved(self) -> int:
        """Of a checkpoint: weights, two moments each, and the policy's average."""
        policy, value = (
            sum(p.numel() * p.element_size() for p in parameters.values())
            for parameters in (self.models.policy_parameters, self.models.value_parameters)
        )
        return 4 * policy + 3 * value + 2**16


class Checkpoints:
    """The folder of a run's checkpoints; all processes call its public methods together."""

    def __init__(self, folder: Path, keep: int, team: Processes, seed: int) -> None:
        self.folder, self.keep, self.team, self.seed = folder, keep, team, seed
        self.saved = 0
        """Iteration of the last checkpoint that was written or read here."""
        self._problems: dict[Path, str | None] = {}

    def begin(self, trained: Trained) -> Progress:
        """Puts everything back where the newest whole checkpoint has it; where there is none at all, the run is at its start.

        Raises ValueError when there are some, but all are damaged, or the disk has no room for the next ones.
        """
        place, said = self.team.from_main(lambda: self._choose(trained))
        for line in said:
            self.team.say(f"ppo: {line}")
        if place is None:
            self._start_random()
            return Progress(0, 0, 0, trained.states(), random_state(self.team.device))
        kept = json.loads((place / "progress.json").read_text())
        processes = kept.pop("processes")
        if processes != self.team.count:
            self.team.say(
                f"ppo: {place.name} was written by {processes} process(es) and {self.team.count} go on: no episode is lost or repeated, but sums are "
                "rounded in another order, so the run will not end in the bytes of an uninterrupted one"
            )
        restore(place, trained, self.team.device)
        for name, state in kept["states"].items():
            if name in trained.stateful:
                trained.stateful[name].load_state_dict(state)
        self.saved = kept["iteration"]
        self._restore_random(load_file(place / "random.safetensors"))
        return Progress(**kept, random=random_state(self.team.device))

    def save(self, progress: Progress, trained: Trained) -> None:
        """Writes one unless it is there already, and removes all but the newest whole ones.

        Raises ValueError, in all processes, when the disk is full: the ones before stay, and what was written of this one goes.
        """
        if progress.iteration == self.saved:
            return
        every_random = self.team.gather([progress.random])
        self.team.from_main(lambda: self._write(progress, trained, every_random))
        self.saved = progress.iteration

    def _choose(self, trained: Trained) -> tuple[Path | None, list[str]]:
        self._clear()
        found = self._found()
        if not found:
            self._require_room(trained, 0)
            return None, []
        problems: dict[str, str] = {}
        for place in reversed(found):
            if (problem := self._problem(place)) is None:
                self._prune()
                self._require_room(trained, len(self._found()))
                return place, [f"{broken} is damaged ({why}): going on from {place.name}" for broken, why in problems.items()]
            problems[place.name] = problem
        raise ValueError(
            f"no checkpoint in {self.folder} is whole ({'; '.join(f'{name}: {why}' for name, why in problems.items())}): nothing was removed; put a "
            "whole one there, or start over with --force"
        )

    def _require_room(self, trained: Trained, there: int) -> None:
        size = trained.bytes_once_saved()
        needed, free = size * max(1, self.keep + 1 - there), free_bytes(self.folder)
        if free < needed:
            raise ValueError(
                f"{self.folder} needs about {mib(needed)} for checkpoints of {mib(size)}, and {mib(free)} are free: make room, lower "
                "ppo.keep_checkpoints, or choose another --runs_folder"
            )

    def _write(self, progress: Progress, trained: Trained, every_random: Sequence[Mapping[str, Tensor]]) -> None:
        final = self.folder / f"checkpoint-{progress.iteration:08d}"
        beside = self.folder / f".{final.name}.partial"
        self._clear()
        try:
            with room_for(final, trained.bytes_once_saved()):
                beside.mkdir(parents=True)
                sync(self.folder.parent)
                for name, values in trained.tensors().items():
                    save_file({key: value.contiguous() for key, value in values.items()}, beside / f"{name}.safetensors")
                save_file({f"{kind}_{rank}": one[kind] for rank, one in enumerate(every_random) for kind in one}, beside / "random.safetensors")
                numbers = {
                    "iteration": progress.iteration,
                    "prompt_position": progress.prompt_position,
                    "text_position": progress.text_position,
                    "states": progress.states,
                    "processes": self.team.count,
                }
                (beside / "progress.json").write_text(json.dumps(numbers, indent=2) + "\n")
                sums = {path.name: {"size": path.stat().st_size, "sha256": file_digest(path)} for path in sorted(beside.iterdir())}
                (beside / SUMS).write_text(json.dumps(sums, indent=2) + "\n")
                for path in (*beside.iterdir(), beside):
                    sync(path)
                discard(final)  # a damaged one
                beside.rename(final)
                sync(self.folder)
        except BaseException:
            # Its space is given back, as the disk may be full; the error goes on.
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self._problems[final] = None
        self._prune()

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-????????"))

    def _problem(self, place: Path) -> str | None:
        if place not in self._problems:
            self._problems[place] = what_is_wrong(place)
        return self._problems[place]

    def _prune(self) -> None:
        whole = [place for place in self._found() if self._problem(place) is None]
        for place in self._found():
            if len(whole) >= self.keep and place < whole[-self.keep]:
                discard(place)

    def _clear(self) -> None:
        """Removes what a kill left half written or half removed."""
        for rest in self.folder.glob(".checkpoint-*"):
            shutil.rmtree(rest)

    def _start_random(self) -> None:
        """Seeds this process's generators, each process's in a way of its own."""
        torch.manual_seed(derive_seed(self.seed, "ppo random state", self.team.rank, self.saved))

    def _restore_random(self, saved: Mapping[str, Tensor]) -> None:
        """A process that the checkpoint knows nothing of gets a state of its own."""
        self._start_random()
        if (cpu := saved.get(f"cpu_{self.team.rank}")) is not None:
            torch.set_rng_state(cpu)
        if self.team.device.type == "cuda" and (cuda := saved.get(f"cuda_{self.team.rank}")) is not None:
            torch.cuda.set_rng_state(cuda, self.team.device)


def newest(folder: Path) -> Path | None:
    """The last checkpoint below a folder, whole or not."""
    return max(folder.glob("checkpoint-????????"), default=None)


def what_is_wrong(place: Path) -> str | None:
    """Why a checkpoint cannot be used, or None where it is as it was written."""
    try:
        sums = json.loads((place / SUMS).read_text())
        for name, told in sums.items():
            path = place / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != told["size"]:
                return f"{name} has {path.stat().st_size} of {told['size']} bytes"
            if file_digest(path) != told["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except (ValueError, TypeError, AttributeError, KeyError):
        return f"{SUMS} cannot be read"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def restore(place: Path, trained: Trained, device: torch.device) -> None:
    """Weights, averages and optimizer states of a whole checkpoint. Raises ValueError when it is of another model."""

    def tensors(name: str) -> dict[str, Tensor]:
        # safetensors does not know the `cpu:0` that accelerate calls the CPU of one process of several.
        return load_file(place / f"{name}.safetensors", device="cpu" if device.type == "cpu" else str(device))

    with torch.no_grad():
        for name, parameters in (("policy", trained.models.policy_parameters), ("value", trained.models.value_parameters)):
            saved = tensors(name)
            if {key: value.shape for key, value in saved.items()} != {key: value.shape for key, value in parameters.items()}:
                raise ValueError(f"{place} is of another {name} model than this run's: start over with --force")
            for key, parameter in parameters.items():
                parameter.copy_(saved[key])
    # Copies, because a loaded tensor may be a window on its file.
    trained.average.average = {key: value.clone() for key, value in tensors("average").items()}
    restore_optimizer(trained.optimizers.policy, trained.models.policy_parameters, tensors("policy_optimizer"))
    restore_optimizer(trained.optimizers.value, trained.models.value_parameters, tensors("value_optimizer"))


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
        # Fused Adam keeps its step counter beside the parameter too.
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device, copy=True)
