"""95% bootstrap intervals; the unit that is resampled is a prompt."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

FEW_PROMPTS, FEW_USERS = 50, 20
"""Below these a test set is too small for firm conclusions."""
FEWEST_PROMPTS = 10
"""Below this an interval shows nothing: with 5 prompts and no effect, one in six bootstrap intervals excludes 0."""
DRAWS_AT_A_TIME = 10_000_000
"""All resamples of many prompts at once would be gigabytes."""


def interval(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """{mean, low, high, n}: percentile bootstrap of the mean of per-prompt values. Raises ValueError when there are
    none.
    """
    if not len(values):
        raise ValueError("there is nothing to take a mean of")
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if len(sample) == 1 or np.ptp(sample) == 0:
        return {"mean": mean, "low": mean, "high": mean, "n": len(sample)}
    found = bootstrap(
        (sample,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed), batch=1000
    )
    return {
        "mean": mean,
        "low": float(found.confidence_interval.low),
        "high": float(found.confidence_interval.high),
        "n": len(sample),
    }


def ratio_interval(
    sums: Sequence[float], counts: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """The same for a mean over items of which each prompt brings a sum and a count: pairs of answers, say. Prompts are
    resampled.
    """
    total, count = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if not count.sum():
        raise ValueError("there is nothing to take a mean of")
    mean = float(total.sum() / count.sum())
    rng, means = np.random.default_rng(seed), np.empty(resamples)
    step = max(1, DRAWS_AT_A_TIME // len(total))
    for start in range(0, resamples, step):
        rows = rng.integers(0, len(total), size=(min(step, resamples - start), len(total)))
        means[start : start + step] = total[rows].sum(1) / np.maximum(count[rows].sum(1), 1e-12)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high), "n": int(count.sum())}
