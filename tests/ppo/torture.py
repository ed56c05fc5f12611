"""Kills PPO runs again and again, and compares what they end in, byte for byte, with runs that nobody disturbed.

    python -m tests.ppo.torture --kills 21 --seed 0        (make torture)

Every run is a stage as a user runs it, `stages.ppo` on a tiny random model, in a process of its own that is forked from this one, which has imported
everything. It gets SIGKILL at a moment drawn at random: any time, or while something is on the disk that shows what is going on. Then the same
command goes on, until it is through. After each kill every checkpoint that lies there is compared with the undisturbed run's of the same iteration,
the metrics so far with the beginning of its metrics, and at the end of a round every file of the result. A few moments are SIGTERM instead, to one
process of those that there are: then all must save and leave with 143.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "GLOO_SOCKET_IFNAME": "lo",
}

from stages.config import parse_config
from stages.runner import run_stage, stage_main

CONFIG = str(Path(__file__).parents[2] / "configs" / "smoke.yaml")
SETTINGS = (
    "--ppo.total_episodes", "96", "--ppo.batch_size", "8", "--ppo.minibatch_size", "4", "--ppo.checkpoint_every", "2", "--ppo.kl_target", "1.0",
    "--ppo.score_scaling", "running", "--ppo.held_out.every", "3",
)  # fmt: skip
"""Twelve short iterations with everything on that adapts."""
ALONE = """
import sys
from pathlib import Path
from modeling.processes import part
from stages.config import parse_config
from stages.ppo import STAGE
from stages.runner import RunFolder
root, out, *arguments = sys.argv[1:]
STAGE.work(parse_config("torture", "", arguments)[0], RunFolder(Path(root)), Path(out))
part()
"""
NOT_COMPARED = ("manifest.json", "timings.jsonl", "tensorboard", "checkpoints")
"""What says when and how long, and what a finished stage does not keep."""
IMPORTED = (
    "torch.utils.tensorboard", "transformers.models.llama.modeling_llama", "peft", "safetensors.torch", "data.sets", "data.tokenize",
    "modeling.tracking", "ppo.export", "ppo.train", "stages.ppo", "sft.train", "reward.train", "stages.reward",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A way to train."""

    name: str
    arguments: tuple[str, ...] = ()
    processes: int = 1


VARIANTS = (
    Variant("lora"),
    Variant("full", ("--model.adapter", "none")),
    Variant("lora on two processes", processes=2),
)


class Work:
    """The processes of one command, forked from this one."""

    def __init__(self, do: Callable[[], None], log: Path, processes: int = 1) -> None:
        sys.stdout.flush()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.log, self.running = log, set[int]()
        self.codes: list[int] = []
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                team = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
                if processes > 1:
                    os.environ |= {name: str(value) for name, value in team.items()} | {"MASTER_ADDR": "127.0.0.1"}
                _be_child(do, log)
            self.running.add(pid)

    def poll(self) -> bool:
        """Whether all processes have ended."""
        for pid in list(self.running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.running.discard(pid)
                self.codes.append(os.waitstatus_to_exitcode(status))
        return not self.running

    def send(self, number: int, only: int | None = None) -> None:
        """A signal to all that still run, or to one of them."""
        for pid in sorted(self.running)[only : only + 1 if only is not None else None]:
            os.kill(pid, number)

    def wait(self, seconds: float) -> None:
        """Returns when all have ended; kills what has not by then."""
        end = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(0.002)


def _be_child(do: Callable[[], None], log: Path) -> None:
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        do()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@dataclass
class Place:
    """A variant's run folder and what may be seen in it from outside."""

    runs: Path

    @property
    def root(self) -> Path:
        return self.runs / "smoke"

    @property
    def partial(self) -> Path:
        return self.root / "ppo.partial"

    @property
    def final(self) -> Path:
        return self.root / "ppo"

    def seen(self, patterns: tuple[str, ...]) -> set[tuple[str, int, int]]:
        """Name, time and size of what is there now."""
        found = set()
        for pattern in patterns:
            for path in self.root.glob(pattern):
                with contextlib.suppress(OSError):
                    stat = path.stat()
                    found.add((str(path), stat.st_mtime_ns, stat.st_size))
        return found


MOMENTS: dict[str, tuple[str, ...]] = {
    "any time": (),
    "rows are written": ("ppo.partial/metrics.jsonl", "ppo.partial/samples.jsonl", "ppo.partial/held_out.jsonl"),
    "checkpoint half written": ("ppo.partial/checkpoints/.checkpoint-*.partial/*",),
    "checkpoint just renamed": ("ppo.partial/checkpoints/checkpoint-*",),
    "old checkpoint goes": ("ppo.partial/checkpoints/.checkpoint-*.discarded",),
    "export": ("ppo.partial/adapter*", "ppo.partial/model*/*"),
    "manifest": ("ppo.partial/*manifest.json*",),
    "last renames": ("ppo", "ppo/*"),
    "SIGTERM": (),
}
WEIGHTS = {"any time": 5, "checkpoint half written": 3, "checkpoint just renamed": 2, "rows are written": 2, "export": 2, "SIGTERM": 2}
"""Of the moments when one is drawn; 1 of the others."""


class Undisturbed:
    """The run that others are compared with: the stage's own work, with every checkpoint kept.

    All runs of a variant stand in one place after another, because an adapter's configuration names the folder of its base.
    """

    def __init__(self, variant: Variant, chain: Path, folder: Path) -> None:
        self.variant, self.chain, self.out = variant, chain, folder / "undisturbed"
        self.place = Place(folder / "runs")
        self.lay_out()
        self.out.mkdir()
        work = Work(self._make, folder / "undisturbed.log", variant.processes)
        work.wait(300)
        if any(work.codes):
            sys.exit(f"the undisturbed run failed:\n{work.log.read_text()[-3000:]}")
        rows = [json.loads(line) for line in (self.out / "timings.jsonl").read_text().splitlines()]
        self.seconds = sum(value for row in rows for name, value in row.items() if name.startswith("seconds_"))
        self.files = contents(self.out)

    def _make(self) -> None:
        # In a Python of its own, since the order of its sets and dictionaries of names must not reach the files.
        given = arguments(self.variant, self.place.runs, "--ppo.keep_checkpoints", "1000")
        environment = os.environ | {"PYTHONHASHSEED": "7"}
        os.execve(sys.executable, [sys.executable, "-c", ALONE, str(self.place.root), str(self.out), *given], environment)

    def lay_out(self) -> None:
        """Puts the stages before PPO in place, and nothing of PPO."""
        shutil.rmtree(self.place.runs, ignore_errors=True)
        shutil.copytree(self.chain / "smoke", self.place.root)

    def differences(self) -> list[str]:
        """What lies there and should not, or differently."""
        found, place = list[str](), self.place
        for checkpoint in sorted((place.partial / "checkpoints").glob("checkpoint-*")):
            expected = {path.name: path.read_bytes() for path in (self.out / "checkpoints" / checkpoint.name).glob("*")}
            # A run that SIGTERM stopped has checkpoints of iterations between, and those the undisturbed one has not.
            if expected and expected != {path.name: path.read_bytes() for path in checkpoint.iterdir()}:
                found.append(checkpoint.name)
        for name in ("metrics.jsonl", "samples.jsonl", "held_out.jsonl"):
            if (place.partial / name).is_file() and not (self.out / name).read_bytes().startswith((place.partial / name).read_bytes()):
                found.append(name)
        return found

    def final_differences(self) -> list[str]:
        """The same of a finished stage, whose folder must hold these files and no others."""
        place = self.place
        made = contents(place.final)
        rest = sorted(path.name for path in place.root.iterdir() if path.name.startswith((".ppo", "ppo")) and path != place.final)
        return sorted(name for name in self.files.keys() | made.keys() if self.files.get(name) != made.get(name)) + rest


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that two runs must agree on."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name): (folder / name).read_bytes() for name in files if name.parts[0] not in NOT_COMPARED}


def arguments(variant: Variant, runs: Path, *more: str) -> list[str]:
    return ["--config", CONFIG, "--runs_folder", str(runs), *variant.arguments, *SETTINGS, *more]


def build_chain(variant: Variant, runs: Path, log: Path) -> None:
    """The stages before PPO."""

    def make() -> None:
        config, _ = parse_config("torture", "", arguments(variant, runs))
        for name in ("data", "sft", "samples", "labels", "reward"):
            run_stage(importlib.import_module(f"stages.{name}").STAGE, config)

    work = Work(make, log)
    work.wait(300)
    if any(work.codes):
        sys.exit(f"the chain failed:\n{log.read_text()[-3000:]}")


@dataclass
class Kill:
    """What was done to a run, and what lay there afterwards."""

    moment: str
    seconds: float
    rows: int
    checkpoint: str
    differences: list[str]


def command(variant: Variant, place: Place, log: Path) -> Work:
    """`python -m stages.ppo` begins, in as many processes as torchrun would start."""

    def do() -> None:
        from stages.ppo import STAGE

        sys.argv = ["stages.ppo", *arguments(variant, place.runs)]
        stage_main(STAGE, "")

    return Work(do, log, variant.processes)


def disturb(undisturbed: Undisturbed, moment: str, luck: random.Random, log: Path) -> Kill | None:
    """Starts the command and kills it at the moment; None when it was through before."""
    variant, place = undisturbed.variant, undisturbed.place
    before = place.seen(MOMENTS[moment])
    start = time.monotonic()
    at = start + luck.uniform(0.2, 1.5 + undisturbed.seconds / 2)
    work = command(variant, place, log)
    while not (place.seen(MOMENTS[moment]) - before if MOMENTS[moment] else time.monotonic() > at):
        if work.poll():
            break
        time.sleep(0.0005)
    else:
        time.sleep(luck.choice((0.0, 0.0, 0.002, 0.01)))
    if work.poll():
        if any(work.codes):
            sys.exit(f"the run ended by itself with {work.codes}:\n{log.read_text()[-3000:]}")
        return None
    problems = []
    if moment == "SIGTERM":
        logged = log.stat().st_size if log.exists() else 0
        work.send(signal.SIGTERM, only=luck.randrange(variant.processes))
        work.wait(60)
        words = log.read_bytes()[logged:].decode(errors="replace")
        if work.codes == [0] * variant.processes:
            return None
        # One that does not train yet, or no longer, just ends, and the other one loses it.
        said = any(sign in words for sign in ("interrupted (SIGTERM)", "stopped, because"))
        outside = said or -signal.SIGTERM in work.codes
        if any(code != 143 for code in work.codes) and not outside:
            problems.append(f"exit codes {work.codes}")
    else:
        work.send(signal.SIGKILL)
        work.wait(10)
    seconds = time.monotonic() - start
    rows = (place.partial / "metrics.jsonl").read_bytes().count(b"\n") if (place.partial / "metrics.jsonl").is_file() else 0
    last = max((path.name for path in (place.partial / "checkpoints").glob("checkpoint-*")), default="none")
    if place.final.is_dir():
        last = "finished"
    return Kill(moment, seconds, rows, last, problems + undisturbed.differences())


def rounds(undisturbed: Undisturbed, folder: Path, kills: int, luck: random.Random) -> Iterator[Kill | list[str]]:
    """Kills one after the other, and at the end of each round what differs in its result."""
    number = count = 0
    while count < kills:
        number += 1
        undisturbed.lay_out()
        log = folder / f"round-{number}.log"
        while count < kills:
            names = list(MOMENTS)
            kill = disturb(undisturbed, luck.choices(names, [WEIGHTS.get(name, 1) for name in names])[0], luck, log)
            if kill is None:
                break
            count += 1
            yield kill
        # Whatever is left to do; after a kill in the last renames, only that.
        work = command(undisturbed.variant, undisturbed.place, log)
        work.wait(300)
        if any(work.codes):
            sys.exit(f"the last run failed with {work.codes}:\n{log.read_text()[-3000:]}")
        yield undisturbed.final_differences()


def torture(variants: list[Variant], kills: int, seed: int, folder: Path, chain: Path | None = None) -> bool:
    """Prints a table and the verdict; whether all was the same. `chain` is a runs folder whose earlier stages the first variant takes."""
    for name in IMPORTED:
        importlib.import_module(name)
    start, told, bad, compared = time.monotonic(), Counter[str](), 0, 0
    for index, variant in enumerate(variants):
        here = folder / variant.name.replace(" ", "-")
        same = next((folder / other.name.replace(" ", "-") / "chain" for other in variants[:index] if other.arguments == variant.arguments), None)
        runs = here / "chain"
        if chain is not None and not variant.arguments:
            shutil.copytree(chain / "smoke", runs / "smoke", ignore=shutil.ignore_patterns("ppo", "evaluate", "report", "tensorboard"))
        elif same is not None:
            shutil.copytree(same, runs)
        else:
            here.mkdir(parents=True)
            build_chain(variant, runs, here / "chain.log")
        undisturbed = Undisturbed(variant, runs, here)
        print(f"\n{variant.name}: {undisturbed.seconds:.1f} s of training, undisturbed; {len(undisturbed.files)} files")
        print(f"{'killed':>24}  {'after s':>7}  {'rows':>4}  {'last checkpoint':>20}  compared")
        share = kills // len(variants) + (index < kills % len(variants))
        for found in rounds(undisturbed, here, share, random.Random(f"{seed}/{variant.name}")):
            if isinstance(found, Kill):
                told[found.moment] += 1
                print(
                    f"{found.moment:>24}  {found.seconds:>7.2f}  {found.rows:>4}  {found.checkpoint:>20}  {', '.join(found.differences) or 'equal'}",
                    flush=True,
                )
                bad += bool(found.differences)
            else:
                compared += 1
                print(f"{'through':>24}  {'':>7}  {'':>4}  {'':>20}  {'differ: ' + ', '.join(found) if found else 'all files equal'}", flush=True)
                bad += bool(found)
    counts = ", ".join(f"{name} {count}" for name, count in told.most_common())
    print(f"\n{sum(told.values())} kills ({counts})\n{compared} results compared with undisturbed ones, {time.monotonic() - start:.0f} s")
    print("FAIL" if bad else "PASS")
    return not bad


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=[variant.name for variant in VARIANTS], default=[variant.name for variant in VARIANTS])
    parser.add_argument("--chain", type=Path, help="a runs folder in which configs/smoke.yaml has run, for the variants that train with LoRA")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-torture-") as folder:
        os.environ.setdefault("RLHF_PTX_CACHE", f"{folder}/cache")
        chosen = [variant for variant in VARIANTS if variant.name in given.variants]
        sys.exit(0 if torture(chosen, given.kills, given.seed, Path(folder), given.chain) else 1)


if __name__ == "__main__":
    main()
