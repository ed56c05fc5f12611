"""The price of a nat of KL to the SFT policy: fixed as in Ouyang et al. 2022, or steered towards a target (Ziegler et
al. 2019, section 2.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ppo.config import LARGEST_KL_ERROR, PPOConfig


@dataclass
class KLController:
    """Holds kl_coef between iterations."""

    coef: float
    target: float | None
    horizon: int

    @staticmethod
    def make(config: PPOConfig) -> "KLController":
        """At the start of a run."""
        return KLController(config.kl_coef, config.kl_target, config.kl_horizon)

    def update(self, kl: float, episodes: int) -> None:
        """After a roll-out of so many episodes whose mean KL was `kl` nats an episode."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -LARGEST_KL_ERROR), LARGEST_KL_ERROR)
            self.coef *= 1 + error * episodes / self.horizon

    def state_dict(self) -> dict[str, float | int]:
        """What a resumed run needs."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """The reverse."""
        self.coef = state["coef"]
