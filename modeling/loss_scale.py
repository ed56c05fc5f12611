"""Loss scaling for float16, in which gradients below 6e-8 would become 0 (Micikevicius et al. 2018, section 3.2).

Losses are multiplied by a power of two before the backward pass and gradients divided by it before anything else uses
them. If they overflow, the step is skipped and the scale halved; after 2000 steps without an overflow it is doubled.
In other dtypes the scaler is disabled and changes nothing.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.amp import GradScaler

from modeling.sharding import clip_gradients


def loss_scaler(autocast_dtype: torch.dtype | None, parameters: Sequence[nn.Parameter]) -> GradScaler:
    """A scaler for the losses of these parameters, enabled if their model computes in float16."""
    scaler = GradScaler(parameters[0].device.type, enabled=autocast_dtype == torch.float16)
    scaler.scale(torch.zeros((), device=parameters[0].device))  # else a process without a loss could not unscale
    return scaler


def unscale_and_clip(
    scaler: GradScaler, optimizer: torch.optim.Optimizer, max_norm: float | None
) -> tuple[float, bool]:
    """(gradient norm before clipping, whether `scaler.step` will skip the step because of an overflow).

    An overflow without scaling, or at a scale of 1, is not due to float16: the caller must report it.
    """
    scaler.unscale_(optimizer)
    norm = clip_gradients([weight for group in optimizer.param_groups for weight in group["params"]], max_norm)
    return norm, not math.isfinite(norm) and scaler.get_scale() > 1.0


def step(scaler: GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """A step after `unscale_and_clip`, unless it is skipped; clears the gradients."""
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
