"""Measures two programs in turn, each time in a new process with one thread, and compares their numbers.

Imports nothing large, because a child process starts with the memory of its parent.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks.work import PPOWork, Work
from stages.threads import BUSY_CORES

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = {"long": (), "early": ("24",)}
"""Arguments of benchmarks/fixture.py for each value of `Work.models`."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
}
Numbers = Mapping[str, Any]


class MeasurementError(Exception):
    """A program failed or did not do the configured work; the message says which and why."""


@dataclass(frozen=True)
class Side:
    """A program to measure."""

    name: str
    work: Work
    program: Literal["ours", "peers"] = "ours"
    launcher: tuple[str, ...] = ()
    """Arguments of Python before `-m benchmarks.ours`."""
    layout: str | None = None
    """How the models must be distributed, as the program reports it."""

    def command(self, python: Path, folder: str) -> list[str]:
        """The command line, with fixtures in a folder."""
        work = asdict(self.work) | {"models": f"{folder}/{self.work.models}"}
        kind = "ppo" if isinstance(self.work, PPOWork) else "reward"
        # A peer must not import packages from PYTHONPATH. The path is not resolved, as a venv's Python is a link.
        start = [str(python.absolute()), "-E", "-s"] if self.program == "peers" else [sys.executable, *self.launcher]
        return [*start, "-m", f"benchmarks.{self.program}", kind, json.dumps(work)]


@dataclass(frozen=True)
class Benchmark:
    """A comparison and how it is reported."""

    name: str
    unit: str
    """Of the speeds: `items` per second of `clock`."""
    clock: Literal["cpu_seconds", "wall_seconds"]
    memory: str
    """The name of the memory number that is compared."""
    settings: Mapping[str, tuple[Side, Side]]
    """Ours and the peer of each setting; the first is the headline."""
    trl: str | None = None
    """The version of the peer, which has an environment of its own."""
    columns: tuple[str, ...] = ()
    """More numbers for the table."""

    def speed(self, numbers: Numbers) -> float:
        """In `unit`."""
        return float(numbers["items"] / numbers[self.clock])

    def summary(self, rounds: Sequence[tuple[Numbers, Numbers]]) -> dict[str, Any]:
        """Medians over rounds of (ours, peer). Ratios are taken within a round, as load varies between them."""
        found: dict[str, Any] = {
            "ours": median(self.speed(ours) for ours, _ in rounds),
            "peer": median(self.speed(peer) for _, peer in rounds),
            "ratio": median(self.speed(ours) / self.speed(peer) for ours, peer in rounds),
            "memory_ratio": median(ours[self.memory] / peer[self.memory] for ours, peer in rounds),
        }
        for name in (self.memory, *self.columns):
            found[f"ours_{name}"] = median(ours[name] for ours, _ in rounds)
            found[f"peer_{name}"] = median(peer[name] for _, peer in rounds)
        return found | {"rounds": [{"ours": ours, "peer": peer} for ours, peer in rounds]}

    def table(self, settings: Mapping[str, Numbers]) -> str:
        """A line per setting."""
        names = ["ours", "peer", "ratio", f"ours_{self.memory}", f"peer_{self.memory}", "memory_ratio"]
        names += [f"{who}_{name}" for name in self.columns for who in ("ours", "peer")]
        rows = [["", *names], *([name, *(f"{found[key]:.2f}" for key in names)] for name, found in settings.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def ask(who: str, command: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a command prints last. Raises MeasurementError."""
    lines = run(who, command).strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        raise MeasurementError(f"{who} printed no numbers: {lines[-1] if lines else 'nothing'}") from None


def run(who: str, command: Sequence[str]) -> str:
    """The output of a command with one thread and without network and GPU. Raises MeasurementError if it fails."""
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if re.search(r"Error: \S", line)]  # accelerate prints more after it
        raise MeasurementError(f"{who} could not be measured (exit code {done.returncode}): {(errors or lines)[-1]}")
    return done.stdout


def measure(benchmark: Benchmark, names: Sequence[str], rounds: int, peer_python: Path) -> dict[str, Any]:
    """The summary of each setting. In a round each program runs once, also if several settings compare it."""
    measured: dict[str, list[tuple[Numbers, Numbers]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as folder:
        for models in dict.fromkeys(side.work.models for name in names for side in benchmark.settings[name]):
            run("the fixture", [sys.executable, "-m", "benchmarks.fixture", f"{folder}/{models}", *FIXTURES[models]])
        for number in range(rounds):
            done: dict[Side, Numbers] = {}
            for name in names:
                for side in reversed(benchmark.settings[name]):
                    if side not in done:
                        seeded = replace(side, work=replace(side.work, seed=number))
                        found = done[side] = ask(side.name, seeded.command(peer_python, folder))
                        speed = f"{benchmark.speed(found):.2f} {benchmark.unit}"
                        print(f"round {number + 1}, {name}, {side.name}: {speed}", flush=True)
                        if side.layout is not None and side.layout not in found["layout"]:
                            raise MeasurementError(f"{side.name} ran as {found['layout']!r}, not as {side.layout!r}")
                ours, peer = (done[side] for side in benchmark.settings[name])
                if ours["optimizer_steps"] != peer["optimizer_steps"]:
                    steps = f"{ours['optimizer_steps']} and {peer['optimizer_steps']}"
                    raise MeasurementError(f"{name}: the two sides took {steps} optimizer steps")
                measured[name].append((ours, peer))
    return {name: benchmark.summary(found) for name, found in measured.items()}


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(benchmark: Benchmark, description: str | None) -> None:
    """The command line: measures, writes runs/bench/<name>.json and prints a table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--settings", nargs="+", choices=[*benchmark.settings], default=[*benchmark.settings])
    parser.add_argument("--out", type=Path, default=Path(f"runs/bench/{benchmark.name}.json"))
    peer = f"runs/bench/peers/trl-{benchmark.trl}/bin/python" if benchmark.trl else sys.executable
    parser.add_argument("--peer_python", type=Path, default=Path(peer))
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not arguments.peer_python.is_file():
        parser.exit(2, f"error: {arguments.peer_python} is missing: `make bench-{benchmark.name}` creates it\n")
    load = os.getloadavg()[0]
    print(f"load average at the start: {load:.2f}", flush=True)
    try:
        settings = measure(benchmark, arguments.settings, arguments.rounds, arguments.peer_python)
    except MeasurementError as error:
        parser.exit(2, f"error: {error}\n")
    headline = next(iter(settings.values()))
    circumstances = {
        "unit": benchmark.unit,
        "memory": benchmark.memory,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads_per_process": 1,
        "load_average_at_start": load,
        "busy": load > BUSY_CORES,
        "versions": {who: headline["rounds"][0][who]["versions"] for who in ("ours", "peer")},
        "work": {name: asdict(benchmark.settings[name][0].work) for name in settings},
    }
    report = {name: headline[name] for name in ("ours", "peer", "ratio", "memory_ratio")} | circumstances
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report | {"settings": settings}, indent=2) + "\n")
    print(f"{benchmark.unit}\n{benchmark.table(settings)}\nwritten to {arguments.out}")
    if circumstances["busy"]:
        print(f"warning: the machine was busy (load average {load:.1f} at the start): do not rely on these numbers")
