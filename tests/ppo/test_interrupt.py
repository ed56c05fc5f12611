"""A run that is stopped by a signal or by a full disk saves its state; once resumed, it ends with the same bytes."""

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import ppo.interrupt
from ppo.checkpoint import Checkpoints
from ppo.interrupt import Interrupt, Interrupted
from ppo.trainer import PPOTrainer
from tests.cuts import state
from tests.fakes import FakeAccelerator
from tests.ppo.conftest import small


def run(chain: Any, out: Path, **changes: Any) -> None:
    adapting = {"kl_target": 0.01, "kl_horizon": 50, "score_scaling": "running"}
    config = small(**{"total_episodes": 3 * 8, "ptx_coef": 1.0, "checkpoint_every": 10, **adapting, **changes})
    chain.trainer(out, config).train()


def results(out: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in state(out).items()
        if name.split("/")[0] not in ("timings.jsonl", "tensorboard")
    }


def test_a_worker_forked_within_a_run_ends_at_sigterm_while_python_runs_no_handler() -> None:
    """multiprocessing.Pool, in a user's reward function, ends its workers so and waits for them."""
    with Interrupt(FakeAccelerator()) as interrupt:
        fork = multiprocessing.get_context("fork")
        started = fork.Event()

        def work() -> None:
            started.set()
            ctypes.PyDLL(None).sleep(60)  # keeps the GIL, so that a handler written in Python would not run

        worker = fork.Process(target=work)
        worker.start()
        assert started.wait(20)
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == -signal.SIGTERM
    assert interrupt.number == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "the parent hears signals again"


def test_a_worker_ended_in_the_moment_of_its_fork_does_not_lose_the_signal() -> None:
    fork = multiprocessing.get_context("fork")
    with Interrupt(FakeAccelerator()):
        for _ in range(20):
            worker = fork.Process(target=time.sleep, args=(60,))
            worker.start()
            worker.terminate()
            worker.join(20)
            assert worker.exitcode == -signal.SIGTERM


@pytest.fixture(scope="module")
def undisturbed(chains: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run of three iterations leaves."""
    out = tmp_path_factory.mktemp("undisturbed")
    torch.manual_seed(123)
    run(chains("lora"), out)
    return results(out)


def send_in(monkeypatch: pytest.MonkeyPatch, phase: str, call: int, *numbers: int) -> list[int]:
    """Sends signals in the `call`-th call of a method of the trainer, after its work; returns a list that grows with
    the calls.
    """
    real, calls = getattr(PPOTrainer, phase), list[int]()

    def sending(*arguments: Any, **named: Any) -> Any:
        calls.append(len(calls))
        made = real(*arguments, **named)
        if len(calls) == call:
            for number in numbers:
                os.kill(os.getpid(), number)
            assert phase == "train_minibatch", "a roll-out is left at once"
        return made

    monkeypatch.setattr(PPOTrainer, phase, sending)
    return calls


@pytest.mark.parametrize(
    ("phase", "call", "number", "code", "saved"),
    [
        ("generate", 2, signal.SIGHUP, 129, 1),
        ("advantages", 2, signal.SIGINT, 130, 1),
        ("train_minibatch", 3, signal.SIGINT, 130, 2),
    ],
)
def test_a_signal_stops_at_the_next_state_between_iterations_and_saves_it(
    chains: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    call: int,
    number: int,
    code: int,
    saved: int,
):
    """It comes in the second iteration: a roll-out is left at once, since it changes nothing that is saved, and an
    update is finished.
    """
    chain, before = chains("lora"), signal.getsignal(number)
    with monkeypatch.context() as patch:
        send_in(patch, phase, call, number)
        said = (
            rf"{signal.Signals(number).name} after {saved} of 3 iterations: run the command again \(without --force\)"
        )
        with pytest.raises(Interrupted, match=f"^stopped by {said} to resume$") as stopped:
            run(chain, tmp_path)
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"checkpoint-{saved:08d}"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == saved
    run(chain, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / f"checkpoint-{saved:08d}")
    assert results(tmp_path) == undisturbed


def test_a_second_signal_stops_at_once_unless_it_follows_the_first_within_moments(
    chains: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chain, twice = chains("lora"), (signal.SIGTERM, signal.SIGTERM)
    with monkeypatch.context() as patch:
        calls = send_in(patch, "train_minibatch", 1, *twice)
        with pytest.raises(Interrupted, match="after 1 of 3"):
            run(chain, tmp_path)
    assert len(calls) == 2
    monkeypatch.setattr(ppo.interrupt, "SAME_SECONDS", 0.0)
    calls = send_in(monkeypatch, "train_minibatch", 1, *twice)
    said = r"stopped at once: run the command again \(without --force\) to resume"
    with pytest.raises(Interrupted, match=said) as stopped:
        run(chain, tmp_path)
    assert stopped.value.exit_code == 143
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-00000001"]


def test_a_run_stops_on_a_full_disk_and_resumes_once_there_is_room(
    chains: Any, undisturbed: dict[str, bytes], tmp_path: Path
):
    """A small file system of its own, in a process that alone sees it."""
    chain, told = chains("lora"), tmp_path / "told"
    pid = os.fork()
    if pid == 0:
        try:
            disk = tmp_path / "disk"
            disk.mkdir()
            if not mount_small(disk, 4 * 2**20):
                told.write_text("not allowed")
                os._exit(0)
            run(chain, disk / "run", total_episodes=8)
            size = sum(path.stat().st_size for path in (disk / "run" / "checkpoints").rglob("*") if path.is_file())
            (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - size // 2))
            # Not refused up front: the disk fills up while the run goes on.
            Checkpoints._require_room = lambda *arguments: None  # type: ignore[method-assign]
            try:
                run(chain, disk / "run")
                told.write_text("not stopped")
            except ValueError as error:
                kept = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
                (disk / "filler").unlink()
                run(chain, disk / "run")
                shutil.rmtree(disk / "run" / "checkpoints" / "checkpoint-00000001")
                told.write_text(json.dumps([str(error), kept, results(disk / "run") == undisturbed]))
        except BaseException:
            told.write_text(traceback.format_exc())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    if told.read_text() == "not allowed":
        pytest.skip("this user may not mount a file system, even in a namespace")
    sentence, kept, same = json.loads(told.read_text())
    assert "No space left on device" in sentence
    assert "the last checkpoint is kept" in sentence
    assert kept == ["checkpoint-00000001"]
    assert same


def mount_small(folder: Path, size: int) -> bool:
    """A file system in memory, in a namespace of this process alone; False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, mounts, private, recursive = 0x10000000, 0x00020000, 1 << 18, 0x4000
    maps = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    if libc.unshare(user | mounts):
        return False
    try:
        for name, content in maps.items():
            Path(f"/proc/self/{name}").write_text(content)
    except OSError:
        return False
    if libc.mount(b"none", b"/", None, private | recursive, None):
        return False
    return libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()) == 0


def test_two_equal_runs_write_the_same_bytes_and_timings_to_a_file_of_their_own(
    chains: Any, undisturbed: dict[str, bytes], tmp_path: Path
):
    torch.manual_seed(321)
    run(chains("lora"), tmp_path, keep_checkpoints=1)
    assert results(tmp_path) == undisturbed
    assert "checkpoints/checkpoint-00000003/random.safetensors" in undisturbed
    rows = [json.loads(line) for line in undisturbed["metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert not [name for name in rows[0] if "seconds" in name or "per_second" in name]
    timings = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timings] == [1, 2, 3]
    assert all(row["seconds_rollout"] > 0 for row in timings)


def test_rows_are_on_the_disk_before_the_checkpoint_that_takes_them_as_written(
    chains: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, write = [], Checkpoints.write

    def look(self: Checkpoints, step: int, *rest: Any) -> None:
        names = ("metrics.jsonl", "samples.jsonl")
        seen.append([step] + [json.loads((tmp_path / name).read_text().splitlines()[-1])["step"] for name in names])
        write(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "write", look)
    run(chains("lora"), tmp_path, total_episodes=16, checkpoint_every=1)
    assert seen == [[1, 1, 1], [2, 2, 2]]


def test_a_run_stopped_in_its_first_roll_out_has_nothing_to_keep(
    chains: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    send_in(monkeypatch, "generate", 1, signal.SIGTERM)
    with pytest.raises(Interrupted, match="after 0 of 3"):
        run(chains("lora"), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
