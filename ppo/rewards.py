"""The reward of each token: the KL penalty, and the score at the last token. Shapes: B episodes, T response tokens."""

import torch
from torch import Tensor


def token_rewards(
    scores_B: Tensor, logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, kl_coef: float
) -> Tensor:
    """r_t = -kl_coef (log pi(a_t) - log pi_ref(a_t)), plus the score at the last response token (Ouyang et al. 2022,
    section 3.5, eq. 2).

    mask_BT is 1 on response tokens up to and including EOS; all other rewards are 0. The rewards of a row sum to its
    score minus kl_coef times the sum of its log ratios.
    """
    mask_BT = mask_BT.bool()
    log_ratio_BT = (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0)
    rewards_BT = -kl_coef * log_ratio_BT
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(
        1, last_B1.clamp(min=0), torch.where(last_B1 >= 0, scores_B[:, None].to(rewards_BT.dtype), 0.0)
    )
