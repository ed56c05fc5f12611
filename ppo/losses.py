"""PPO's clipped losses and their diagnostics. Shapes: B episodes, T response tokens."""

import torch
from torch import Tensor


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip_range: float,
    normalizer: float | None = None,
) -> Tensor:
    """Clipped surrogate objective, negated (Schulman et al. 2017, eq. 7).

    Args:
        mask_BT: 1 on response tokens up to and including EOS.
        normalizer: the number of response tokens of the whole minibatch, so that gradients of micro-batches add up; by
            default that of this call.
    """
    mask_BT = mask_BT.bool()
    ratio_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip_range, 1 + clip_range)
    advantages_BT = advantages_BT.masked_fill(~mask_BT, 0.0)
    loss_BT = -torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return loss_BT.sum() / divisor(mask_BT, normalizer)


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip_range: float | None,
    normalizer: float | None = None,
) -> Tensor:
    """Half the squared error to the returns: the larger of those of the value and of the value clipped to within
    clip_range of the old value.

    As in OpenAI's baselines and Stiennon et al. 2020. A clip_range of None does not clip. `normalizer` as in
    `policy_loss`.
    """
    mask_BT = mask_BT.bool()
    # Padding is filled before any arithmetic: a NaN there would become a NaN gradient of a masked term.
    values_BT, old_values_BT, returns_BT = (
        x_BT.masked_fill(~mask_BT, 0.0) for x_BT in (values_BT, old_values_BT, returns_BT)
    )
    error_BT = (values_BT - returns_BT).square()
    if clip_range is not None:
        clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip_range, clip_range)
        error_BT = torch.maximum(error_BT, (clipped_BT - returns_BT).square())
    loss_BT = 0.5 * error_BT
    return loss_BT.sum() / divisor(mask_BT, normalizer)


@torch.no_grad()
def policy_sums(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor, clip_range: float) -> dict[str, Tensor]:
    """Sums over tokens: `clipped`, whether the ratio is outside the clip range, and `approximate_kl`, k3 of KL(old ||
    new).
    """
    mask_BT = mask_BT.bool()
    log_ratio_BT = log_ratio(logprobs_BT, old_logprobs_BT, mask_BT)
    ratio_BT = log_ratio_BT.exp()
    return {
        "clipped": ((ratio_BT - 1).abs() > clip_range).sum(),
        "approximate_kl": (ratio_BT - 1 - log_ratio_BT).sum(),
    }


@torch.no_grad()
def largest_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> float:
    """The largest of all ratios and inverse ratios; exactly 1 if old and new policy are the same."""
    if not mask_BT.any():
        return 1.0
    return float(log_ratio(logprobs_BT, old_logprobs_BT, mask_BT.bool()).abs().max().exp())


def log_ratio(logprobs_BT: Tensor, old_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log pi - log pi_old, and 0 where the mask is 0."""
    return logprobs_BT.masked_fill(~mask_BT, 0.0) - old_logprobs_BT.masked_fill(~mask_BT, 0.0)


def divisor(mask_BT: Tensor, normalizer: float | None) -> Tensor | float:
    """`normalizer`, or the number of response tokens."""
    return mask_BT.sum().clamp(min=1) if normalizer is None else normalizer
