"""The processes of one command, forked from this one, and what they write."""

import contextlib
import glob
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
                environment = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "LOCAL_WORLD_SIZE": processes,
                    "MASTER_PORT": port,
                    "MASTER_ADDR": "127.0.0.1",
                }
                if processes > 1:
                    os.environ |= {name: str(value) for name, value in environment.items()}
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
        """Sends a signal to all running processes, or to one of them."""
        for pid in sorted(self.running)[only : only + 1 if only is not None else None]:
            os.kill(pid, number)

    def wait(self, seconds: float) -> None:
        """Waits until all have ended; kills those still running after the time limit."""
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
    """A run folder, observed from outside while a stage runs."""

    runs: Path
    stage: str

    @property
    def root(self) -> Path:
        return self.runs / "smoke"

    @property
    def partial(self) -> Path:
        return self.root / f"{self.stage}.partial"

    @property
    def final(self) -> Path:
        return self.root / self.stage

    def seen(self, patterns: tuple[str, ...]) -> set[tuple[str, int, int]]:
        """Name, time and size of the current files."""
        found = set()
        for pattern in patterns:
            # Unlike Path.glob of Python 3.11, glob.iglob passes over a folder that is removed or renamed meanwhile.
            pattern = pattern.replace("STAGE", self.stage)
            for name in glob.iglob(pattern, root_dir=self.root, include_hidden=True):
                with contextlib.suppress(OSError):
                    stat = (self.root / name).stat()
                    found.add((name, stat.st_mtime_ns, stat.st_size))
        return found
