"""Generalized advantage estimation and whitening. Shapes: B episodes, T response tokens."""

import torch
from accelerate.utils import reduce
from torch import Tensor

EPSILON = 1e-8
"""Added to the variance, so that equal advantages whiten to zeros."""


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """(advantages_BT, returns_BT) by the recursion of Schulman et al. 2016, eq. 16; both are 0 where the mask is 0.

    values_BT[:, t] is the value of the state before token t; the value after the last response token is 0. Returns are
    advantages plus values, the targets of the value model. With gae_lambda 1 they are the discounted sums of rewards.
    """
    mask_BT = mask_BT.bool()
    rewards_BT, values_BT = rewards_BT.masked_fill(~mask_BT, 0.0), values_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = torch.zeros_like(rewards_BT)
    advantage_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    for step in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, step] + discount * next_value_B - values_BT[:, step]
        # Padding follows the response and has rewards and values of 0, so the advantage is 0 until the last real token.
        advantage_B = delta_B + discount * gae_lambda * advantage_B
        next_value_B = values_BT[:, step]
        advantages_BT[:, step] = advantage_B
    return advantages_BT, advantages_BT + values_BT


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the unmasked tokens of all processes, zeros elsewhere. Ours; Stiennon et al. 2020 and
    trl do the same.
    """
    mask_BT = mask_BT.bool()
    kept_N = x_BT[mask_BT].double()
    count, total = reduce(
        torch.stack([torch.tensor(float(len(kept_N)), device=x_BT.device, dtype=torch.float64), kept_N.sum()]), "sum"
    )
    mean = total / count.clamp(min=1)
    variance = reduce((kept_N - mean).square().sum(), "sum") / count.clamp(min=1)
    whitened_BT = (x_BT.double() - mean) * torch.rsqrt(variance + EPSILON)
    return whitened_BT.masked_fill(~mask_BT, 0.0).to(x_BT.dtype)
