"""Files that a power cut, a kill or a full disk cannot leave in a state that nobody notices."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all: beside its name, flushed, then renamed."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def discard(folder: Path) -> None:
    """Removes a folder of which no half may be left under its name."""
    aside = discarded(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
        shutil.rmtree(aside)


def discarded(folder: Path) -> Path:
    """Where a folder goes to be removed; a kill meanwhile leaves the rest of it there."""
    return folder.with_name(f".{folder.name}.discarded")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """What may still be written below a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:,.1f} MiB"


@contextmanager
def room_for(path: Path, needed: int | None = None) -> Iterator[None]:
    """Around what writes to `path`, of about `needed` bytes: raises ValueError with one sentence when the disk or the
    user's quota is full.
    """
    try:
        yield
    except Exception as error:
        if (code := error_number(error)) not in FULL:
            raise
        assert code is not None
        size = f"about {mib(needed)} are needed, " if needed is not None else ""
        raise ValueError(
            f"cannot write {path} ({os.strerror(code)}): {size}{mib(free_bytes(path.parent))} are free; the last "
            "checkpoint is kept: free some space and run the command again to resume from it"
        ) from error


def error_number(error: Exception) -> int | None:
    """The operating system's number of an error. Libraries written in Rust raise errors of their own, which have it in
    their text alone.
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
