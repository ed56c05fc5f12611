"""Reports an error that ended a run: one sentence on stderr, an exit code, and the traceback in a file.

Exit code 2: something that the user can fix (a setting, a file, the disk, memory, the network). Exit code 1: a bug in
this project.
"""

import contextlib
import errno
import io
import os
import select
import sys
import tempfile
import traceback
from pathlib import Path

from modeling.disk import FULL, error_number, free_bytes, mib
from modeling.memory import out_of_memory

MEMORY = (
    "lower sft.micro_batch_size, samples.batch_size, reward.max_tokens_per_micro_batch, "
    "ppo.max_tokens_per_micro_batch, ppo.rollout_batch_size, evaluate.batch_size, tax.max_tokens_per_micro_batch or "
    "tax.batch_size, depending on the stage, or train with model.adapter lora"
)
NETWORK = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp", "fsspec")
FILES = ("datasets", "safetensors", "tokenizers", "pyarrow", "yaml", "jinja2", "wandb", "trackio")
"""Packages whose exceptions report problems with the user's network, files, templates or accounts."""
GPU = ("CUDA-capable devices are busy or unavailable", "no kernel image is available")
"""Parts of CUDA's messages about a GPU that others hold, or that this build of torch does not support."""
ROOM = 256 * 2**20
"""A disk with more free bytes is probably not the full one."""
LONGEST = 600
"""Maximum length of a library's message on stderr; the traceback file has all of it."""


class InUseError(ValueError):
    """Another process uses the run folder, so nothing may be written to it, not even the traceback of an error."""


def report(error: Exception, root: Path | None) -> int:
    """Prints the sentence, unless another process of the run has printed it, and returns the exit code.

    Args:
        root: the run folder, None if it is not known yet.
    """
    from stages import ranks

    elsewhere = ranks.failure_elsewhere(error)
    sentence, code = (elsewhere, 2) if elsewhere is not None else explain(error, root)
    rank = ranks.own_rank()
    if not ranks.should_say(error, sentence):
        return code
    of_rank = f"process {rank} of {ranks.count()}: " if rank else ""
    place = keep_traceback(error, root, rank, known=code == 2 and isinstance(error, ValueError))
    if code == 1:
        sentence = f"internal error: {sentence}; the traceback is in {place}; please report it"
    elif place is not None and (root is None or place.parent != root):
        sentence = f"{sentence} (the traceback is in {place})"
    say(f"error: {of_rank}{sentence}")
    return code


def say(sentence: str) -> None:
    """Prints a line on stderr, unless it is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)


def explain(error: Exception, root: Path | None = None) -> tuple[str, int]:
    """(one sentence, exit code); `root` is the run folder, if it is known."""
    words = " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError):
        byte = f"{error.object[error.start]:#04x} at {error.start}"
        return f"a text file is not UTF-8 (byte {byte}): save it as UTF-8", 2
    if isinstance(error, BrokenPipeError) and output_closed():
        quiet_stdout()
        return "the output was closed (a pipe or terminal): redirect it to a file and run the command again", 2
    if out_of_memory(error):
        return f"out of memory ({shortened(words) or 'no details'}): {MEMORY}", 2
    if isinstance(error, RuntimeError) and any(sign in words for sign in GPU):
        return f"the GPU cannot be used: {shortened(words)}", 2
    if (number := error_number(error)) is not None:
        return of_system(error, number, words, root), 2
    if isinstance(error, RuntimeError) and "inline_container" in words:  # torch.save, which gives no error number
        return of_system(error, errno.ENOSPC, f"a checkpoint could not be written ({shortened(words)})", root), 2
    if isinstance(error, (ValueError, OSError, ImportError)):
        return (words if isinstance(error, ValueError) else shortened(words)) or type(error).__name__, 2
    if any(base.__module__.split(".")[0] in NETWORK + FILES for base in type(error).__mro__):
        return f"{shortened(words)} ({type(error).__module__.split('.')[0]}'s {type(error).__name__})", 2
    return f"{type(error).__name__}: {shortened(words)}", 1


def of_system(error: Exception, number: int, words: str, root: Path | None) -> str:
    """An error of the operating system, with its file and advice."""
    names = (getattr(error, name, None) for name in ("filename2", "filename"))
    place = next((name for name in names if name is not None), None)
    what = os.strerror(number)
    # Errors without a file (from Arrow, Rust, the Hub or sockets) have only the class's own text.
    head = f"{os.fsdecode(place)}: {what}" if isinstance(place, str | bytes | os.PathLike) else shortened(words) or what
    if place is None and number in FULL:
        # The full disk may also be that of temporary files.
        free = {folder: free_bytes(folder) for folder in (root, Path(tempfile.gettempdir())) if folder is not None}
        head += f" ({', '.join(f'{folder} has {mib(size)} free' for folder, size in free.items())}"
        elsewhere = number == errno.ENOSPC and min(free.values()) > ROOM
        head += "; the output may go to a file on a full disk)" if elsewhere else ")"
    if what not in head:
        head = f"{head} ({what})"
    return head + ADVICE.get(number, "")


def advice() -> dict[int, str]:
    """Advice for common errors."""
    room = ": free some space and run the command again to resume"
    return dict.fromkeys(FULL, room) | {
        errno.EROFS: ": choose a writable place",
        errno.EACCES: ": change its permissions, or choose another place",
        errno.EPERM: ": change its permissions, or choose another place",
        errno.EISDIR: ": expected a file, found a folder",
        errno.ENOTDIR: ": expected a folder",
        errno.ENAMETOOLONG: ": choose a shorter name",
        errno.EEXIST: ": the name is taken; move what is there, or choose another place",
        errno.EMFILE: ": raise the limit of open files (`ulimit -n`)",
    }


ADVICE = advice()


def shortened(words: str) -> str:
    """The beginning of a long message."""
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}..."


def output_closed() -> bool:
    """Whether the standard output is closed. A broken pipe may also be that of a worker process."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLERR)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def replace_missing_outputs() -> None:
    """Replaces `sys.stdout` and `sys.stderr` by the null device if they are None, as after `>&-` in the shell."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))


def quiet_stdout() -> None:
    """Discards the buffered output for a closed pipe, since Python would report an error at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def keep_traceback(error: Exception, root: Path | None, rank: int, known: bool) -> Path | None:
    """Writes the traceback into the run folder or a temporary file; returns its path, or None if it was not written.

    Nothing is written for a `known` error without a run folder.
    """
    text = "".join(traceback.format_exception(error))
    # Path.is_dir raises for a folder that may not be read, or whose name is too long.
    if root is not None and os.path.isdir(root) and not isinstance(error, InUseError):
        place = root / ("last_error.txt" if rank == 0 else f"last_error_of_process_{rank}.txt")
        with contextlib.suppress(OSError):
            place.write_text(text, encoding="utf-8", errors="backslashreplace")
            return place
    elif known:
        return None
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="rlhf-ptx-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return Path(name)
    return None
