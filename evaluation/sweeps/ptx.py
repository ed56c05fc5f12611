"""Loss on pretraining text against reward over PPO's coefficients: the contents of sweep.json.

Figures 33 and 34 of Ouyang et al. 2022 show public benchmarks and the validation reward against the coefficient of the
pretraining mix, and against that of the KL penalty without the mix. Here the loss on held-out pretraining text replaces
the benchmarks (ours).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.intervals import Bootstrap
from evaluation.compare import by_scores, scores_of, win_rate
from evaluation.sweeps.measure import JUDGES, OTHERS, Measured

PARTS = (*JUDGES, *OTHERS)


@dataclass(frozen=True)
class Point:
    """The PPO runs with these coefficients."""

    gamma: float
    beta: float
    runs: Mapping[int, Measured]
    """By seed."""

    def report(self, sft: Measured, tie_width: float, bootstrap: Bootstrap) -> dict[str, Any]:
        """Means over seeds with intervals over users (the loss: over documents), and each seed's reward and loss.

        `perplexity` is exp of the mean loss, and the win rate is by the labeler's rubric, against SFT.
        """
        runs = list(self.runs.values())
        losses = mean_over_seeds([run.losses for run in runs])
        loss = sft.loss_interval(losses, bootstrap)
        own = {part: mean_over_seeds([run.means(part) for run in runs]) for part in PARTS}
        answers = [
            [given for run in rows for given in run] for rows in zip(*(run.answers for run in runs), strict=True)
        ]
        return {
            "gamma": self.gamma,
            "beta": self.beta,
            "pretraining_loss": loss,
            "pretraining_loss_change": sft.loss_interval(minus(losses, sft.losses), bootstrap),
            "perplexity": math.exp(loss["mean"]),
            **{part: bootstrap.interval(values) for part, values in own.items()},
            **{f"{judge}_change": bootstrap.interval(minus(own[judge], sft.means(judge))) for judge in JUDGES},
            "kl": bootstrap.interval(mean_over_seeds([run.kl for run in runs])),
            "win_rate": win_rate(by_scores(scores_of(answers), scores_of(sft.answers), tie_width), bootstrap),
            "seeds": {
                str(seed): {"proxy": average(run.means("proxy")), "pretraining_loss": average(run.losses)}
                for seed, run in self.runs.items()
            },
        }


def ptx_sweep(sft: Measured, points: Sequence[Point], tie_width: float, bootstrap: Bootstrap) -> dict[str, Any]:
    """SFT and every point."""
    own = Point(0.0, 0.0, {0: sft}).report(sft, tie_width, bootstrap)
    shown = ("pretraining_loss", "perplexity", *PARTS)
    return {
        "sft": {name: own[name] for name in shown},
        "points": [point.report(sft, tie_width, bootstrap) for point in points],
    }


def mean_over_seeds(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each entry over the rows, one of each seed."""
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The differences."""
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def average(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)
