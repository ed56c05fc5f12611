"""Resets a run's signal handlers in forked workers (`multiprocessing`, `datasets`), so that a signal ends them.

A handler written in Python is not enough to end a worker: a signal that arrives just before a blocking call, such as
`time.sleep`, is handled only after it, and the parent that waits for the worker hangs. So the worker resets our
handlers to the default action, and no signal is delivered in between.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Handler = TypeVar("Handler", bound=Callable[..., None])
_mask = threading.local()


def not_in_forked_workers(handler: Handler) -> Handler:
    """Decorator for a signal handler: a forked process gets the default action instead."""
    handler.not_in_forked_workers = True  # type: ignore[attr-defined]
    return handler


def _block() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _reset() -> None:
    for number in SIGNALS:
        if getattr(signal.getsignal(number), "not_in_forked_workers", False):
            signal.signal(number, signal.SIG_DFL)
    _unblock()


os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)
