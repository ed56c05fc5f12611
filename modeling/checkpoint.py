"""Checkpoints of training: weights, optimizer, random state and progress, as safetensors and JSON.

A checkpoint is written under a temporary name, flushed, then renamed. `checksums.json`, written last, lists the size
and the SHA-256 of each file, so that an incomplete or corrupted checkpoint is detected. The run folder must be on a
shared file system: each process writes its part of the tensors (modeling/sharded_checkpoint.py), and the first one
writes the rest and decides.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling.accelerator import from_main
from modeling.disk import discard, file_digest, free_bytes, mib, room_for, sync, write_whole
from modeling.seeds import derive_seed
from modeling.sharded_checkpoint import (
    allocate_optimizer,
    load_tensors,
    optimizer_tensors,
    save_tensors,
    saved_shapes,
    weight_tensors,
)

SUMS = "checksums.json"
STATE = "state"
"""The folder of a checkpoint's tensors."""


class Stateful(Protocol):
    """State that consists of a few numbers. Floats are restored exactly."""

    def state_dict(self) -> dict[str, Any]:
        """The numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""


@dataclass
class TrainingState:
    """What is trained, which must be the same in all processes."""

    models: Mapping[str, tuple[Mapping[str, nn.Parameter], torch.optim.Optimizer]]
    """The trained weights of each model, and their Adam."""
    averages: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Averages of weights."""
    stateful: Mapping[str, Stateful] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save, which are also those to load into."""
        found: dict[str, Tensor] = {}
        for name, (weights, optimizer) in self.models.items():
            found |= weight_tensors(name, weights) | optimizer_tensors(f"{name}_optimizer", optimizer, weights)
        for name, average in self.averages.items():
            found |= weight_tensors(name, average)
        return found

    def allocate(self, saved: Mapping[str, torch.Size]) -> None:
        """Allocates the optimizers' states, which do not exist before the first step, so that they can be loaded."""
        for name, (weights, optimizer) in self.models.items():
            allocate_optimizer(f"{name}_optimizer", optimizer, weights, saved)

    def bytes_once_saved(self) -> int:
        """The size of a checkpoint: weights, two moments of each, and averages."""
        trained = [weight for weights, _ in self.models.values() for weight in weights.values()]
        averages = [weight for average in self.averages.values() for weight in average.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*trained * 3, *averages)) + 2**16

    def states(self) -> dict[str, dict[str, Any]]:
        """The current state of each `stateful`."""
        return {name: item.state_dict() for name, item in self.stateful.items()}

    def load_states(self, saved: Mapping[str, dict[str, Any]]) -> None:
        """Restores those that were saved."""
        for name, item in self.stateful.items():
            if name in saved:
                item.load_state_dict(saved[name])


class Checkpoints:
    """The folder of a run's checkpoints. All processes call its public methods together."""

    stage = ""
    """Used in messages and for the seed of torch's generators."""
    unit = "example"
    """The unit of training progress, used in messages."""
    remedy = "free some space, or choose another --runs_folder"
    """Advice for when the disk is too small."""

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator, seed: int) -> None:
        self.folder, self.keep, self.accelerator, self.seed = folder, keep, accelerator, seed
        self.saved = 0
        """Step of the last checkpoint that this object wrote or read."""
        self._problems: dict[Path, str | None] = {}

    def resume(self, trained: TrainingState) -> dict[str, Any] | None:
        """Restores the newest complete checkpoint and returns its numbers; seeds torch's generators and returns None if
        there is no checkpoint.

        Raises ValueError when all checkpoints are damaged, or the disk has no room for the next ones.
        """
        place, said = from_main(self.accelerator, lambda: self._choose(trained))
        for line in said:
            self.accelerator.print(f"{self.stage}: {line}")
        if place is None:
            self._start_random()
            return None
        kept: dict[str, Any] = json.loads((place / "progress.json").read_text())
        processes = kept.pop("processes")
        if processes != self.accelerator.num_processes:
            self.accelerator.print(
                f"{self.stage}: {place.name} was written by {processes} process(es) and the run continues with "
                f"{self.accelerator.num_processes}: no {self.unit} is lost or repeated, but sums are rounded in a "
                "different order, so the result will not be bit-identical to that of an uninterrupted run"
            )
        if not (place / STATE).is_dir():
            raise ValueError(f"{place} was written by an older version of this software: start over with --force")
        saved = saved_shapes(place / STATE)
        trained.allocate(saved)
        tensors = trained.tensors()
        if saved != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError(f"{place} does not match the model of this run: start over with --force")
        load_tensors(place / STATE, tensors)
        self.saved = step_of(place)
        self._restore_random(load_file(place / "random.safetensors"))
        return kept

    def write(
        self, step: int, numbers: Mapping[str, Any], random: Mapping[str, Tensor], trained: TrainingState
    ) -> None:
        """Writes a checkpoint unless it is there already, and removes all but the newest complete ones. `random` is
        this process's `random_state`.

        Raises ValueError, in all processes, when the disk is full: earlier checkpoints stay, and the unfinished one is
        removed.
        """
        if step == self.saved:
            return
        every_random = gather_object([random])
        numbers = {**numbers, "processes": self.accelerator.num_processes}
        beside = self.folder / f".{name_of(step)}.partial"
        from_main(self.accelerator, lambda: self._make(beside))
        failure: Exception | None = None
        try:
            save_tensors(beside / STATE, trained.tensors())
        except Exception as error:  # the same in all processes; the first one reports it
            failure = error
        size = trained.bytes_once_saved()
        from_main(self.accelerator, lambda: self._finish(step, numbers, every_random, size, failure))
        self.saved = step

    def _choose(self, trained: TrainingState) -> tuple[Path | None, list[str]]:
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
                said = [f"{broken} is damaged ({why}): resuming from {place.name}" for broken, why in problems.items()]
                return place, said
            problems[place.name] = problem
        raise ValueError(all_damaged(self.folder, problems))

    def _require_room(self, trained: TrainingState, there: int) -> None:
        size = trained.bytes_once_saved()
        needed, free = size * max(1, self.keep + 1 - there), free_bytes(self.folder)
        if free < needed:
            raise ValueError(
                f"{self.folder} needs about {mib(needed)} for checkpoints of {mib(size)}, and {mib(free)} are free: "
                f"{self.remedy}"
            )

    def _make(self, beside: Path) -> None:
        self._clear()
        with room_for(beside):
            beside.mkdir(parents=True)
            sync(self.folder.parent)

    def _finish(
        self,
        step: int,
        numbers: Mapping[str, Any],
        every_random: Sequence[Mapping[str, Tensor]],
        size: int,
        failure: Exception | None,
    ) -> None:
        """Adds all but the tensors and renames the checkpoint, or removes it if writing the tensors failed."""
        final, beside = self.folder / name_of(step), self.folder / f".{name_of(step)}.partial"
        try:
            with room_for(final, size):
                if failure is not None:
                    raise failure
                save_file(
                    {f"{kind}_{rank}": one[kind] for rank, one in enumerate(every_random) for kind in one},
                    beside / "random.safetensors",
                )
                (beside / "progress.json").write_text(json.dumps(numbers, indent=2) + "\n")
                seal(beside)
                discard(final)  # a damaged one
                beside.rename(final)
                sync(self.folder)
        except BaseException:
            # Frees the space, since the disk may be full; the error is raised again.
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
        """Removes checkpoints that a kill left partly written or partly removed."""
        for rest in self.folder.glob(".checkpoint-*"):
            shutil.rmtree(rest)

    def _start_random(self) -> None:
        """Seeds this process's generators, differently in each process."""
        torch.manual_seed(
            derive_seed(self.seed, f"{self.stage} random state", self.accelerator.process_index, self.saved)
        )

    def _restore_random(self, saved: Mapping[str, Tensor]) -> None:
        """A process for which the checkpoint has no state is seeded."""
        self._start_random()
        if (cpu := saved.get(f"cpu_{self.accelerator.process_index}")) is not None:
            torch.set_rng_state(cpu)
        if (
            self.accelerator.device.type == "cuda"
            and (cuda := saved.get(f"cuda_{self.accelerator.process_index}")) is not None
        ):
            torch.cuda.set_rng_state(cuda, self.accelerator.device)


class SaveTimer:
    """Decides in all processes at the same step whether a checkpoint is due, by the first one's clock."""

    def __init__(self, minutes: float, accelerator: Accelerator) -> None:
        self.seconds, self.accelerator = 60 * minutes, accelerator
        self.restart()

    def restart(self) -> None:
        """Restarts the interval after a checkpoint has been written."""
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the interval since the last checkpoint has passed. All processes call it together."""
        return from_main(self.accelerator, lambda: time.monotonic() - self._last >= self.seconds)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of this process's torch generators; all other random numbers have their own streams."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def seal(folder: Path) -> None:
    """Flushes the files of a finished checkpoint and writes `checksums.json`, without which it counts as incomplete."""
    paths = sorted(folder.rglob("*"))
    sums = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in paths
        if path.is_file()
    }
    for path in (*paths, folder):
        sync(path)
    write_whole(folder / SUMS, (json.dumps(sums, indent=2) + "\n").encode())


def what_is_wrong(place: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it matches its checksums."""
    try:
        sums = json.loads((place / SUMS).read_text())
        for name, told in sums.items():
            path = place / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != told["size"]:
                return f"{name} has {path.stat().st_size} of {told['size']} bytes"
            if file_digest(path) != told["sha256"]:
                return f"{name} does not match its SHA-256"
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except (ValueError, TypeError, AttributeError, KeyError):
        return f"{SUMS} cannot be read"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def all_damaged(folder: Path, problems: Mapping[str, str]) -> str:
    """The error message for a run whose checkpoints are all unusable."""
    told = "; ".join(f"{name}: {why}" for name, why in problems.items())
    advice = "nothing was removed; restore a complete one, or start over with --force"
    return f"no checkpoint in {folder} is complete ({told}): {advice}"


def name_of(step: int) -> str:
    """The name of a checkpoint."""
    return f"checkpoint-{step:08d}"


def step_of(place: Path) -> int:
    """The step in a checkpoint's name."""
    return int(place.name.rsplit("-", 1)[1])


def newest(folder: Path) -> Path | None:
    """The last checkpoint below a folder, complete or not."""
    return max(folder.glob("checkpoint-????????"), default=None)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically. Raises ValueError when the disk is full."""
    beside = path.with_name(f".{path.name}.partial")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.cpu().contiguous() for name, weight in weights.items()}, beside)
        sync(beside)
        beside.replace(path)
        sync(path.parent)
