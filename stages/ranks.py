"""What the processes of a run tell each other about errors: which one ended first, and what has been printed.

They use the store under MASTER_ADDR and MASTER_PORT through which torch.distributed made them a group. torchrun's agent
keeps it, so it outlives any of them.
"""

import os
import sys
import time
from datetime import timedelta
from functools import cache
from hashlib import sha256
from typing import Any

SECONDS = 3.0
"""How long a process waits for a store that may have gone with the process that kept it."""
WORD_SECONDS = 0.5
"""How long a process that lost another waits for that one's word, or for the Ctrl-C that ended both."""
LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""In messages of torch.distributed about a process that has gone; gloo's are plain RuntimeErrors."""


def own_rank() -> int:
    """This process's number, 0 for one that is alone."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def should_say(error: Exception, sentence: str) -> bool:
    """Whether this process is to print its error. Notes the first failure for the others."""
    if count() == 1:
        return True
    if getattr(error, "from_main", False) or "torch" not in sys.modules:
        # Raised by process 0 in all of them, or by a configuration that all of them read.
        return own_rank() == 0
    store = failures()
    store.note(sentence)
    return store.first_to_say(sentence)


def failure_elsewhere(error: Exception) -> str | None:
    """A sentence, if the error is only the consequence of another process's end; it names that one if it left word."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return None
    words = str(error)
    of_torch = any(base.__name__ == "DistError" for base in type(error).__mro__)
    if not of_torch and not any(sign in words for sign in LOST_PEER):
        return None
    if "imed out" in words or "imeout" in words:
        return "waited longer than processes.timeout_minutes for another process: raise it if one of them has more than that to do alone"
    time.sleep(WORD_SECONDS)
    first = failures().first()
    return f"stopped, because {first}" if first else "stopped, because another process ended or cannot be reached"


class Failures:
    """Failures and printed sentences in the store of this run; nothing where it cannot be reached."""

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
        except RuntimeError:  # whoever kept it has gone
            return

    def note(self, sentence: str) -> None:
        """Leaves word why this process ended, unless another did before."""
        if self._store is not None and self._store.add("failures", 1) == 1:
            self._store.set("first", f"process {own_rank()} ended: {sentence}")

    def first(self) -> str | None:
        """Which process ended first, and why."""
        if self._store is None or self._store.add("failures", 0) == 0:
            return None
        return self._store.get("first").decode()

    def first_to_say(self, sentence: str) -> bool:
        """Whether no other process has printed this sentence."""
        return self._store is None or self._store.add(sha256(sentence.encode()).hexdigest(), 1) == 1


@cache
def failures() -> Failures:
    """This run's, connected to once."""
    return Failures()
