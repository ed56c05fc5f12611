"""The pairwise ranking loss over K ranked answers (Ouyang et al. 2022, section 3.5, eq. 1).

Shapes: B prompts, K answers of each (padded by a mask where K is ragged).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def preference_mask(ranks_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """mask_BKK: true at [b, i, j] where answer i was ranked strictly above answer j. Ties and masked answers are in no
    pair.
    """
    real_BKK = mask_BK.bool()[:, :, None] & mask_BK.bool()[:, None, :]
    return (ranks_BK[:, :, None] < ranks_BK[:, None, :]) & real_BKK


def pairwise_loss(scores_BK: Tensor, preference_mask_BKK: Tensor, normalizer: float | None = None) -> Tensor:
    """-log sigmoid(r_better - r_worse): the mean over the pairs of each prompt, summed over prompts and divided by
    `normalizer`.

    Eq. 1 divides by C(K, 2), the number of pairs without ties. Ties are excluded here; dividing by the number of
    remaining pairs is ours, so that every prompt has the same weight. Without any pair the loss and its gradient are 0.

    Args:
        normalizer: the number of prompts with a pair in the whole batch, so that gradients of micro-batches add up; by
            default that of this call.
    """
    pairs_B = preference_mask_BKK.sum((1, 2))
    margin_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
    loss_BKK = F.softplus(-margin_BKK.masked_fill(~preference_mask_BKK, 0.0)).masked_fill(~preference_mask_BKK, 0.0)
    loss_B = loss_BKK.sum((1, 2)) / pairs_B.clamp(min=1)
    count = float((pairs_B > 0).sum()) if normalizer is None else normalizer
    return loss_B.sum() / max(count, 1.0)


def ranking_loss(scores_BK: Tensor, ranks_BK: Tensor, mask_BK: Tensor, normalizer: float | None = None) -> Tensor:
    """The loss from ranks (eq. 1): 1 is best, equal ranks are ties and excluded, mask 0 means that there is no such
    answer.

    It is log 2 at equal scores, invariant to adding a constant to a prompt's scores and to the order of its answers,
    and ignores masked scores, NaN included.
    """
    return pairwise_loss(
        torch.where(mask_BK.bool(), scores_BK, torch.zeros_like(scores_BK)),
        preference_mask(ranks_BK, mask_BK),
        normalizer,
    )
