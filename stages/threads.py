"""Chooses how idle OpenMP threads wait, before torch is loaded, because libgomp reads its settings only once.

By default they spin, which is fastest on an idle machine. Under other load, spinning threads take cores from the
threads that they wait for.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

SECONDS = 0.2
"""Seconds over which the load is measured: 20 ticks of the kernel's clock per core."""
BUSY_CORES = 0.5
"""Load of other processes, in cores, from which idle threads sleep; a desktop without work stays below it."""
OWN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_")
GPUS = ("/dev/nvidiactl", "/dev/kfd")


def choose_wait_policy(measure: Callable[[], tuple[float, int]] | None = None) -> None:
    """Sets OMP_WAIT_POLICY=PASSIVE for this process and its children, with a message, if other work runs on its cores.

    Changes nothing if the user has set a policy, on a GPU, on other systems than Linux, with one thread, and for
    --help. Several processes of one run on a machine cannot distinguish each other's load from other load, so they
    change nothing either.
    """
    if not sys.platform.startswith("linux") or not wanted(os.environ, sys.argv) or has_gpu(os.environ):
        return
    busy, cores = (measure or busy_cores)()
    policy = "OpenMP's default wait policy"
    if busy >= BUSY_CORES:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        policy = "OMP_WAIT_POLICY=PASSIVE"
    print(f"threads: {policy}, because other processes keep {busy:.1f} of {cores} cores busy", flush=True)


def wanted(environment: Mapping[str, str], arguments: list[str]) -> bool:
    """Whether a policy should be chosen."""
    chosen = any(name.startswith(OWN_SETTINGS) for name in environment)
    alone = environment.get("LOCAL_WORLD_SIZE", "1") == "1" and environment.get("OMP_NUM_THREADS") != "1"
    return alone and not chosen and not {"-h", "--help"} & set(arguments)


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether torch may find a GPU, without importing torch."""
    hidden = any(environment.get(name) in ("", "-1") for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))
    return not hidden and any(Path(place).exists() for place in GPUS)


def busy_cores() -> tuple[float, int]:
    """(cores that other processes keep busy, measured briefly; cores that this process may use)."""
    before = ticks()
    time.sleep(SECONDS)
    after = ticks()
    changes = [(after[core][0] - before[core][0], after[core][1] - before[core][1]) for core in after if core in before]
    return sum(busy / max(1, total) for busy, total in changes), len(changes)


def ticks() -> dict[int, tuple[int, int]]:
    """(busy, all) ticks of each core that this process may use, from /proc/stat; empty if that cannot be read."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return {}
    usable = os.sched_getaffinity(0)
    found = {}
    for line in lines:
        name, *fields = line.split()
        core = name.removeprefix("cpu")
        if core.isdigit() and name != core and int(core) in usable:
            # user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user time
            counts = [int(field) for field in fields[:8]]
            found[int(core)] = (sum(counts) - counts[3] - counts[4], sum(counts))
    return found
