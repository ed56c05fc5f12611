"""Creates accelerate's `Accelerator`, and adds the operations that the stages need and it lacks.

Losses are sums divided by a count over all processes, so gradients are summed, not averaged: one process and many do
the same arithmetic.

    accelerate launch --config_file configs/accelerate/ddp.yaml -m stages.ppo --config configs/mine.yaml
"""

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from transformers.integrations import unset_hf_deepspeed_config

from modeling.config import TIMEOUT_MINUTES
from modeling.memory import keep_freed_memory

T = TypeVar("T")
POLL_SECONDS = 0.2
"""Seconds between looks at the store in `main_alone`."""


def launched_for(kind: str) -> bool:
    """Whether `accelerate launch` was given a config for "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("1", "true", "yes")


def make_accelerator(device: str = "auto", timeout_minutes: float = TIMEOUT_MINUTES) -> Accelerator:
    """The processes that torchrun or accelerate started, or this process alone.

    Args:
        timeout_minutes: how long a process waits in a collective; the first call in a process sets it.

    Raises ValueError for DeepSpeed with device="cpu" on a machine with GPUs.
    """
    cpu = device == "cpu" or not torch.cuda.is_available()
    options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)} | store_after_restart()
    if cpu:
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        keep_freed_memory()
        if launched_for("DEEPSPEED"):
            if torch.cuda.is_available():
                raise ValueError("DeepSpeed uses the GPUs of this machine: leave out model.device=cpu")
            # With accelerate's `cpu` DeepSpeed would silently become DDP.
            os.environ["ACCELERATE_USE_CPU"] = "false"
            cpu, options["backend"] = False, "gloo"
    # With accelerate's default all processes but the first would load models without weights.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    PartialState(cpu=cpu, **options)  # Accelerator passes no store to the process group
    accelerator = Accelerator(cpu=cpu)
    if launched_for("DEEPSPEED"):
        unset_hf_deepspeed_config()  # with ZeRO-3 transformers would partition every model that it loads
    return accelerator


def store_after_restart() -> dict[str, Any]:
    """Arguments of `init_process_group` after `torchrun --max-restarts` has restarted the processes of one machine.

    torch's own store still holds the addresses of the processes that have ended, and the new ones would connect to
    those. On several machines the restart counts differ, so nothing is changed there.
    """
    restarts, count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("WORLD_SIZE", "1")
    if restarts == "0" or count == "1" or count != os.environ.get("LOCAL_WORLD_SIZE") or launched_for("DEEPSPEED"):
        return {}
    prefixed = dist.PrefixStore(f"restart-{restarts}", launchers_store())
    return {"store": prefixed, "rank": int(os.environ["RANK"]), "world_size": int(count)}


def launchers_store() -> dist.Store:
    """The key-value store of the launcher, or of the first process."""
    return dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in every process. An error there is raised everywhere."""
    if accelerator.num_processes == 1:
        return make()
    box: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            box[0] = make()
        except Exception as error:  # all others wait for this answer, whatever went wrong
            box[1] = sendable(error)
    broadcast_object_list(box)
    if box[1] is not None:
        box[1].from_main = True
        raise box[1]
    return cast(T, box[0])


@contextmanager
def main_alone(accelerator: Accelerator) -> Iterator[None]:
    """Context manager for work of hours that the first process does alone: the others wait at its end, without a time
    limit. If the first process fails, the launcher ends them.
    """
    name = from_main(accelerator, lambda: f"rlhf-ptx/alone/{uuid4()}")
    yield
    if accelerator.num_processes == 1:
        return
    store = launchers_store()
    if accelerator.is_main_process:
        store.set(name, "")
    while not store.check([name]):
        time.sleep(POLL_SECONDS)
    # Without torchrun rank 0 hosts the store, so it must not exit while other ranks poll it.
    accelerator.wait_for_everyone()


def share_of(accelerator: Accelerator, items: Sequence[T]) -> list[T]:
    """This process's part of a sequence: every `num_processes`-th item, so that sorted work is shared evenly."""
    return list(items[accelerator.process_index :: accelerator.num_processes])


def divided(accelerator: Accelerator, size: int, name: str) -> int:
    """`size` over the processes. Raises ValueError when it does not divide."""
    if size % accelerator.num_processes:
        raise ValueError(f"{name}={size} is not divisible by the {accelerator.num_processes} processes")
    return size // accelerator.num_processes


def sendable(error: Exception) -> Exception:
    """The error, or one of its nearest built-in class with the same message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kinds = (ValueError, OSError, MemoryError, ImportError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        return kind(f"{type(error).__name__}: {error}")
    return error


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
