"""What a stretch of work costs the process that does it: CPU seconds of all its threads, and memory above what it held
before.

Imports the standard library alone, since the peers' environments have nothing of this project but this folder.
"""

import ctypes
import gc
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


@dataclass
class Cost:
    """Known when the work is done."""

    loaded_gib: float
    """Held before: interpreter, libraries, models."""
    cpu_seconds: float = 0.0
    peak_gib: float = 0.0
    """The most held meanwhile, what was loaded included."""


@contextmanager
def metered() -> Iterator[Cost]:
    """Measures what happens within."""
    settle()
    cost, start = Cost(gib("VmRSS")), time.process_time()
    yield cost
    cost.cpu_seconds = time.process_time() - start
    cost.peak_gib = gib("VmHWM")


def settle() -> None:
    """Gives back what loading has left free, and forgets the most that was held so far, so that loading does not count
    as work.

    The system's own high-water mark is of no use to a process that others start: it begins with what its parent held.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    # Containers may forbid it; then the peak is that of the whole process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def touch(models: Iterable[Any]) -> None:
    """Reads all weights. Loaded ones are pages of a file until then, and would count as memory that the work took."""
    for model in models:
        for parameter in model.parameters():
            parameter.detach().sum()


def gib(field: str) -> float:
    """A line of the process's status, such as VmRSS."""
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) / 2**20


def calm_libraries() -> None:
    """No network, no threads of their own. Read by the libraries when they are imported, so call it before."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
