"""PPO beside trl's PPOTrainer: episodes a CPU second, and memory above the loaded models, on the same models and
prompts.

make bench-ppo
python -m benchmarks.ppo --rounds 2 --updates 2 --peer_python runs/bench/peers/trl-1.12/bin/python
python -m benchmarks.ppo --rounds 1 --settings full --profile

The two take turns, each time in a fresh process with one thread. The peer has no LoRA that shares a base among the four
models; what LoRA gives here is set beside the peer's full fine-tuning in the same round.
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
from benchmarks.ppo_fixture import LORA_VARIANTS
from benchmarks.profiling import PHASES

BATCH = 64
PROMPT_TOKENS = 32
RESPONSE_TOKENS = 64
ENDS_EVERY = 24


@dataclass(frozen=True)
class Setting:
    """What of our models is trained, and whether answers end by themselves."""

    name: str
    adapter: str = "none"
    ends_every: int | None = None

    @property
    def fixture(self) -> str:
        """Which models and prompts; settings that have them in common share the peer's measurement in a round."""
        return "long" if self.ends_every is None else f"ends_every_{self.ends_every}"


SETTINGS = (
    Setting("full"),
    Setting("early", ends_every=ENDS_EVERY),
    *(Setting(variant, variant) for variant in LORA_VARIANTS),
)
"""The first is the headline."""


def speed(numbers: Numbers) -> float:
    """Episodes a CPU second."""
    return float(1 / numbers["cpu_seconds_an_episode"])


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """One setting's numbers: `ours` and `peer` are episodes a CPU second, `ratio` is ours over the peer's,
    `memory_ratio` our memory above the loaded models over the peer's."""
    found = memory(rounds)
    return {
        "ours": middle(rounds, lambda one: speed(one.ours)),
        "peer": middle(rounds, lambda one: speed(one.peer)),
        "ratio": middle(rounds, lambda one: speed(one.ours) / speed(one.peer)),
        "memory_ratio": found["above_loaded_ratio"],
        **found,
        **{
            f"{who}_{name}": middle(rounds, lambda one, who=who, name=name: getattr(one, who)[name])  # type: ignore[misc]
            for who in ("ours", "peer")
            for name in ("mean_response_tokens", "ended")
        },
        "rounds": [asdict(one) for one in rounds],
    }


def table(numbers: Numbers) -> str:
    """The report's settings, a line each."""
    rows = [("", "ours ep/s", "peer ep/s", "ratio", "ours GiB", "peer GiB", "memory ratio", "tokens", "peer's")]
    for name, found in numbers["settings"].items():
        speeds = (f"{found['ours']:.2f}", f"{found['peer']:.2f}", f"{found['ratio']:.2f}")
        gib = (
            f"{found['ours_above_loaded_gib']:.2f}",
            f"{found['peer_above_loaded_gib']:.2f}",
            f"{found['memory_ratio']:.2f}",
        )
        rows.append((name, *speeds, *gib, *(f"{found[f'{who}_mean_response_tokens']:.1f}" for who in ("ours", "peer"))))
    return aligned(rows)


def profile_table(profiles: Numbers) -> str:
    """Where the time of each goes: shares of the phases and of matrix products, and the rate of these beside the
    machine's.
    """
    rows = [("", "", *PHASES, "products", "GFLOP/ep", "GFLOP/s", "in products", "machine")]
    for name, sides in profiles.items():
        for who, found in sides.items():
            total = sum(found["phases"].values())
            shares = (f"{found['phases'][phase] / total:.0%}" for phase in PHASES)
            rates = (
                f"{found[key]:.1f}"
                for key in ("counted_gflop_an_episode", "achieved_gflops", "product_gflops", "machine_gflops")
            )
            rows.append((name, who, *shares, f"{found['product_share']:.0%}", *rates))
    return aligned(rows)


class Bench:
    """Fixtures in a folder, and the commands that measure on them."""

    def __init__(self, folder: str, peer_python: Path, updates: int, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.updates = updates
        self.peer_program = peer_command(peer_python, "ppo_peer")
        self.flags = [f"--batch={BATCH}", f"--response_tokens={RESPONSE_TOKENS}"]

    def make_fixtures(self, settings: Sequence[Setting]) -> None:
        """Each that a setting needs. Raises MeasurementError."""
        for name, ends_every in {setting.fixture: setting.ends_every for setting in settings}.items():
            self.say(f"{name}: writing models and {self.updates * BATCH} prompts")
            sizes = [f"--prompts={self.updates * BATCH}", f"--prompt_tokens={PROMPT_TOKENS}"]
            ends = [] if ends_every is None else [f"--ends_every={ends_every}"]
            run("the fixture", [sys.executable, "-m", "benchmarks.ppo_fixture", f"{self.folder}/{name}", *sizes, *ends])

    def peer(self, fixture: str, *more: str) -> dict[str, Any]:
        """The peer's numbers."""
        found = ask("the peer", [*self.peer_program, f"{self.folder}/{fixture}", *self.flags, *more])
        self.say(f"{fixture}: peer {described(found)}")
        return found

    def ours(self, setting: Setting, *more: str) -> dict[str, Any]:
        """Ours."""
        program = [
            sys.executable,
            "-m",
            "benchmarks.ppo_ours",
            f"{self.folder}/{setting.fixture}",
            f"--adapter={setting.adapter}",
        ]
        found = ask("ours", [*program, *self.flags, *more])
        self.say(f"{setting.name}: ours {described(found)}")
        return found

    def compare(self, settings: Sequence[Setting], rounds: int) -> dict[str, list[Round]]:
        """In each round, the peer on each fixture and then ours under each setting on it. Raises MeasurementError."""
        measured: dict[str, list[Round]] = {setting.name: [] for setting in settings}
        for number in range(rounds):
            self.say(f"round {number + 1} of {rounds}")
            flags = (f"--updates={self.updates}", f"--seed={number}")
            for fixture in dict.fromkeys(setting.fixture for setting in settings):
                peer = self.peer(fixture, *flags)
                for setting in settings:
                    if setting.fixture == fixture:
                        measured[setting.name].append(Round(self.ours(setting, *flags), peer))
        return measured

    def profile(self, settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
        """Of each setting, one update of ours and of the peer's looked into. Raises MeasurementError."""
        peers = {
            fixture: self.peer(fixture, "--updates=1", "--profile")
            for fixture in dict.fromkeys(setting.fixture for setting in settings)
        }
        found = {}
        for setting in settings:
            sides = {"ours": self.ours(setting, "--updates=1", "--profile"), "peer": peers[setting.fixture]}
            found[setting.name] = {
                who: {"phases": numbers["phases"], **numbers["profile"]} for who, numbers in sides.items()
            }
        return found


def described(numbers: Numbers) -> str:
    """A measurement in a few words."""
    above = numbers["peak_gib"] - numbers["loaded_gib"]
    return (
        f"{speed(numbers):.2f} episodes a CPU second, {above:.2f} GiB above loaded, "
        f"{numbers['mean_response_tokens']:.1f} tokens each"
    )


def main() -> None:
    """The command line: measures, writes the numbers and prints them as a table."""
    names = [setting.name for setting in SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--settings", nargs="+", choices=names, default=names)
    parser.add_argument("--profile", action="store_true", help="looks into one update of each besides")
    parser.add_argument("--peer_python", type=Path, default=Path("runs/bench/peers/trl-1.12/bin/python"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ppo.json"))
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.updates < 1:
        parser.error("--rounds and --updates must be at least 1")
    need_peer(parser, arguments.peer_python, "bench-ppo")
    chosen = [setting for setting in SETTINGS if setting.name in arguments.settings]
    try:
        with tempfile.TemporaryDirectory(prefix="rlhf-ptx-") as folder:
            bench = Bench(folder, arguments.peer_python, arguments.updates, lambda line: print(line, flush=True))
            bench.make_fixtures(chosen)
            measured = bench.compare(chosen, arguments.rounds)
            profiles = bench.profile(chosen) if arguments.profile else {}
    except MeasurementError as error:
        parser.exit(2, f"error: {error}\n")
    sizes = {
        "batch": BATCH,
        "prompt_tokens": PROMPT_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "updates": arguments.updates,
    }
    numbers = report({name: summary(rounds) for name, rounds in measured.items()}, circumstances(measured, **sizes))
    if profiles:
        numbers["profiles"] = profiles
        print(profile_table(profiles))
    write(arguments.out, numbers)
    print(f"{table(numbers)}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
