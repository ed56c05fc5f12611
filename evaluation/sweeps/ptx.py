"""Loss on pretraining text against reward over PPO's coefficients: the contents of sweep.json.

Figures 33 and 34 of Ouyang et al. 2022 show public benchmarks and the validation reward against the coefficient of the
pretraining mix, and against that of the KL penalty without the mix. Here the loss on held-out pretraining text replaces
the benchmarks (ours).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

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
        losses = np.mean([run.losses for run in runs], axis=0)
        own = {part: np.mean([run.means(part) for run in runs], axis=0) for part in PARTS}
        answers = [
            [given for run in rows for given in run] for rows in zip(*(run.answers for run in runs), strict=True)
        ]
        return {
            "gamma": self.gamma,
            "beta": self.beta,
            "pretraining_loss": sft.loss_interval(losses.tolist(), bootstrap),
            "pretraining_loss_change": sft.loss_interval((losses - sft.losses).tolist(), bootstrap),
            "perplexity": math.exp(losses.mean()),
            **{part: bootstrap.interval(values.tolist()) for part, values in own.items()},
            **{f"{judge}_change": bootstrap.interval((own[judge] - sft.means(judge)).tolist()) for judge in JUDGES},
            "kl": bootstrap.interval(np.mean([run.kl for run in runs], axis=0).tolist()),
            "win_rate": win_rate(by_scores(scores_of(answers), scores_of(sft.answers), tie_width), bootstrap),
            "seeds": {
                str(seed): {"proxy": fmean(run.means("proxy")), "pretraining_loss": fmean(run.losses)}
                for seed, run in self.runs.items()
            },
        }


def ptx_sweep(sft: Measured, points: Sequence[Point], tie_width: float, bootstrap: Bootstrap) -> dict[str, Any]:
    """SFT and every point."""
    return {
        "sft": {
            "pretraining_loss": sft.loss_interval(sft.losses, bootstrap),
            "perplexity": math.exp(fmean(sft.losses)),
            **{part: bootstrap.interval(sft.means(part)) for part in PARTS},
        },
        "points": [point.report(sft, tie_width, bootstrap) for point in points],
    }
