"""Two programs that take turns, each time in a fresh process with one thread, and what is made of the numbers that they
print.

This imports nothing large, and nor should whoever uses it: a process begins with the memory that its parent holds.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THREADS = 1
Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Round:
    """What one process of each reported."""

    ours: Numbers
    peer: Numbers


class MeasurementError(Exception):
    """A process ended without its numbers; the message says which and why."""


def middle(rounds: Sequence[Round], number: Callable[[Round], float]) -> float:
    """The median over rounds. Ratios are to be taken within a round, where the machine was equally busy for both."""
    return median(number(one) for one in rounds)


def memory(rounds: Sequence[Round]) -> dict[str, float]:
    """Peaks of the whole processes and above what they held once all was loaded, in GiB, and our part of the peer's."""

    def above(numbers: Numbers) -> float:
        return float(numbers["peak_gib"] - numbers["loaded_gib"])

    return {
        "ours_peak_gib": middle(rounds, lambda one: one.ours["peak_gib"]),
        "peer_peak_gib": middle(rounds, lambda one: one.peer["peak_gib"]),
        "peak_ratio": middle(rounds, lambda one: one.ours["peak_gib"] / one.peer["peak_gib"]),
        "ours_above_loaded_gib": middle(rounds, lambda one: above(one.ours)),
        "peer_above_loaded_gib": middle(rounds, lambda one: above(one.peer)),
        "above_loaded_ratio": middle(rounds, lambda one: above(one.ours) / above(one.peer)),
    }


def report(settings: Mapping[str, Numbers], circumstances: Numbers) -> dict[str, Any]:
    """What is written: the first setting's four numbers ahead, then every setting."""
    headline = next(iter(settings.values()))
    return (
        {name: headline[name] for name in ("ours", "peer", "ratio", "memory_ratio")}
        | dict(circumstances)
        | {"settings": dict(settings)}
    )


def circumstances(measured: Mapping[str, Sequence[Round]], **more: Any) -> dict[str, Any]:
    """When, on what and with what."""
    first = next(iter(measured.values()))[0]
    versions = {"ours": first.ours["versions"], "peer": first.peer["versions"]}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": processor(),
        "threads": THREADS,
        "versions": versions,
        **more,
    }


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def ask(who: str, command: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a command prints last. Raises MeasurementError."""
    lines = run(who, command).strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        raise MeasurementError(f"{who} printed no numbers: {lines[-1] if lines else 'nothing at all'}") from None


def run(who: str, command: Sequence[str]) -> str:
    """What a command prints, with one thread and without network or GPU. Raises MeasurementError when it fails."""
    environment = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise MeasurementError(
            f"{who} could not be measured (exit status {done.returncode}): {lines[-1] if lines else 'it said nothing'}"
        )
    return done.stdout


def peer_command(python: Path, program: str) -> list[str]:
    """Runs a program of this folder in a peer's environment, whatever the caller's environment adds to Python's
    path.
    """
    # Absolute, but not resolved: a venv's Python is a link to the one that made it.
    return [str(python.absolute()), "-E", "-s", "-m", f"benchmarks.{program}"]


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def need_peer(parser: argparse.ArgumentParser, python: Path, target: str) -> None:
    """Ends the program with a sentence when the peer's environment is not there."""
    if not python.is_file():
        parser.exit(2, f"error: {python} is not there: `make {target}` makes the peer's environment\n")


def write(out: Path, numbers: Numbers) -> None:
    """The numbers as a JSON file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(numbers, indent=2) + "\n")
