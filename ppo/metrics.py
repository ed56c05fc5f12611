"""The numbers of one roll-out, over all processes. What each means, and its healthy range: docs/metrics.md.

Shapes: B episodes of this process, T response tokens.
"""

import torch

from modeling.processes import sum_over_processes
from ppo.rewards import kl_estimates
from ppo.rollout import Rollout


def rollout_numbers(rollout: Rollout) -> dict[str, float]:
    """Means over episodes: score and its spread, both KL estimates, length, share that ended; explained variance of the values over tokens."""
    k1_B, k3_B = kl_estimates(rollout.logprobs_BT, rollout.ref_logprobs_BT, rollout.mask_BT)
    score_B, length_B = rollout.scores_B.double(), rollout.mask_BT.sum(1).double()
    reward_B = rollout.rewards_BT.sum(1).double()
    per_episode = [
        torch.ones_like(score_B),
        score_B,
        score_B.square(),
        k1_B.double(),
        k3_B.double(),
        length_B,
        rollout.ended_B.double(),
        reward_B,
    ]
    returns_N, values_N = rollout.returns_BT[rollout.mask_BT].double(), rollout.values_BT[rollout.mask_BT].double()
    error_N = returns_N - values_N
    per_token = [torch.ones_like(returns_N), returns_N, returns_N.square(), error_N, error_N.square(), values_N]
    sums = torch.stack([column.sum() for column in (*per_episode, *per_token)])
    episodes, score, score2, k1, k3, length, ended, reward, tokens, returns, returns2, error, error2, values = sum_over_processes(sums).tolist()
    returns_variance = returns2 / tokens - (returns / tokens) ** 2
    error_variance = error2 / tokens - (error / tokens) ** 2
    return {
        "score": score / episodes,
        "score_std": max(0.0, score2 / episodes - (score / episodes) ** 2) ** 0.5,
        "reward": reward / episodes,
        "kl": k1 / episodes,
        "kl_k3": k3 / episodes,
        "length": length / episodes,
        "ended": ended / episodes,
        "value_mean": values / tokens,
        "explained_variance": 1 - error_variance / returns_variance if returns_variance > 1e-12 else 0.0,
    }


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over minibatches; of `ratio_max` the largest."""
    return {name: max(row[name] for row in rows) if name == "ratio_max" else sum(row[name] for row in rows) / len(rows) for name in rows[0]}
