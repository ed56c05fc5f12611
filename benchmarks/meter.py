"""Time and memory of a part of a process.

Imports the standard library only, because a peer's environment has nothing of this project but this folder.
"""

import ctypes
import gc
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass
class Cost:
    """Complete at the end of `metered`."""

    loaded_gib: float
    """Resident memory before: interpreter, libraries, models."""
    peak_gib: float = 0.0
    """Peak of the resident memory, which includes what was loaded before."""
    cpu_seconds: float = 0.0
    """Of all threads of this process."""
    wall_seconds: float = 0.0


@contextmanager
def metered(models: Iterable[Any] = ()) -> Iterator[Cost]:
    """Context manager that measures what happens within.

    Args:
        models: their weights count as loaded. They are read first, since the pages of a memory-mapped file would
            otherwise count as memory of the work.
    """
    for model in models:
        for parameter in model.parameters():
            parameter.detach().sum()
    cost = Cost(resident_gib())
    # Resets the peak, so that loading does not count; containers may forbid it.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.wall_seconds, cost.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    cost.peak_gib = status_gib("VmHWM")


def resident_gib() -> float:
    """Resident memory, without what is free but not yet returned to the system."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return status_gib("VmRSS")


def status_gib(field: str) -> float:
    """A line of /proc/self/status."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 2**20


def numbers(cost: Cost, items: int, optimizer: Any, *libraries: ModuleType) -> dict[str, Any]:
    """A measurement: the cost of `items` prompts or episodes, Adam's number of steps, and versions."""
    versions = {"python": platform.python_version()} | {library.__name__: library.__version__ for library in libraries}
    steps = max(int(state["step"]) for state in optimizer.state.values())
    above = cost.peak_gib - cost.loaded_gib
    return asdict(cost) | {"above_loaded_gib": above, "items": items, "optimizer_steps": steps, "versions": versions}
