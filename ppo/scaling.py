"""Scales scores for PPO: divides them by the running standard deviation and clips them, both optional. Shapes: B
episodes of this process.
"""

from collections.abc import Mapping

import torch
from accelerate.utils import reduce
from torch import Tensor

from ppo.config import PPOConfig

SMALLEST_STD = 1e-6
"""Scores with a smaller standard deviation are not scaled."""


class ScoreScale:
    """Running mean and standard deviation of the scores of all episodes and processes (Chan et al. 1979). Ours; off by
    default.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.running, self.clip = config.score_scaling == "running", config.score_clip
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    @property
    def active(self) -> bool:
        """Whether scores are scaled or clipped."""
        return self.running or self.clip is not None

    def __call__(self, scores_B: Tensor) -> Tensor:
        """scores_B divided by the standard deviation of all scores so far, including these, then clipped to
        [-score_clip, score_clip].
        """
        if self.running:
            self._add(scores_B)
            std = (self.squares / self.count) ** 0.5
            scores_B = scores_B / std if std > SMALLEST_STD else scores_B
        return scores_B if self.clip is None else scores_B.clamp(-self.clip, self.clip)

    def _add(self, scores_B: Tensor) -> None:
        own_B = scores_B.double()
        count, total = reduce(torch.stack([torch.ones_like(own_B).sum(), own_B.sum()]), "sum").tolist()
        mean = total / count
        squares = float(reduce((own_B - mean).square().sum(), "sum"))
        whole, apart = self.count + count, mean - self.mean
        self.squares += squares + apart**2 * self.count * count / whole
        self.mean += apart * count / whole
        self.count = whole

    def state_dict(self) -> dict[str, float | int]:
        """The state for checkpoints."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Restores a state."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
