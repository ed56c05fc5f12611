"""Logs metrics to `metrics.jsonl`, and to TensorBoard, Weights & Biases or trackio.

`metrics.jsonl` depends only on configuration and seed, so that two runs can be compared byte for byte; timings are in
`timings.jsonl`. The trackers, which get both, are accelerate's (accelerate.tracking).
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from modeling.config import TrackingConfig
from modeling.disk import room_for, sync, write_whole

RUNS = "tracker_runs.json"
"""The file with the run's id in each tracker, with which a resumed run continues the same curves."""
CLOCKWORK = ("timings.jsonl", RUNS, "tensorboard")
"""Files of tracking that differ between two equal runs."""


class RowLog:
    """A JSON Lines file to which each step appends a few rows, and which survives a kill; only the main process should
    open one.
    """

    def __init__(self, path: Path, resume_after: int = 0) -> None:
        """Keeps the rows up to step `resume_after` and drops later ones, which a resumed run writes again.

        Raises ValueError for a damaged row before the last one that is kept.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = whole_lines(path)
        steps = [step_of(line) for line in lines]
        kept = [place for place, step in enumerate(steps) if step is not None and step <= resume_after]
        if kept and None in steps[: kept[-1]]:
            raise ValueError(damaged(path, steps.index(None)))
        with room_for(path):
            write_whole(path, b"".join(lines[place] for place in kept))

    def log(self, step: int, *rows: Mapping[str, Any]) -> None:
        """Appends rows and flushes them to the disk. Raises ValueError when it is full."""
        with room_for(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


class Tracker:
    """Logs one row of numbers per step to files and to the configured trackers; only the main process should create
    one.
    """

    def __init__(self, folder: Path, resume_after: int = 0, config: TrackingConfig | None = None) -> None:
        """Continues after step `resume_after`; rows of later steps are dropped.

        Raises ValueError when a tracker's package is missing.
        """
        config = config or TrackingConfig()
        config.validate()
        self.path = folder / "metrics.jsonl"
        self.metrics, self.timings = RowLog(self.path, resume_after), RowLog(folder / "timings.jsonl", resume_after)
        with room_for(folder):
            self.trackers = [start(kind, config.project, folder, resume_after) for kind in config.to]

    def log(self, step: int, numbers: Mapping[str, float], timings: Mapping[str, float] | None = None) -> None:
        """Logs one row: `numbers` depend only on configuration and seed, `timings` do not.

        Raises ValueError when the disk is full.
        """
        self.metrics.log(step, numbers)
        if timings:
            self.timings.log(step, timings)
        values = {**numbers, **(timings or {})}
        with room_for(self.path.parent):
            for tracker in self.trackers:
                tracker.log(values, step=step)

    def close(self) -> None:
        """Finishes the trackers' runs."""
        with room_for(self.path.parent):
            for tracker in self.trackers:
                tracker.finish()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start(kind: str, project: str, folder: Path, resume_after: int) -> GeneralTracker:
    """Starts a tracker; a resumed run continues its earlier run there."""
    tracker: GeneralTracker
    if kind == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", str(folder), purge_step=resume_after + 1)
    else:
        stage = folder.name.removesuffix(".partial")
        name, run = f"{folder.parent.name}/{stage}", run_of(kind, folder)
        if kind == "wandb":
            tracker = WandBTracker(
                project, id=run, name=name, group=folder.parent.name, resume="allow", dir=str(folder.parent)
            )
        else:
            tracker = TrackioTracker(project, name=f"{name}-{run}", group=folder.parent.name, resume="allow")
    PartialState()  # required by the trackers' logging; stages have created it already
    tracker.start()
    return tracker


def run_of(kind: str, folder: Path) -> str:
    """The id of the run in a tracker, drawn once and stored in the folder before anything is sent."""
    path = folder / RUNS
    runs: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    if kind not in runs:
        runs[kind] = secrets.token_hex(4)
        write_whole(path, f"{json.dumps(runs)}\n".encode())
        sync(folder.parent)
    return runs[kind]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; none if there is no file. A truncated last row is left out.

    Raises ValueError for a damaged row.
    """
    lines = whole_lines(path)
    for place, line in enumerate(lines):
        if step_of(line) is None:
            raise ValueError(damaged(path, place))
    return [json.loads(line) for line in lines]


def read_numbers(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`, each with the timings of its step from `timings.jsonl`."""
    timings = {row["step"]: row for row in read_metrics(folder / "timings.jsonl")}
    return [{**row, **timings.get(row["step"], {})} for row in read_metrics(folder / "metrics.jsonl")]


def whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file, each with its line break; none if there is no file."""
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [line + b"\n" for line in lines]


def step_of(line: bytes) -> int | None:
    """The step of a row; None if it is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None


def damaged(path: Path, place: int) -> str:
    """The message for a damaged row; `place` counts from 0."""
    return f"{path}:{place + 1}: the row is damaged: repair or remove it"
