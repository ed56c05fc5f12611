"""Metrics of a roll-out, over all processes, and of its minibatches. docs/metrics.md explains each and gives healthy
ranges.

Shapes: B episodes of this process, T response tokens.
"""

import math
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object, reduce

from data.overlap import TOKEN_RUN, repeated_share
from ppo.experience import Experience
from ppo.kl import kl_estimates

CLOCK = 1e-3
"""Resolution of the timings in seconds."""


def rollout_metrics(experience: Experience) -> dict[str, float]:
    """Metrics of a roll-out over all processes.

    Per episode: score with its standard deviation, and its terms if there are several; reward, both KL estimates,
    length, repetition, and the fractions that ended, were truncated for a reward model and are distinct. Per token:
    count, KL, mean value, explained variance.
    """
    rollout, scores = experience.rollout, experience.scores
    padded = [rollout.padded(x_R) for x_R in (scores.logprobs_R, scores.ref_logprobs_R, experience.rewards_R)]
    logprobs_BT, ref_logprobs_BT, rewards_BT = padded
    score_B = scores.rewards_B.double()
    repetition_B = torch.tensor([repeated_share(ids, TOKEN_RUN) for ids in rollout.ids], device=score_B.device)
    per_episode = {
        "episodes": torch.ones_like(score_B),
        "score": score_B,
        "squared_score": score_B.square(),
        "reward": rewards_BT.sum(1),
        **kl_estimates(logprobs_BT, ref_logprobs_BT, rollout.mask_BT),
        "length": torch.tensor(rollout.lengths, device=score_B.device),
        "ended": rollout.ended_B,
        "repetition": repetition_B,
        "reward_truncated": scores.truncated_B,
    }
    if len(scores.parts) > 1:
        per_episode |= {f"score_{name}": values_B for name, values_B in scores.parts.items()}
    if experience.scaled_B is not None:
        per_episode["score_scaled"] = experience.scaled_B
    returns_R, values_R = experience.returns_R.double(), scores.values_R.double()
    error_R = returns_R - values_R
    per_token = {
        "returns": returns_R,
        "returns_square": returns_R.square(),
        "error": error_R,
        "error_square": error_R.square(),
        "values": values_R,
    }
    columns = per_episode | per_token
    sums = reduce(torch.stack([column.double().sum() for column in columns.values()]), "sum").tolist()
    total = dict(zip(columns, sums, strict=True))
    episodes, tokens = total["episodes"], total["length"]
    mean = {name: value / (tokens if name in per_token else episodes) for name, value in total.items()}
    returns_variance = mean["returns_square"] - mean["returns"] ** 2
    error_variance = mean["error_square"] - mean["error"] ** 2
    return {
        **{name: mean[name] for name in per_episode if name not in ("episodes", "squared_score")},
        "score_std": _root(mean["squared_score"] - mean["score"] ** 2),
        "kl_per_token": total["kl"] / tokens,
        "distinct": len(set(gather_object([tuple(ids) for ids in rollout.ids]))) / episodes,
        "tokens": tokens,
        "value_mean": mean["values"],
        "explained_variance": 0.0 if returns_variance <= 1e-12 else 1 - error_variance / returns_variance,
    }


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the minibatches that have a metric; of `ratio_max` the largest. NaN in one minibatch gives NaN."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: (_largest if name == "ratio_max" else _mean)(values) for name, values in columns.items()}


def speeds(tokens: float, rollout_seconds: float, iteration_seconds: float) -> dict[str, float]:
    """`rollout_tokens_per_second` and `tokens_per_second`: response tokens of all processes per second of sampling and
    of the whole iteration.
    """
    return {
        "rollout_tokens_per_second": tokens / max(rollout_seconds, CLOCK),
        "tokens_per_second": tokens / max(iteration_seconds, CLOCK),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _largest(values: Sequence[float]) -> float:
    # Whether max() returns a NaN depends on the order of the values.
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _root(variance: float) -> float:
    # Rounding can make the variance of equal numbers negative. NaN stays NaN.
    return math.sqrt(0.0 if variance < 0 else variance)
