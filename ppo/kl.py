"""The KL penalty coefficient (beta): fixed as in Ouyang et al. 2022, or adapted to a target KL (Ziegler et al. 2019,
section 2.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ppo.config import LARGEST_KL_ERROR, PPOConfig


@dataclass
class KLController:
    """Holds and adapts the KL penalty coefficient."""

    coef: float
    target: float | None
    horizon: int

    @staticmethod
    def make(config: PPOConfig) -> "KLController":
        """The controller at the start of a run."""
        return KLController(config.kl_coef, config.kl_target, config.kl_horizon)

    def update(self, kl: float, episodes: int) -> None:
        """Updates the coefficient after a roll-out with a mean KL of `kl` nats per episode."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -LARGEST_KL_ERROR), LARGEST_KL_ERROR)
            self.coef *= 1 + error * episodes / self.horizon

    def state_dict(self) -> dict[str, float | int]:
        """The state for checkpoints."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Restores a state."""
        self.coef = state["coef"]
