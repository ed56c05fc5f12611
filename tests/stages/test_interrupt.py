"""Ctrl-C, SIGTERM and SIGHUP end a run with one sentence and an exit code, also where a library swallows them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppo.interrupt import Interrupt
from stages import interrupt
from stages.config import RunConfig
from stages.interrupt import STOP
from stages.runner import RunFolder, Stage, main, run_stage
from tests.ppo.conftest import ALONE

HERE = Path(__file__).parents[2]


def signalled(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def in_an_except_block() -> None:
    """Like code that cleans up after any exception."""
    try:
        signalled()
    except BaseException:
        return


def in_a_destructor() -> None:
    class Dying:
        def __del__(self) -> None:
            signalled()

    Dying()


def in_a_finally_block() -> None:
    """Another error hides the interrupt."""
    try:
        signalled()
    finally:
        raise RuntimeError("a worker ended")


def plainly() -> None:
    signalled()


@pytest.mark.parametrize("lost", [plainly, in_an_except_block, in_a_destructor, in_a_finally_block])
def test_an_interrupt_that_is_swallowed_still_ends_the_run_and_its_stage_counts_as_unfinished(
    lost: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[Any] = []  # exceptions of which Python prints tracebacks
    monkeypatch.setattr(sys, "unraisablehook", hook := ignored.append)

    def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        lost()
        return {}

    def command(config: RunConfig, force: bool) -> None:
        run_stage(Stage("data", sections=("data",), after=(), work=work), config)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(SystemExit) as stopped:
        main(command, "stages.x", "", ["--runs_folder", str(tmp_path), "--run_name", "run", "--model.device", "cpu"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted (SIGINT): run the command again (without --force) to continue\n"
    assert not (tmp_path / "run" / "data").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    assert ignored == []
    assert sys.unraisablehook == hook


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_end_with_their_code(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(lambda config, force: signalled(number), "stages.x", "", [])
    assert stopped.value.code == code
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"interrupted ({name}): run the command again (without --force) to continue\n"


def test_a_swallowed_interrupt_is_raised_again_in_the_middle_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "AGAIN_SECONDS", 0.05)
    steps = []

    def training() -> None:
        in_an_except_block()
        for _ in range(100):
            steps.append(time.sleep(0.05))

    with pytest.raises(KeyboardInterrupt), STOP.working():
        training()
    assert len(steps) < 100


def test_a_signal_after_ppos_last_check_is_handled_by_the_stage() -> None:
    """The signal arrives when training has ended and only files are still to be closed."""
    with pytest.raises(KeyboardInterrupt), STOP.working(), Interrupt(ALONE):
        signalled()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number: int) -> None:
    """`nohup` ignores SIGHUP, and shells that start a job in the background ignore SIGINT for it."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with STOP.working(), Interrupt(ALONE) as ppos:
            signalled(number)
            assert not ppos.number
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("ignored", [True, False])
def test_launchers_of_make_ignore_sighup_under_nohup(ignored: bool) -> None:
    shown = subprocess.run(
        ["make", "--silent", "--eval", "shown:; @echo $$PET_SIGNALS_TO_HANDLE", "shown"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    assert shown.stdout.strip() == "SIGTERM,SIGINT,SIGQUIT" * ignored


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_an_interrupt_during_imports_is_one_sentence() -> None:
    number = signal.SIGINT
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.report"],
        cwd=HERE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while "libc10" not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert (
        stderr == f"interrupted ({signal.Signals(number).name}): run the command again (without --force) to continue\n"
    )


def test_a_signal_ends_a_process_that_waits_for_others_to_start() -> None:
    code = (
        "from stages.interrupt import STOP; STOP.begin_command()\n"
        "from stages import launch; from stages.config import RunConfig\n"
        "launch.WAITING_SECONDS = 1.0; launch.connected(RunConfig())"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=HERE,
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert "waiting for the other processes of this launch (WORLD_SIZE=2)" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr.startswith("interrupted (SIGTERM): ")


def test_a_signal_is_told_once_where_python_can_run_its_handler_too() -> None:
    code = (
        "from stages.interrupt import STOP; STOP.begin_command()\n"
        "with STOP.watched():\n  print(1, flush=True)\n  while True: sum(range(100))"
    )
    for _ in range(20):  # without the guard about a quarter of them print it twice
        process = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=-1, stderr=-1, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
        assert (process.returncode, stderr.count("interrupted (SIGTERM)")) == (143, 1)
