"""Atomic file operations: a power cut, a kill or a full disk leaves no incomplete file under its final name."""

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of flock on a file system without file locks, such as some network file systems."""
log = logging.getLogger(__name__)


@contextmanager
def locked_file(path: Path, busy: Exception | None = None) -> Iterator[None]:
    """Holds a file lock, which the operating system releases when the process ends.

    On a file system without locks, a file `<path>.held` that names the process takes its place; one that a dead process
    of this machine left is removed. While another process holds the lock, raises `busy`, or waits if that is None.
    """
    timeout = -1 if busy is None else 0
    lock: FileLock | SoftFileLock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            held = path.with_name(f"{path.name}.held")
            died = "delete it if the process that made it died on another machine or in another container"
            log.warning("the file system of %s has no file locks: using the file %s; %s", path.parent, held.name, died)
            lock = SoftFileLock(held)
            lock.acquire(timeout)
    except Timeout:
        assert busy is not None, "without it there is no timeout"
        raise busy from None
    try:
        yield
    finally:
        lock.release()


def sync(path: Path) -> None:
    """Flushes a file's contents, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_folder(source: Path, target: Path, copy: Callable[[str, str], object], left_out: str) -> None:
    """Copies a folder, but for files with the name `left_out`, into one that may exist. The permissions of folders are
    not copied, so files can be added to the copy of a write-protected folder. Raises the first OSError.
    """

    def stop(error: OSError) -> None:
        raise error

    for folder, _, files in os.walk(source, onerror=stop, followlinks=True):
        into = target / Path(folder).relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        for name in files:
            if name != left_out:
                copy(os.path.join(folder, name), str(into / name))


def share_weights(folder: Path) -> None:
    """Gives the weights below a folder the permissions that new files get there. safetensors writes them through a
    temporary file that nobody but its owner may read (its issue 782), whatever the umask.
    """
    probe = folder / ".permissions"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*.safetensors"):
        with suppress(PermissionError):  # of another owner's file
            if stat.S_IMODE(file.stat().st_mode) != mode:
                file.chmod(mode)


def make_writable(path: str) -> None:
    """Allows the owner to write to a file."""
    os.chmod(path, os.stat(path).st_mode | stat.S_IWUSR)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically: under a temporary name, flushed, then renamed."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def discard(folder: Path) -> None:
    """Removes a folder atomically: it is renamed first, so that no incomplete folder is left under its name. If it is a
    link, only the link is removed.
    """
    remove(discarded(folder))
    if folder.exists() or folder.is_symlink():
        folder.rename(discarded(folder))
        remove(discarded(folder))


def remove(folder: Path) -> None:
    """Removes a folder, or a link to one, if it exists."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def discarded(folder: Path) -> Path:
    """The name of a folder while it is removed; after a kill the remainder is there."""
    return folder.with_name(f".{folder.name}.discarded")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def mib(count: int) -> str:
    """A number of bytes as text, in MiB."""
    return f"{count / 2**20:,.1f} MiB"


@contextmanager
def room_for(path: Path, needed: int | None = None) -> Iterator[None]:
    """Context for a write of about `needed` bytes to `path`: raises ValueError with one sentence when the disk or the
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
    """The errno of an error. Errors raised by libraries written in Rust have it only in their text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
