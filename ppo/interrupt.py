"""SIGTERM and Ctrl-C: save where nothing is lost, then stop.

A checkpoint can hold the state between two iterations, and nothing between two minibatches. So the first signal stops
at the nearest point where the state is one of those: a lone process leaves its roll-out at once, since a roll-out
changes nothing; several leave when all have rolled out; an update is finished. A second signal stops at once; a resumed
run starts from the last checkpoint and is bit-identical.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch

from modeling.processes import Processes, sum_over_processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_SECONDS = 2.0
"""A signal so soon after the first is the same one: the terminal and torchrun both pass Ctrl-C on."""


class Interrupted(KeyboardInterrupt):
    """The run was told to stop, and its words are where it goes on."""

    def __init__(self, number: int, words: str = "") -> None:
        super().__init__(words)
        self.exit_code = 128 + number


class Interrupt:
    """Within it, the two signals are noted instead of ending the process."""

    def __init__(self, team: Processes) -> None:
        self.team = team
        self.number = 0
        """The signal that came, 0 if none did."""
        self._since = 0.0
        self._breakable = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
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
        """Around work that changes nothing. Where nobody else takes part in it, a signal ends it at once and goes on
        after the block, where `agreed` will be true."""
        self._breakable = self.team.count == 1
        try:
            yield
        except Interrupted as stop:
            if str(stop):  # the second signal
                raise
        finally:
            self._breakable = False

    def agreed(self) -> bool:
        """Whether a signal reached any process; the same answer in all of them, which must all ask."""
        numbers = torch.zeros(2, device=self.team.device)
        numbers[0], numbers[1] = float(self.number == signal.SIGTERM), float(self.number == signal.SIGINT)
        terminated, interrupted = sum_over_processes(numbers).tolist()
        if not self.number and (terminated or interrupted):
            self.number = signal.SIGTERM if terminated else signal.SIGINT
            self._since = time.monotonic()
        # A signal that came since the sum was asked for is another process's news at the next call.
        return bool(terminated or interrupted)

    def stop(self, done: int, iterations: int) -> Interrupted:
        """What to raise when all is saved."""
        name = signal.Signals(self.number).name
        where = f"stopped by {name} after {done} of {iterations} iterations"
        return Interrupted(self.number, f"{where}: run the command again (without --force) to resume")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if self.team.is_main:
                # print is not safe here: the signal may have come while something was being printed.
                os.write(
                    2, f"\n{signal.Signals(number).name}: saving and stopping soon; once more stops at once\n".encode()
                )
            if self._breakable:
                raise Interrupted(number)
        elif self._again():
            raise Interrupted(
                number, "stopped at once: run the command again (without --force) to resume from the last checkpoint"
            )

    def _again(self) -> bool:
        return time.monotonic() - self._since > SAME_SECONDS
