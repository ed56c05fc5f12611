"""What a PPO run writes down as it goes: `metrics.jsonl`, `timings.jsonl`, `samples.jsonl`, and the trackers."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from modeling.run import Run
from modeling.tracking import RowLog, Tracker


class MetricsLogger:
    """Written by the first process; all of them call its methods together, so that what stops the first one, such as a
    full disk, stops all.
    """

    def __init__(self, run: Run, resume_after: int) -> None:
        """Rows of iterations after `resume_after`, which a resumed run makes again, are dropped."""
        assert run.out is not None
        self.team, out, tracking = run.team, run.out, run.tracking
        self._tracker: Tracker | None = None
        self._samples: RowLog | None = None

        def open_all() -> None:
            self._samples = RowLog(out / "samples.jsonl", resume_after)
            self._tracker = Tracker(out, resume_after, tracking)

        self.team.from_main(open_all)

    def log(
        self,
        iteration: int,
        numbers: Mapping[str, float],
        timings: Mapping[str, float],
        samples: Sequence[Mapping[str, Any]],
    ) -> None:
        """The rows of an iteration, on the disk when this returns: `timings` are what hangs on the clock. Raises
        ValueError when the disk is full.
        """

        def write() -> None:
            assert self._tracker is not None
            assert self._samples is not None
            self._samples.log(iteration, *samples)
            self._tracker.log(iteration, numbers, timings)

        self.team.from_main(write)

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is not None:
            self._tracker.close()
