"""The log of a PPO run: `metrics.jsonl`, `timings.jsonl`, `samples.jsonl` and the trackers."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from data.tokenize import decode_completion
from modeling.accelerator import from_main
from modeling.run import Run
from modeling.tracking import RowLog, Tracker
from ppo.experience import Experience


class MetricsLogger:
    """The first process writes. All processes call the methods together, so an error such as a full disk stops all of
    them.
    """

    def __init__(self, run: Run, resume_after: int) -> None:
        """Drops rows of iterations after `resume_after`, which a resumed run repeats."""
        assert run.out is not None
        self.accelerator, out, tracking = run.accelerator, run.out, run.tracking
        self._tracker: Tracker | None = None
        self._samples: RowLog | None = None

        def open_all() -> None:
            self._samples = RowLog(out / "samples.jsonl", resume_after)
            self._tracker = Tracker(out, resume_after, tracking)

        from_main(self.accelerator, open_all)

    def log(
        self,
        iteration: int,
        numbers: Mapping[str, float],
        timings: Mapping[str, float],
        samples: Sequence[Mapping[str, Any]],
    ) -> None:
        """Writes and flushes the rows of an iteration. Raises ValueError when the disk is full.

        Args:
            timings: numbers that differ between identical runs.
        """

        def write() -> None:
            assert self._tracker is not None
            assert self._samples is not None
            self._samples.log(iteration, *samples)
            self._tracker.log(iteration, numbers, timings)

        from_main(self.accelerator, write)

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is not None:
            self._tracker.close()


def samples_of(experience: Experience, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """The first `count` episodes as text, for samples.jsonl."""
    rollout, scores = experience.rollout, experience.scores
    kl_BT = rollout.padded(scores.logprobs_R - scores.ref_logprobs_R)
    return [
        {
            "prompt": prompt.text,
            "response": decode_completion(tokenizer, response.ids, response.ended),
            "ended": response.ended,
            "score": float(scores.rewards_B[row]),
            "kl": float(kl_BT[row].sum()),
        }
        for row, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True))
        if row < count
    ]
