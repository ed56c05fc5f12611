"""Shares errors between the processes of a run: which process ended first, and which messages have been printed.

They use the TCPStore at MASTER_ADDR and MASTER_PORT that torch.distributed uses to create the process group. torchrun's
agent hosts it, so it outlives every process.
"""

import os
import sys
import time
from datetime import timedelta
from functools import cache
from hashlib import sha256
from typing import Any

SECONDS = 3.0
"""Seconds that a process waits for the store, whose host may have ended."""
WORD_SECONDS = 0.5
"""Seconds that a process waits for the error of a lost peer, or for the Ctrl-C that ended both."""
SILENT_SECONDS = 5.0
"""Seconds after a timeout in which the other processes time out as well, unless they hang."""
LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Substrings of torch.distributed's messages about a lost process; gloo raises plain RuntimeErrors."""


def own_rank() -> int:
    """The rank of this process, 0 for a single process."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def should_say(error: Exception, sentence: str) -> bool:
    """Whether this process should print its error. Records the first failure for the others."""
    if count() == 1:
        return True
    if getattr(error, "from_main", False) or "torch" not in sys.modules:
        # Raised in all processes, by process 0 or by a configuration that all of them read.
        return own_rank() == 0
    store = failures()
    store.note(sentence)
    return store.first_to_say(sentence)


def failure_elsewhere(error: Exception) -> str | None:
    """A sentence if the error is only a consequence of another process's end; it names that process if it is
    recorded."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return None
    words = str(error)
    of_torch = any(base.__name__ == "DistError" for base in type(error).__mro__)
    if not of_torch and not any(sign in words for sign in LOST_PEER):
        return None
    failures().note_alive()
    if "imed out" in words or "imeout" in words:
        time.sleep(SILENT_SECONDS)
        advice = "it hangs, or needs longer and the timeout must be raised"
        return f"waited longer than processes.timeout_minutes for {failures().silent()}: {advice}"
    time.sleep(WORD_SECONDS)
    first = failures().first()
    if first:
        return f"stopped, because {first}"
    reason = words.partition("Last error:")[2].strip()  # NCCL's
    return f"stopped, because another process ended or cannot be reached{f' ({reason})' if reason else ''}"


class Failures:
    """Failures and printed sentences in the store of this run; empty if the store cannot be reached."""

    def __init__(self) -> None:
        self._store: Any = None
        if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
            return
        from torch.distributed import PrefixStore, TCPStore

        try:
            limit = timedelta(seconds=SECONDS)
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = TCPStore(host, port, is_master=False, timeout=limit, wait_for_workers=False)
            self._store = PrefixStore(f"rlhf-ptx/errors/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        except RuntimeError:  # the host of the store has ended
            return

    def note(self, sentence: str) -> None:
        """Records why this process ended, unless another process ended before."""
        if self._store is not None and self._store.add("failures", 1) == 1:
            self._store.set("first", f"process {own_rank()} ended: {sentence}")

    def note_alive(self) -> None:
        """Records that this process is alive and has lost another."""
        if self._store is not None:
            self._store.set(f"alive/{own_rank()}", "")

    def silent(self) -> str:
        """The processes that have not called `note_alive`: one of them hangs."""
        ranks = [] if self._store is None else range(count())
        found = [str(rank) for rank in ranks if not self._store.check([f"alive/{rank}"])]
        return f"process {' or '.join(found)}" if found else "another process"

    def first(self) -> str | None:
        """The process that ended first, and the reason."""
        if self._store is None or self._store.add("failures", 0) == 0:
            return None
        return self._store.get("first").decode()

    def first_to_say(self, sentence: str) -> bool:
        """Whether no other process has printed this sentence."""
        return self._store is None or self._store.add(sha256(sentence.encode()).hexdigest(), 1) == 1


@cache
def failures() -> Failures:
    """The record of this run; connects once."""
    return Failures()
