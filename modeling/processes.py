"""The processes that work together, through accelerate: who is first, on which device, and sums over all of them.

Losses are sums divided by a count over all processes, so gradients are summed, not averaged: one process and many do
the same arithmetic.

    torchrun --nproc_per_node 8 -m stages.ppo --config configs/x.yaml
"""

import os
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from modeling.config import TIMEOUT_MINUTES
from modeling.memory import keep_freed_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among `count`."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Prints a line, once, and not into the middle of a progress bar."""
        if self.is_main:
            tqdm.write(line)
            sys.stdout.flush()

    def wait(self) -> None:
        """Returns when every process has come here."""
        PartialState().wait_for_everyone()

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in every process. An error there is raised everywhere."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except Exception as error:  # all others wait for this answer, whatever went wrong
                box[1] = sendable(error)
        broadcast_object_list(box)
        if box[1] is not None:
            box[1].from_main = True
            raise box[1]
        return cast(T, box[0])

    def gather(self, items: list[T]) -> list[T]:
        """The lists of all processes, one after the other, in every process."""
        return cast(list[T], gather_object(items)) if self.count > 1 else items

    def share(self, items: list[T]) -> list[T]:
        """This process's part of a list: every `count`-th from its rank on."""
        return items[self.rank :: self.count]

    def divide(self, size: int, name: str) -> int:
        """`size` over the processes. Raises ValueError when it does not divide."""
        if size % self.count:
            raise ValueError(f"{name}={size} is not divisible by the {self.count} processes")
        return size // self.count


def sendable(error: Exception) -> Exception:
    """The error, or one of its nearest built-in class with the same message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kinds = (ValueError, OSError, MemoryError, ImportError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        return kind(f"{type(error).__name__}: {error}")
    return error


def processes(device: str = "auto", timeout_minutes: float = TIMEOUT_MINUTES) -> Processes:
    """The processes that torchrun or accelerate started, or this process alone.

    Args:
        timeout_minutes: how long a process waits in a collective; the first call in a process sets it.
    """
    cpu = device == "cpu" or not torch.cuda.is_available()
    if cpu:
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        keep_freed_memory()
    # With accelerate's default all processes but the first would load models without weights.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    state = PartialState(cpu=cpu, timeout=timedelta(minutes=timeout_minutes))
    return Processes(rank=state.process_index, count=state.num_processes, device=state.device)


def part() -> None:
    """Destroys the process group; gloo threads left alive can abort the interpreter at exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; a process alone gets its tensor back. Not differentiable."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Adds up gradients over all processes in a single message. A parameter without a gradient here counts as zero."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
