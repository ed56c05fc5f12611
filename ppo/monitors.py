"""Monitors that stop a run that has gone wrong, or warn.

| monitor | fires when |
|---|---|
| `not_finite` | a number of the row is NaN or infinite |
| `kl` | the KL to the SFT policy is above `max_kl` |
| `entropy` | the policy's entropy is below `min_entropy`, or below `min_entropy_fraction` of the first iteration's |
| `cut_off` | no response has ended with EOS for `cut_off_iterations` in a row |
| `over_optimisation` | on held-out prompts, the reward model's score rises while an independent judge's falls |

A monitor depends only on the rows of metrics.jsonl and held_out.jsonl. A resumed run reads them again, so its monitors
behave as in an uninterrupted run; all processes have the same numbers, so all of them stop.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.numbers import AtLeastThree, FractionBelowOne, NonNegativeFloat, PositiveFloat, PositiveInt

Action = Literal["stop", "warn", "ignore"]
Numbers = Mapping[str, float]


class StoppedRunError(ValueError):
    """A monitor stopped the run."""


@dataclass
class MonitorSettings:
    """`stop` ends the run before anything of the iteration is saved; `warn` logs when a monitor starts to fire;
    `ignore` turns it off.

    All ours: by default a monitor stops the run if continuing is hardly ever intended, and warns if it may be.
    """

    not_finite: Action = "stop"
    """A metric is NaN or infinite. Ours."""
    kl: Action = "stop"
    """The roll-out's KL to the SFT policy is above `max_kl`; stops before the update. Ours."""
    max_kl: PositiveFloat = 100.0
    """Nats per episode. The SFT model would sample such a response with a probability of e^-100: the reward model has
    seen nothing similar. Ours."""
    entropy: Action = "warn"
    """The policy's entropy has collapsed; in tasks with one right answer this is the goal, not a failure. Ours."""
    min_entropy: NonNegativeFloat = 0.01
    """Nats per token; 0 sets no limit. Ours."""
    min_entropy_fraction: FractionBelowOne = 0.1
    """Fraction of the first iteration's entropy; 0 sets no limit. Ours."""
    cut_off: Action = "warn"
    """No response ends with EOS; in some tasks all responses have one length. Ours."""
    cut_off_iterations: PositiveInt = 5
    """Number of iterations in a row. Ours."""
    over_optimisation: Action = "warn"
    """The score of the reward model rises on held-out prompts while the judge's falls, see `over_optimised`; needs
    ppo.held_out.every. Ours."""
    over_optimisation_evaluations: AtLeastThree = 5
    """Number of last evaluations for the linear fits; at least 3, to show a trend. Ours."""
    over_optimisation_errors: PositiveFloat = 2.0
    """Standard errors by which both must have changed. At 2 and a rising score, false alarms follow fewer than 1 in 40
    evaluations. Ours."""


class Monitors:
    """Checks the metrics of a run."""

    def __init__(self, settings: MonitorSettings, past: Iterable[Numbers] = ()) -> None:
        """
        Args:
            past: rows of metrics.jsonl and held_out.jsonl up to the checkpoint that the run resumes from, in any order.
        """
        self.settings = settings
        self.rows: dict[int, dict[str, float]] = {}
        for row in past:
            self.rows.setdefault(int(row["step"]), {}).update(
                {name: value for name, value in row.items() if name != "step"}
            )
        self.firing = self._found()
        self._reported: set[str] = set()
        self._iteration: int | None = None

    def check(self, iteration: int, numbers: Numbers) -> list[str]:
        """Adds metrics to the iteration's row; returns a warning for each monitor that starts to fire.

        May be called several times per iteration: the metrics of the roll-out can stop the run before the weights
        change. Raises StoppedRunError for a monitor that stops.
        """
        if iteration != self._iteration:
            self._iteration, self._reported = iteration, set(self.firing)
        self.rows.setdefault(iteration, {}).update(numbers)
        self.firing = self._found()
        for name, finding in self.firing.items():
            if getattr(self.settings, name) == "stop":
                raise StoppedRunError(
                    f"iteration {iteration}: {finding}; this iteration is not saved; set ppo.monitors.{name}=warn "
                    "to continue from the last checkpoint, or from the start if there is none"
                )
        new = [name for name in self.firing if name not in self._reported]
        self._reported.update(new)
        return [f"warning: iteration {iteration}: {self.firing[name]} (ppo.monitors.{name})" for name in new]

    @property
    def warnings(self) -> dict[str, float]:
        """The metric `warnings`: the number of monitors that fire."""
        return {"warnings": float(len(self.firing))}

    def _found(self) -> dict[str, str]:
        """The finding of each monitor that fires."""
        rows = [self.rows[step] for step in sorted(self.rows)]
        steps = sorted(self.rows)
        found = {
            name: monitor(self.settings, steps, rows)
            for name, monitor in MONITORS.items()
            if getattr(self.settings, name) != "ignore"
        }
        return {name: finding for name, finding in found.items() if finding is not None}


def warnings_of(settings: MonitorSettings, rows: Iterable[Numbers]) -> list[str]:
    """The warnings of a whole run, one for each time a monitor starts to fire.

    Args:
        rows: those of metrics.jsonl and held_out.jsonl.
    """
    by_step = Monitors(settings, rows).rows
    only_warning = {name: "warn" for name in MONITORS if getattr(settings, name) == "stop"}
    monitors = Monitors(replace(settings, **only_warning))  # type: ignore[arg-type]
    return [sentence for step in sorted(by_step) for sentence in monitors.check(step, by_step[step])]


def not_finite(settings: MonitorSettings, steps: Sequence[int], rows: Sequence[Numbers]) -> str | None:
    """Whether a metric of the last row is NaN or infinite."""
    bad = [f"{name} is {value}" for name, value in (rows[-1].items() if rows else ()) if not math.isfinite(value)]
    return ", ".join(bad) or None


def kl(settings: MonitorSettings, steps: Sequence[int], rows: Sequence[Numbers]) -> str | None:
    """Whether the KL of the last roll-out is above its limit."""
    found = _values(rows, "kl")
    if found and found[-1] > settings.max_kl:
        return (
            f"the KL to the SFT policy is {found[-1]:.4g} nats per episode, above "
            f"ppo.monitors.max_kl={settings.max_kl:g}"
        )
    return None


def entropy(settings: MonitorSettings, steps: Sequence[int], rows: Sequence[Numbers]) -> str | None:
    """Whether the last entropy is below a limit."""
    found = _values(rows, "entropy")
    if not found:
        return None
    limits = {
        f"ppo.monitors.min_entropy={settings.min_entropy:g}": settings.min_entropy,
        f"ppo.monitors.min_entropy_fraction={settings.min_entropy_fraction:g} of the {found[0]:.4g} of the first "
        "iteration": (settings.min_entropy_fraction * found[0]),
    }
    for name, limit in limits.items():
        if found[-1] < limit:
            return f"the policy's entropy is {found[-1]:.4g} nats per token, below {name}"
    return None


def cut_off(settings: MonitorSettings, steps: Sequence[int], rows: Sequence[Numbers]) -> str | None:
    """Whether no response of the last iterations ended with EOS."""
    found = _values(rows, "ended")[-settings.cut_off_iterations :]
    if len(found) == settings.cut_off_iterations and not any(found):
        return (
            f"ended has been 0 for ppo.monitors.cut_off_iterations={settings.cut_off_iterations} iterations: "
            "every response is cut off at ppo.max_new_tokens"
        )
    return None


def over_optimised(settings: MonitorSettings, steps: Sequence[int], rows: Sequence[Numbers]) -> str | None:
    """Whether the policy exploits the reward model (Gao et al. 2022): on held-out prompts, the reward model's score
    rises while an independent judge's score of the same responses falls.

    A line is fitted to each over the last evaluations; both must have changed by more than `over_optimisation_errors`
    standard errors.
    """
    keys = ("held_out_score", "held_out_score_se", "held_out_judge", "held_out_judge_se")
    count = settings.over_optimisation_evaluations
    found = [
        (step, *(row[key] for key in keys))
        for step, row in zip(steps, rows, strict=True)
        if all(key in row for key in keys)
    ][-count:]
    if len(found) < count:
        return None
    places, scores, score_errors, judged, judge_errors = zip(*found, strict=True)
    up, up_error = rise(places, scores, score_errors)
    down, down_error = rise(places, judged, judge_errors)
    if up > settings.over_optimisation_errors * up_error and down < -settings.over_optimisation_errors * down_error:
        return (
            f"since iteration {places[0]} the reward model's score of held-out prompts rose by {up:.3g} (standard "
            f"error {up_error:.2g}) while the judge's fell by {-down:.3g} ({down_error:.2g}), each by more than "
            f"ppo.monitors.over_optimisation_errors={settings.over_optimisation_errors:g} standard errors over {count} "
            "evaluations: the policy exploits the reward model"
        )
    return None


def rise(places: Sequence[float], values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """(rise of the least-squares line through the values from the first place to the last, its standard error).

    The errors of the values are treated as independent. Evaluations answer the same prompts with the same random
    numbers, so shared errors cancel in the rise and its true error is smaller: the monitor fires too rarely rather than
    too often.
    """
    middle = sum(places) / len(places)
    spread = sum((place - middle) ** 2 for place in places)
    weights = [(place - middle) / spread * (places[-1] - places[0]) for place in places]
    return sum(w * v for w, v in zip(weights, values, strict=True)), math.sqrt(
        sum((w * e) ** 2 for w, e in zip(weights, errors, strict=True))
    )


def _values(rows: Sequence[Numbers], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


MONITORS: dict[str, Callable[[MonitorSettings, Sequence[int], Sequence[Numbers]], str | None]] = {
    "not_finite": not_finite,
    "kl": kl,
    "entropy": entropy,
    "cut_off": cut_off,
    "over_optimisation": over_optimised,
}
