"""Interrupted stages: how long they have run, and which results they need to resume."""

import importlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from modeling.disk import write_whole
from stages.config import STAGES

if TYPE_CHECKING:
    from stages.runner import RunFolder, Stage

SESSION = "session.json"
SWEEPS, BASELINE = "sweep_*/*.partial/checkpoints/*", "sft_baseline*.partial/trainer/*"
READERS = {"data": (BASELINE, SWEEPS)} | dict.fromkeys(("sft", "samples", "labels", "reward"), (SWEEPS,))
"""Stage -> the checkpoints of stages outside the pipeline that were interrupted and read its result."""


def begin_session(partial: Path) -> float:
    """Starts a session in session.json and returns the seconds of the earlier ones; a killed session counts until its
    last write to the folder.
    """
    path, seconds = partial / SESSION, 0.0
    if path.is_file():
        before = json.loads(path.read_text())
        last = max(file.stat().st_mtime for file in partial.rglob("*") if file.is_file())
        seconds = before["earlier_seconds"] + max(0.0, last - before["began"])
    write_whole(path, json.dumps({"earlier_seconds": seconds, "began": time.time()}).encode())
    return float(seconds)


def resumable(stage: "Stage", run: "RunFolder") -> bool:
    """Whether the stage was interrupted and has checkpoints."""
    return any(any((run.partial(stage.name) / name).glob("*")) for name in stage.scratch)


def interrupted_after(name: str, run: "RunFolder") -> list[Path]:
    """The partial folders, with checkpoints, of interrupted stages that read a stage's result."""
    later = STAGES[STAGES.index(name) + 1 :] if name in STAGES else ()
    folders = [run.partial(name) for name in later if resumable(importlib.import_module(f"stages.{name}").STAGE, run)]
    for pattern in READERS.get(name, ()):
        partials = dict.fromkeys(saved.parent.parent for saved in sorted(run.root.glob(pattern)))
        folders += [partial for partial in partials if not stopped(partial)]
    return folders


def refuse_to_replace_inputs(stage: "Stage", run: "RunFolder") -> None:
    """Raises ValueError if a later stage was interrupted: it could not resume with another result of this stage."""
    if folders := interrupted_after(stage.name, run):
        many = len(folders) > 1
        names = (folder.relative_to(run.root).parts[0].removesuffix(".partial") for folder in folders)
        commands = dict.fromkeys(f"`make {name.removesuffix('_epochs').replace('sweep_', 'sweep-')}`" for name in names)
        raise ValueError(
            f"{stage.name} would run again, because its configuration or its inputs have changed, but "
            f"{', '.join(map(str, folders))} hold{'s' * (not many)} the checkpoints of "
            f"{'interrupted runs that need' if many else 'an interrupted run that needs'} the present result: finish "
            f"{'those runs' if many else 'that run'} with {' and '.join(commands)} and "
            f"{'their' if many else 'its'} own settings, undo the change, or remove "
            f"{'those folders' if many else 'that folder'} to start over"
        )


def stopped(partial: Path) -> bool:
    """Whether a sweep lists the point as stopped by a monitor, and it has not been continued since."""
    results = partial.parent / "sweep.json"
    if not results.is_file() or partial.stem not in json.loads(results.read_text()).get("stopped", {}):
        return False
    newest = max(saved.stat().st_mtime for saved in (partial / "checkpoints").iterdir())
    return newest <= results.stat().st_mtime
