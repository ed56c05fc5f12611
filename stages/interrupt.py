"""Ctrl-C (SIGINT), SIGTERM and SIGHUP (the terminal or ssh session is closed) end a run with one sentence and exit code
130, 143 or 129.

During imports, before and after the work, and while the process waits for others to start (`watched`), a signal ends
it at once, since there is nothing to clean up. During the work it raises KeyboardInterrupt, so that `with` blocks clean
up. Libraries can swallow that (`except BaseException`, `__del__`, weakref callbacks), so it is raised repeatedly until
the work ends, and `check` stops a run in which it was lost. PPO has its own handlers (`ppo/interrupt.py`), which save
first.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from modeling.forks import not_in_forked_workers

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_SECONDS = 2.0
"""Seconds after which KeyboardInterrupt is raised again if the work has not ended."""
SAME_SECONDS = 1.0
"""A second signal within this time is a duplicate: both the terminal and torchrun forward Ctrl-C."""


class Stop:
    """The signal that this process received, and how it ends the run."""

    def __init__(self) -> None:
        self.number = 0
        """The signal that was received, 0 if none."""
        self.is_command = False
        """Whether this process is `python -m stages.<stage>`, so that it may be ended as a whole."""
        self._since = 0.0
        self._working = False
        self._watched = False
        """Whether a thread ends the process at a signal, so that `_receive` need not."""
        self._unraisable: Callable[[Any], Any] = sys.unraisablehook

    def begin_command(self) -> None:
        """Installs the handlers of these signals before the stage's imports."""
        self.is_command = True
        self.install()

    def install(self) -> dict[int, Any]:
        """Installs the handlers of these signals unless they are ignored (nohup). Returns the previous handlers."""
        before: dict[int, Any] = {}
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._receive)
        return before

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Context for the work: a signal raises KeyboardInterrupt, at the latest when the block is left."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.number = 0
        before = self.install()
        alarm, self._unraisable = signal.getsignal(signal.SIGALRM), sys.unraisablehook
        self._working = True
        try:
            yield
            self.check()
        finally:
            self._working = False
            if self.number:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, alarm)
                sys.unraisablehook = self._unraisable
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Context for a call that waits for other processes in C++, where Python cannot run signal handlers: a
        signal ends the process at once, from a thread.
        """
        if not self.is_command or threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._end_on_signal, args=(reader,), daemon=True)
        thread.start()
        self._watched = True
        try:
            yield
        finally:
            self._watched = False
            signal.set_wakeup_fd(before)
            os.close(writer)  # ends the thread
            thread.join()
            os.close(reader)

    def _end_on_signal(self, reader: int) -> None:
        """Ends the process when Python writes the number of a signal to the pipe; returns when the pipe is closed."""
        while number := os.read(reader, 1):
            if number[0] in SIGNALS:
                self.number = number[0]
                self._end()

    def check(self) -> None:
        """Raises KeyboardInterrupt if that of an earlier signal was lost."""
        if self._working and self.number:
            raise KeyboardInterrupt

    def code(self) -> int:
        """The exit code of a process that a signal stopped."""
        return 128 + (self.number or signal.SIGINT)

    def sentence(self) -> str:
        """The message to the user."""
        name = signal.Signals(self.number or signal.SIGINT).name
        return f"interrupted ({name}): run the command again (without --force) to continue"

    @not_in_forked_workers
    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._watched:
            return
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if self._working:
                sys.unraisablehook = self._unraisable_while_stopping
                signal.signal(signal.SIGALRM, self._raise_again)
                signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
                raise KeyboardInterrupt
        elif time.monotonic() - self._since < SAME_SECONDS:
            return
        self._end()

    def _raise_again(self, number: int, frame: FrameType | None) -> None:
        if self._working:
            raise KeyboardInterrupt

    def _unraisable_while_stopping(self, lost: Any) -> None:
        """Python would print the traceback of a KeyboardInterrupt that `__del__` or a weakref callback lost."""
        if lost.exc_type is not KeyboardInterrupt:
            self._unraisable(lost)

    def _end(self) -> NoReturn:
        """Ends the process without Python's shutdown, which could print tracebacks and wait for threads."""
        if os.environ.get("RANK", "0") == "0":
            # Not print(): the signal may have interrupted a call of it.
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, f"{self.sentence()}\n".encode())
        end_process(self.code())


def end_process(code: int) -> NoReturn:
    """Exits without Python's shutdown, and ends worker processes too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, RuntimeError, ValueError):  # closed, or the signal interrupted a write to it
            continue
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(code)


STOP = Stop()
"""The signal state of this process."""
