"""Reward-model training beside trl's RewardTrainer: CPU seconds a prompt, and peak memory, on the same model and token ids.

make bench-reward
python -m benchmarks.reward --rounds 2 --prompts 4 --peer_python runs/bench/peers/trl-1.16/bin/python

The two take turns, each time in a fresh process with one thread. This one imports nothing large: the peak that the system reports of a process
counts what its parent held when it was started.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
THREADS = 1


@dataclass(frozen=True)
class Setting:
    """Answers a prompt, and about how many tokens each has."""

    k: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def name(self) -> str:
        """Its key in the file."""
        return f"k{self.k}_{self.prompt_tokens}_{self.answer_tokens}"


SETTINGS = (Setting(9, 100, 100), Setting(9, 300, 100))
"""The first is the headline."""


@dataclass(frozen=True)
class Round:
    """What one process of each reported."""

    ours: Mapping[str, Any]
    peer: Mapping[str, Any]


class MeasurementError(Exception):
    """A process ended without its numbers; the message says which and why."""


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """One setting's numbers. Ratios are taken within a round, where the machine was equally busy for both, and their median over rounds is kept.

    `ours` and `peer` are CPU seconds a prompt; `ratio` is the peer's over ours, `memory_ratio` our peak over the peer's.
    """
    return {
        "ours": median(one.ours["cpu_seconds_a_prompt"] for one in rounds),
        "peer": median(one.peer["cpu_seconds_a_prompt"] for one in rounds),
        "ratio": median(one.peer["cpu_seconds_a_prompt"] / one.ours["cpu_seconds_a_prompt"] for one in rounds),
        "ours_peak_gib": median(one.ours["peak_gib"] for one in rounds),
        "peer_peak_gib": median(one.peer["peak_gib"] for one in rounds),
        "memory_ratio": median(one.ours["peak_gib"] / one.peer["peak_gib"] for one in rounds),
        "rounds": [asdict(one) for one in rounds],
    }


def report(measured: Mapping[str, Sequence[Round]], circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """What is written: the first setting's four numbers ahead, then every setting."""
    settings = {name: summary(rounds) for name, rounds in measured.items()}
    headline = next(iter(settings.values()))
    return {name: headline[name] for name in ("ours", "peer", "ratio", "memory_ratio")} | dict(circumstances) | {"settings": settings}


def table(numbers: Mapping[str, Any]) -> str:
    """The report's settings, a line each."""
    rows = [("", "ours s/prompt", "peer s/prompt", "ratio", "ours GiB", "peer GiB", "memory ratio")]
    for name, found in numbers["settings"].items():
        seconds, gib = (f"{found['ours']:.2f}", f"{found['peer']:.2f}"), (f"{found['ours_peak_gib']:.2f}", f"{found['peer_peak_gib']:.2f}")
        rows.append((name, *seconds, f"{found['ratio']:.1f}", *gib, f"{found['memory_ratio']:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def compare(settings: Sequence[Setting], rounds: int, prompts: int, peer_python: Path, say: Callable[[str], None]) -> dict[str, list[Round]]:
    """All measurements: in each round, each setting's peer and then ours. Raises MeasurementError."""
    measured: dict[str, list[Round]] = {setting.name: [] for setting in settings}
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as folder:
        for setting in settings:
            say(f"{setting.name}: writing model and token ids of {prompts} prompts")
            sizes = {"prompts": prompts, "k": setting.k, "prompt_tokens": setting.prompt_tokens, "answer_tokens": setting.answer_tokens}
            flags = [f"--{name}={value}" for name, value in sizes.items()]
            run("the fixture", [sys.executable, "-m", "benchmarks.fixture", f"{folder}/{setting.name}", *flags])
        for number in range(rounds):
            for setting in settings:
                fixture = f"{folder}/{setting.name}"
                peer = ask("the peer", [str(peer_python), "-I", str(HERE / "reward_peer.py"), fixture])
                say(f"round {number + 1} of {rounds}, {setting.name}: peer {described(peer)}")
                ours = ask("ours", [sys.executable, "-m", "benchmarks.reward_ours", fixture])
                say(f"round {number + 1} of {rounds}, {setting.name}: ours {described(ours)}")
                measured[setting.name].append(Round(ours, peer))
    return measured


def described(numbers: Mapping[str, Any]) -> str:
    """A measurement in a few words."""
    return f"{numbers['cpu_seconds_a_prompt']:.2f} CPU seconds a prompt, peak {numbers['peak_gib']:.2f} GiB"


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
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=os.environ | environment, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise MeasurementError(f"{who} could not be measured (exit status {done.returncode}): {lines[-1] if lines else 'it said nothing'}")
    return done.stdout


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """The command line: measures, writes the numbers and prints them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--settings", nargs="+", choices=[setting.name for setting in SETTINGS], default=[setting.name for setting in SETTINGS])
    parser.add_argument("--peer_python", type=Path, default=Path("runs/bench/peers/trl-1.16/bin/python"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/reward.json"))
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.prompts < 1:
        parser.error("--rounds and --prompts must be at least 1")
    if not arguments.peer_python.is_file():
        parser.exit(2, f"error: {arguments.peer_python} is not there: `make bench-reward` makes the peer's environment\n")
    chosen = [setting for setting in SETTINGS if setting.name in arguments.settings]
    circumstances = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "cpu": processor(), "threads": THREADS, "prompts": arguments.prompts}
    try:
        # Absolute, but not resolved: a venv's Python is a link to the one that made it.
        measured = compare(chosen, arguments.rounds, arguments.prompts, arguments.peer_python.absolute(), lambda line: print(line, flush=True))
    except MeasurementError as error:
        parser.exit(2, f"error: {error}\n")
    numbers = report(measured, circumstances)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"{table(numbers)}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
