"""Reward-model training beside trl's RewardTrainer: CPU seconds per prompt and peak memory, on the same model and
token ids.

make bench-reward
python -m benchmarks.reward --rounds 2 --prompts 4 --peer_python runs/bench/peers/trl-1.16/bin/python

The two take turns, each time in a fresh process with one thread.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import (
    MeasurementError,
    Numbers,
    Round,
    aligned,
    ask,
    circumstances,
    memory,
    middle,
    need_peer,
    peer_command,
    report,
    run,
    write,
)  # fmt: skip


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


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """One setting's numbers. Ratios are taken within a round, where the machine was equally busy for both, and their
    median over rounds is kept.

    `ours` and `peer` are CPU seconds per prompt; `ratio` is the peer's over ours, `memory_ratio` our peak over the
    peer's.
    """
    found = memory(rounds)
    return {
        "ours": middle(rounds, lambda one: one.ours["cpu_seconds_a_prompt"]),
        "peer": middle(rounds, lambda one: one.peer["cpu_seconds_a_prompt"]),
        "ratio": middle(rounds, lambda one: one.peer["cpu_seconds_a_prompt"] / one.ours["cpu_seconds_a_prompt"]),
        "memory_ratio": found["peak_ratio"],
        **found,
        "rounds": [asdict(one) for one in rounds],
    }


def table(numbers: Numbers) -> str:
    """The report's settings, a line each."""
    rows = [("", "ours s/prompt", "peer s/prompt", "ratio", "ours GiB", "peer GiB", "memory ratio")]
    for name, found in numbers["settings"].items():
        seconds, gib = (
            (f"{found['ours']:.2f}", f"{found['peer']:.2f}"),
            (f"{found['ours_peak_gib']:.2f}", f"{found['peer_peak_gib']:.2f}"),
        )
        rows.append((name, *seconds, f"{found['ratio']:.1f}", *gib, f"{found['memory_ratio']:.2f}"))
    return aligned(rows)


def compare(
    settings: Sequence[Setting], rounds: int, prompts: int, peer_python: Path, say: Callable[[str], None]
) -> dict[str, list[Round]]:
    """All measurements: in each round, each setting's peer and then ours. Raises MeasurementError."""
    measured: dict[str, list[Round]] = {setting.name: [] for setting in settings}
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as folder:
        for setting in settings:
            say(f"{setting.name}: writing model and token ids of {prompts} prompts")
            sizes = {
                "prompts": prompts,
                "k": setting.k,
                "prompt_tokens": setting.prompt_tokens,
                "answer_tokens": setting.answer_tokens,
            }
            flags = [f"--{name}={value}" for name, value in sizes.items()]
            run("the fixture", [sys.executable, "-m", "benchmarks.fixture", f"{folder}/{setting.name}", *flags])
        for number in range(rounds):
            for setting in settings:
                fixture = f"{folder}/{setting.name}"
                peer = ask("the peer", [*peer_command(peer_python, "reward_peer"), fixture])
                say(f"round {number + 1} of {rounds}, {setting.name}: peer {described(peer)}")
                ours = ask("ours", [sys.executable, "-m", "benchmarks.reward_ours", fixture])
                say(f"round {number + 1} of {rounds}, {setting.name}: ours {described(ours)}")
                measured[setting.name].append(Round(ours, peer))
    return measured


def described(numbers: Numbers) -> str:
    """A measurement in a few words."""
    return f"{numbers['cpu_seconds_a_prompt']:.2f} CPU seconds per prompt, peak {numbers['peak_gib']:.2f} GiB"


def main() -> None:
    """The command line: measures, writes the numbers and prints them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=[setting.name for setting in SETTINGS],
        default=[setting.name for setting in SETTINGS],
    )
    parser.add_argument("--peer_python", type=Path, default=Path("runs/bench/peers/trl-1.16/bin/python"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/reward.json"))
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.prompts < 1:
        parser.error("--rounds and --prompts must be at least 1")
    need_peer(parser, arguments.peer_python, "bench-reward")
    chosen = [setting for setting in SETTINGS if setting.name in arguments.settings]
    try:
        measured = compare(
            chosen, arguments.rounds, arguments.prompts, arguments.peer_python, lambda line: print(line, flush=True)
        )
    except MeasurementError as error:
        parser.exit(2, f"error: {error}\n")
    numbers = report(
        {name: summary(rounds) for name, rounds in measured.items()}, circumstances(measured, prompts=arguments.prompts)
    )
    write(arguments.out, numbers)
    print(f"{table(numbers)}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
