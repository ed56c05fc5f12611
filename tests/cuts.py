"""Kills in the middle of writing, one for each change to the disk; and what a folder holds after them."""

import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save


class Cut(BaseException):
    """A kill: no handler of errors sees it."""


def cut_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Stops whatever happens at its `number`-th change to the names on the disk, or flush, which does not happen any
    more.
    """
    done = 0

    def counted(real: Any) -> Any:
        def count(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            if done >= number:
                raise Cut
            done += 1
            return real(*arguments, **named)

        return count

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync"):
        patch.setattr(os, name, counted(getattr(os, name)))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict[str, bytes]:
    """The same without the metadata of safetensors files, whose order is arbitrary, and without checksums."""
    return {
        name: save(load(content)) if name.endswith(".safetensors") else content
        for name, content in contents(folder).items()
        if not name.endswith("checksums.json")
    }
