"""Kills a stage again and again, and compares its result, byte for byte, with that of an uninterrupted run.

    python -m tests.torture --stages sft reward samples evaluate ppo --kills 21 --seed 0        (make torture)

Every run is a stage as a user runs it, on a tiny random model, in a process of its own that is forked from this one,
which has imported everything. It gets SIGKILL at a random moment: any time, or while a file shows what the stage is
doing. Then the same command is started again, until it is through. After each kill the metrics so far are compared with
the beginning of the undisturbed run's, PPO's checkpoints with those of the same iteration, and at the end of a round
every file of the result. A few moments of PPO are SIGTERM instead, to one process of those that there are: then all
must save and leave with 143.
"""

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "GLOO_SOCKET_IFNAME": "lo",
}

from modeling.checkpoint import step_of
from stages.config import parse_config
from stages.runner import STAGES, run_stage, stage_main
from tests.cuts import state
from tests.torture.targets import SIGTERM, TARGETS, VARIANTS, Target, Variant
from tests.torture.work import Place, Work

CONFIG = str(Path(__file__).parents[2] / "configs" / "smoke.yaml")
ALONE = """
import importlib, sys, time
from pathlib import Path
from accelerate import PartialState
from stages.config import parse_config
from stages.runner import RunFolder
stage, root, out, *arguments = sys.argv[1:]
work = importlib.import_module(f"stages.{stage}").STAGE.work
start = time.monotonic()
work(parse_config("torture", "", arguments)[0], RunFolder(Path(root)), Path(out))
Path(out).with_name("seconds").write_text(str(time.monotonic() - start))
PartialState().destroy_process_group()
"""
NOT_COMPARED = ("manifest.json", "timings.jsonl", "tensorboard")
"""Files with times and durations."""
IMPORTED = (
    "torch.utils.tensorboard", "transformers.models.llama.modeling_llama", "peft", "safetensors.torch", "data.sets",
    "data.tokenize", "modeling.tracking", "ppo.export", "ppo.trainer", "sft.train", "reward.trainer",
    "labeling.sampling", "evaluation.reward_evaluation", "evaluation.comparison",
    *(f"stages.{name}" for name in TARGETS),
)  # fmt: skip


class Undisturbed:
    """The reference run, with every checkpoint kept.

    All runs of a variant stand in one place after another, because an adapter's configuration names the folder of its
    base.
    """

    def __init__(self, target: Target, variant: Variant, chain: Path, folder: Path) -> None:
        self.target, self.variant, self.chain, self.out = target, variant, chain, folder / "undisturbed"
        self.place = Place(folder / "runs", target.stage)
        self.lay_out()
        self.out.mkdir()
        work = Work(self._make, folder / "undisturbed.log", variant.processes)
        work.wait(300)
        if any(work.codes):
            sys.exit(f"the undisturbed run failed:\n{work.log.read_text()[-3000:]}")
        self.seconds = float((folder / "seconds").read_text())
        self.files = contents(self.out, self.target.temporary)

    def _make(self) -> None:
        # In a Python of its own, since the order of its sets and dictionaries of names must not reach the files.
        given = arguments(self.variant, self.place.runs, *self.target.settings, *self.target.keep)
        environment = os.environ | {"PYTHONHASHSEED": "7"}
        code = [sys.executable, "-c", ALONE, self.target.stage, str(self.place.root), str(self.out), *given]
        os.execve(sys.executable, code, environment)

    def lay_out(self) -> None:
        """Copies the results of the earlier stages, and nothing of this one or later ones."""
        shutil.rmtree(self.place.runs, ignore_errors=True)
        later = STAGES[STAGES.index(self.target.stage) :]
        shutil.copytree(self.chain / "smoke", self.place.root, ignore=shutil.ignore_patterns(*later, "tensorboard"))

    def differences(self) -> list[str]:
        """Files that should not exist, or that differ."""
        found, place = list[str](), self.place
        comparable = (place.partial / "checkpoints").glob("checkpoint-*") if self.target.comparable else ()
        for checkpoint in sorted(comparable):
            expected = state(self.out / "checkpoints" / checkpoint.name)
            # After SIGTERM a run has checkpoints of iterations at which the uninterrupted run has none.
            if expected and expected != state(checkpoint):
                found.append(checkpoint.name)
        for name in self.target.rows:
            made = (place.partial / name).read_bytes() if (place.partial / name).is_file() else b""
            if not (self.out / name).read_bytes().startswith(made):
                found.append(name)
        return found

    def final_differences(self) -> list[str]:
        """The same for a finished stage, whose folder must hold exactly these files."""
        place = self.place
        made = contents(place.final)
        own = (f".{place.stage}", place.stage)
        rest = sorted(path.name for path in place.root.iterdir() if path.name.startswith(own) and path != place.final)
        return sorted(name for name in self.files.keys() | made.keys() if self.files.get(name) != made.get(name)) + rest


def contents(folder: Path, left_out: tuple[str, ...] = ()) -> dict[str, bytes]:
    """All files that must be equal in two runs."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    compared = [name for name in files if name.parts[0] not in (*NOT_COMPARED, *left_out)]
    return {str(name): (folder / name).read_bytes() for name in compared}


def arguments(variant: Variant, runs: Path, *more: str) -> list[str]:
    return ["--config", CONFIG, "--runs_folder", str(runs), *variant.arguments, *more]


def build_chain(variant: Variant, runs: Path, log: Path, before: str) -> None:
    """The stages before one."""

    def make() -> None:
        config, _ = parse_config("torture", "", arguments(variant, runs))
        for name in STAGES[: STAGES.index(before)]:
            run_stage(importlib.import_module(f"stages.{name}").STAGE, config)

    work = Work(make, log)
    work.wait(300)
    if any(work.codes):
        sys.exit(f"the chain failed:\n{log.read_text()[-3000:]}")


@dataclass
class Kill:
    """The kills of a run, and its differences afterwards."""

    moment: str
    seconds: float
    rows: int
    checkpoint: str
    differences: list[str]


def command(undisturbed: Undisturbed, log: Path) -> Work:
    """`python -m stages.<stage>` begins, in as many processes as torchrun would start."""
    target, variant = undisturbed.target, undisturbed.variant

    def do() -> None:
        sys.argv = [f"stages.{target.stage}", *arguments(variant, undisturbed.place.runs, *target.settings)]
        stage_main(importlib.import_module(f"stages.{target.stage}").STAGE, "")

    return Work(do, log, variant.processes)


def disturb(undisturbed: Undisturbed, moment: str, luck: random.Random, log: Path) -> Kill | None:
    """Starts the command and kills it at the moment; None when it was through before."""
    target, variant, place = undisturbed.target, undisturbed.variant, undisturbed.place
    patterns = target.moments[moment]
    before = place.seen(patterns)
    start = time.monotonic()
    at = start + luck.uniform(0.2, 1.5 + undisturbed.seconds / 2)
    work = command(undisturbed, log)
    while not (place.seen(patterns) - before if patterns else time.monotonic() > at):
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
    if moment == SIGTERM:
        logged = log.stat().st_size if log.exists() else 0
        work.send(signal.SIGTERM, only=luck.randrange(variant.processes))
        work.wait(60)
        words = log.read_bytes()[logged:].decode(errors="replace")
        if work.codes == [0] * variant.processes:
            return None
        # A process that is not training simply ends, and the other one notices.
        said = any(sign in words for sign in ("interrupted (SIGTERM)", "stopped, because"))
        outside = said or -signal.SIGTERM in work.codes
        if any(code != 143 for code in work.codes) and not outside:
            problems.append(f"exit codes {work.codes}")
    else:
        work.send(signal.SIGKILL)
        work.wait(10)
    seconds = time.monotonic() - start
    written = [*place.partial.glob("metrics.jsonl"), *place.partial.glob("scratch/*.jsonl")]
    rows = sum(path.read_bytes().count(b"\n") for path in written)
    found = sorted((place.partial / target.checkpoints).glob("checkpoint-*"), key=step_of)
    last = "finished" if place.final.is_dir() else found[-1].name if found else "none"
    return Kill(moment, seconds, rows, last, problems + undisturbed.differences())


def rounds(undisturbed: Undisturbed, folder: Path, kills: int, luck: random.Random) -> Iterator[Kill | list[str]]:
    """The kills one by one, and the differences of the result at the end of each round."""
    number = count = 0
    while count < kills:
        number += 1
        undisturbed.lay_out()
        log = folder / f"round-{number}.log"
        while count < kills:
            names = list(undisturbed.target.moments)
            weights = [undisturbed.target.weights.get(name, 1) for name in names]
            kill = disturb(undisturbed, luck.choices(names, weights)[0], luck, log)
            if kill is None:
                break
            count += 1
            yield kill
        # Runs what is left; after a kill during the last renames, only those.
        work = command(undisturbed, log)
        work.wait(300)
        if any(work.codes):
            sys.exit(f"the last run failed with {work.codes}:\n{log.read_text()[-3000:]}")
        yield undisturbed.final_differences()


def chains(targets: list[Target], variants: list[Variant], folder: Path, given: Path | None) -> dict[str, Path]:
    """For each variant a runs folder in which the stages before every target have run."""
    last = max((target.stage for target in targets), key=STAGES.index)
    found: dict[tuple[str, ...], Path] = {}
    for variant in variants:
        if variant.arguments in found:
            continue
        if given is not None and not variant.arguments:
            found[variant.arguments] = given
            continue
        runs = found[variant.arguments] = folder / f"chain-{len(found)}"
        build_chain(variant, runs, folder / f"{runs.name}.log", last)
    return {variant.name: found[variant.arguments] for variant in variants}


def torture(target: Target, variant: Variant, kills: int, seed: int, folder: Path) -> tuple[Counter[str], int, int]:
    """Prints a table; (kills by moment, results compared, how many of them differed). `folder` holds the chain."""
    chain, here = folder / "chain", folder / f"{target.stage}-{variant.name.replace(' ', '-')}"
    told, bad, compared = Counter[str](), 0, 0
    here.mkdir()
    undisturbed = Undisturbed(target, variant, chain, here)
    print(f"\n{target.stage}, {variant.name}: {undisturbed.seconds:.1f} s, undisturbed; {len(undisturbed.files)} files")
    print(f"{'killed':>26}  {'after s':>7}  {'rows':>4}  {'last checkpoint':>20}  compared")
    for found in rounds(undisturbed, here, kills, random.Random(f"{seed}/{target.stage}/{variant.name}")):
        if isinstance(found, Kill):
            told[found.moment] += 1
            verdict = ", ".join(found.differences) or "equal"
            print(
                f"{found.moment:>26}  {found.seconds:>7.2f}  {found.rows:>4}  {found.checkpoint:>20}  {verdict}",
                flush=True,
            )
            bad += bool(found.differences)
        else:
            compared += 1
            verdict = "differ: " + ", ".join(found) if found else "all files equal"
            print(f"{'through':>26}  {'':>7}  {'':>4}  {'':>20}  {verdict}", flush=True)
            bad += bool(found)
    return told, compared, bad


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--kills", type=int, default=8, help="for each stage and variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=[variant.name for variant in VARIANTS],
        default=[variant.name for variant in VARIANTS],
    )
    parser.add_argument(
        "--chain",
        type=Path,
        help="a runs folder in which configs/smoke.yaml has run, for the variants that train with LoRA",
    )
    given = parser.parse_args()
    variants = [variant for variant in VARIANTS if variant.name in given.variants]
    targets = [TARGETS[name] for name in given.stages]
    start, told, compared, bad = time.monotonic(), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-torture-") as folder:
        os.environ.setdefault("RLHF_PTX_CACHE", f"{folder}/cache")
        for name in IMPORTED:
            importlib.import_module(name)
        for name, chain in chains(targets, variants, Path(folder), given.chain).items():
            here = Path(folder) / name.replace(" ", "-")
            here.mkdir()
            (here / "chain").symlink_to(chain.resolve())
            variant = next(variant for variant in variants if variant.name == name)
            for target in targets:
                more, results, wrong = torture(target, variant, given.kills, given.seed, here)
                told, compared, bad = told + more, compared + results, bad + wrong
    counts = ", ".join(f"{name} {count}" for name, count in told.most_common())
    print(f"\n{sum(told.values())} kills ({counts})")
    print(f"{compared} results compared with undisturbed ones, {time.monotonic() - start:.0f} s")
    print("FAIL" if bad else "PASS")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
