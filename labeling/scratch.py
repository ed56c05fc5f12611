"""Keeps finished work of a sampling stage in its scratch folder, so that a killed run resumes with the missing part."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from modeling.accelerator import from_main
from modeling.disk import room_for, write_whole
from modeling.generation import Generation

T = TypeVar("T")
Job = tuple[int, int]
"""(a prompt's index, an answer's number)."""


class AnswerScratch:
    """The finished answers of one stream, one line of JSON per block. Each process appends to its own file.

    All processes create it together. A resumed run may have a different number of processes: the first one merges all
    files and broadcasts their contents.
    """

    def __init__(self, folder: Path, stream: str, accelerator: Accelerator) -> None:
        name = file_name(stream)
        self.finished: dict[Job, Generation] = from_main(accelerator, lambda: merge(folder, name))
        self.path = folder / f"{name}.rank-{accelerator.process_index}.jsonl"

    def add(self, jobs: Sequence[Job], generations: Sequence[Generation]) -> None:
        """Appends a block and flushes it to the disk. Raises ValueError when the disk is full.

        A block is kept as a whole or not at all, since answers decoded in a different batch may differ in the last bits
        of their log-probabilities.
        """
        # JSON stores floats exactly.
        block = {"jobs": jobs, "generations": [asdict(generation) for generation in generations]}
        with room_for(self.path), self.path.open("ab") as file:
            file.write(f"{json.dumps(block)}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def merge(folder: Path, name: str) -> dict[Job, Generation]:
    """Moves the blocks of all processes into one file and returns what they hold."""
    merged, parts = folder / f"{name}.jsonl", sorted(folder.glob(f"{name}.rank-*.jsonl"))
    blocks = [block for path in (merged, *parts) for block in whole_blocks(path)]
    folder.mkdir(parents=True, exist_ok=True)
    with room_for(merged):
        write_whole(merged, b"".join(line for line, _ in blocks))
    for part in parts:
        part.unlink()
    return {
        (index, number): Generation(**generation)
        for _, block in blocks
        for (index, number), generation in zip(block["jobs"], block["generations"], strict=True)
    }


def whole_blocks(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """(line, its contents) of each block in a file, up to one that was truncated while it was written."""
    found: list[tuple[bytes, dict[str, Any]]] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            block = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        found.append((line, block))
    return found


def remembered(folder: Path, name: str, accelerator: Accelerator, make: Callable[[], T]) -> T:
    """The result of `make`, or the stored one of an earlier run that was killed; JSON values only.

    All processes call this together.
    """
    path = folder / f"{file_name(name)}.json"
    kept: list[T] | None = from_main(accelerator, lambda: json.loads(path.read_text()) if path.is_file() else None)
    if kept is not None:
        return kept[0]
    made = make()

    def write() -> None:
        with room_for(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, f"{json.dumps([made])}\n".encode())

    from_main(accelerator, write)
    return made


def file_name(stream: str) -> str:
    """A stream's name without characters that file systems refuse."""
    return re.sub(r"[^A-Za-z0-9]+", "-", stream)
