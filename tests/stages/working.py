"""Stages that write one file, for tests of how stages are run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.config import RunConfig
from stages.runner import RunFolder, Stage


class Work:
    """A stage's work that writes one file and remembers what it found in its folder."""

    def __init__(
        self, content: Callable[[RunConfig, RunFolder], str] = lambda config, run: "made", fails: bool = False
    ) -> None:
        self.content, self.fails = content, fails
        self.found: list[list[str]] = []

    @property
    def times(self) -> int:
        return len(self.found)

    def __call__(self, config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
        own = ("fingerprint", "session.json")
        self.found.append(sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.name not in own))
        (out / "half.txt").write_text("half")
        if self.fails:
            raise ValueError("it broke")
        (out / "half.txt").unlink()
        (out / "made.txt").write_text(self.content(config, run))
        return {"number": self.times}


def first(work: Work, **changes: Any) -> Stage:
    return Stage("data", sections=("data",), after=(), work=work, **changes)


def second(work: Work) -> Stage:
    return Stage("sft", sections=("sft", "model.lora"), after=("data",), work=work)
