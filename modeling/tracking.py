"""Progress that can be seen: a line and a bar on the screen, `metrics.jsonl` and TensorBoard underneath."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Appends one row of numbers a step to `metrics.jsonl` and to TensorBoard; only the main process should hold one."""

    def __init__(self, folder: Path, resume_after: int = 0) -> None:
        """Keeps the rows up to step `resume_after` and drops later ones, which a resumed run makes again."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= resume_after]
        beside = self.path.with_suffix(".partial")
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        beside.replace(self.path)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_after + 1)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; none where there is no file. A last row that was cut off while being written is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows
