"""SIGTERM, Ctrl-C and SIGHUP (the terminal or ssh session is closed): saves a checkpoint at the next possible point,
then stops.

A checkpoint holds the state between two iterations. A roll-out changes no state, so after the first signal a single
process aborts its roll-out at once, and several processes stop when all have finished theirs; a running update is
always finished. A second signal stops at once; a resumed run then starts from the last checkpoint.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

from modeling.forks import not_in_forked_workers

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_SECONDS = 2.0
"""A signal so soon after the first is a duplicate: the terminal and torchrun both forward Ctrl-C."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; the message says how to resume."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Interrupt:
    """Context manager that records these signals instead of ending the process."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.number = 0
        """The signal received; 0 if none."""
        self._since = 0.0
        self._breakable = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.number and error is None:  # Too late for `agreed`: the outer signal handler decides.
            signal.raise_signal(self.number)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Context manager around work that changes no state. In a single process, a signal aborts it and execution
        continues after the block, where `agreed` returns true."""
        self._breakable = self.accelerator.num_processes == 1
        try:
            yield
        except Interrupted as stop:
            if str(stop):  # the second signal
                raise
        finally:
            self._breakable = False

    def agreed(self) -> bool:
        """Whether a signal reached any process. All processes call it together and get the same result."""
        noted = torch.tensor([float(self.number == number) for number in SIGNALS], device=self.accelerator.device)
        anywhere = [number for number, count in zip(SIGNALS, reduce(noted, "sum").tolist(), strict=True) if count]
        if not self.number and anywhere:
            self.number, self._since = anywhere[0], time.monotonic()
        # A signal that arrives after the sum is reported by the next call.
        return bool(anywhere)

    def stop(self, done: int, iterations: int) -> Interrupted:
        """The exception to raise after saving."""
        name = signal.Signals(self.number).name
        where = f"stopped by {name} after {done} of {iterations} iterations"
        return Interrupted(self.number, f"{where}: run the command again (without --force) to resume")

    @not_in_forked_workers
    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if self.accelerator.is_main_process:
                # print is not safe here: the signal may have interrupted another print.
                name = signal.Signals(number).name
                said = f"\n{name}: saving a checkpoint and stopping; a second signal stops at once\n"
                with suppress(OSError):  # the terminal may be closed
                    os.write(2, said.encode())
            if self._breakable:
                raise Interrupted(number)
        elif self._again():
            raise Interrupted(
                number, "stopped at once: run the command again (without --force) to resume from the last checkpoint"
            )

    def _again(self) -> bool:
        return time.monotonic() - self._since > SAME_SECONDS
