"""The KL to the reference policy: its estimates, which are logged; the penalty as a loss; and the penalty coefficient
(beta), fixed as in Ouyang et al. 2022 or adapted to a target KL (Ziegler et al. 2019, section 2.2).

The penalty in the reward is in ppo/rewards.py. Shapes: B episodes, T response tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo.config import LARGEST_KL_ERROR, PPOConfig
from ppo.losses import divisor, log_ratio


def kl_estimates(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Estimates of each episode's KL(pi || pi_ref) in nats, summed over its tokens (Schulman 2020), by the name of the
    metric.

    `kl` (k1) is the log ratio: unbiased, can be negative. `kl_k3` is (ratio - 1) - log ratio with ratio = pi_ref / pi:
    unbiased, never negative.
    """
    log_ratio_BT = log_ratio(logprobs_BT, ref_logprobs_BT, mask_BT.bool())
    return {"kl": log_ratio_BT.sum(1), "kl_k3": torch.expm1(-log_ratio_BT).add(log_ratio_BT).sum(1)}


def kl_loss(
    logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, kl_coef: float, normalizer: float | None = None
) -> Tensor:
    """kl_coef times half the squared log ratio to the reference (k2 of Schulman 2020). Its expected gradient is that
    of each token's KL(pi || pi_ref).

    The expected gradient of the log ratio itself is 0. `normalizer` as in `ppo.losses.policy_loss`.
    """
    mask_BT = mask_BT.bool()
    return (
        kl_coef * 0.5 * log_ratio(logprobs_BT, ref_logprobs_BT, mask_BT).square().sum() / divisor(mask_BT, normalizer)
    )


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
