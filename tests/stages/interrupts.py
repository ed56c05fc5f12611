"""Sends SIGINT, SIGTERM or SIGHUP to stages at random moments, and checks the exit code and every line on stderr.

    python -m tests.stages.interrupts --runs 40 --seed 0        (make interrupts)

Each run is a command as a user types it, on `configs/smoke.yaml`; a pipeline goes on where the one before was stopped,
so that later stages get their share. A run that ended before its signal came is not counted, and the next one starts
over.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from stages.interrupt import SIGNALS

HERE = Path(__file__).parents[2]
SENTENCES = ("interrupted (SIG", "stopped by SIG", "stopped at once")
EXPECTED_BESIDE = ("SIGINT: saving", "SIGTERM: saving", "SIGHUP: saving")
"""PPO's message about a signal; empty lines and progress bars are ignored."""


def undisturbed_seconds(module: str, folder: Path) -> float:
    """How long the command takes; also fills the cache."""
    start = time.monotonic()
    done = subprocess.run(command(module, folder / "undisturbed"), cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.monotonic() - start


def command(module: str, runs: Path) -> list[str]:
    return [sys.executable, "-m", module, "--config", "configs/smoke.yaml", "--runs_folder", str(runs)]


def lines_of(stderr: str) -> list[str]:
    """Lines without progress bars, which overwrite themselves."""
    lines = [line.rsplit("\r", 1)[-1].strip() for line in stderr.split("\n")]
    return [line for line in lines if line and "%|" not in line and "/?" not in line and "it/s" not in line]


def problems_of(code: int, stderr: str, number: int) -> list[str]:
    """Problems in the exit code and the output."""
    lines = lines_of(stderr)
    told = [line for line in lines if line.startswith(SENTENCES)]
    other = [line for line in lines if line not in told and not line.startswith(EXPECTED_BESIDE)]
    found = [] if code == 128 + number else [f"exit code {code}"]
    found += [] if len(told) == 1 else [f"{len(told)} sentences"]
    return found + ([f"{len(other)} other lines: {other[:3]}"] if other else [])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=["stages.pipeline", "stages.data"])
    given = parser.parse_args()
    luck, told, bad, lost = random.Random(given.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="rlhf-ptx-interrupts-") as name:
        folder = Path(name)
        os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        os.environ.setdefault("RLHF_PTX_CACHE", f"{folder}/cache")
        seconds = {module: undisturbed_seconds(module, folder / module) for module in given.modules}
        print(json.dumps({module: round(value, 1) for module, value in seconds.items()}), flush=True)
        for index in range(given.runs):
            module = given.modules[index % len(given.modules)]
            number = luck.choices((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), weights=(3, 1, 1))[0]
            wait = luck.uniform(0.05, seconds[module] * (0.6 if module == "stages.pipeline" else 1.0))
            process = subprocess.Popen(
                command(module, folder / module / "stopped"), cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in SIGNALS],  # nohup ignores some
            )  # fmt: skip
            time.sleep(wait)
            early = process.poll() is not None
            process.send_signal(number)
            sent = time.monotonic()
            stdout, stderr = process.communicate(timeout=600)
            took = time.monotonic() - sent
            if early:
                if process.returncode != 0:
                    sys.exit(f"{module} failed by itself:\n{stderr[-3000:]}")
                shutil.rmtree(folder / module / "stopped", ignore_errors=True)
                told["through before"] += 1
                continue
            # Python restores the default handlers when it shuts down; the result is then complete.
            shut_down = process.returncode == -number and ": done in" in (stdout.splitlines() or [""])[-1]
            problems = [] if shut_down else problems_of(process.returncode, stderr, number)
            lost += process.returncode == 0
            bad += bool(problems)
            told[f"{module} {signal.Signals(number).name}"] += 1
            stage = next((line.split(":")[0] for line in reversed(stdout.splitlines()) if ": r" in line), "start")
            print(
                f"{module:>16}  {number.name:>8}  {wait:>6.2f} s  {stage:>9}  {took:>5.1f} s  "
                f"{'; '.join(problems) or 'well'}",
                flush=True,
            )
    print(f"\n{dict(told)}; {bad} with problems, {lost} lost")
    print("FAIL" if bad else "PASS")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
