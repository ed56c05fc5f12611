"""Evaluates a reward model on held-out rankings: accuracy against baselines that do not read the answers, calibration,
ties and length bias.

Shapes: N rankings of K answers each; P strict pairs of all rankings, concatenated. Bootstrap intervals resample users
with all their rankings, not pairs, since the pairs of a ranking share its answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import mannwhitneyu, spearmanr

from data.intervals import Bootstrap, ratio_interval
from data.sets import evenly
from reward.accuracy import Floats, best_vs_worst, lengths_as_scores, pair_margins, ranks_as_scores, tied_margins
from reward.batches import RankingExample

Scores = Sequence[Sequence[float]]
"""One list per prompt, one number per answer."""

BINS = 10
PAIRS_A_BIN = 20
"""Minimum number of pairs per calibration bin; with few pairs there are fewer bins."""


@dataclass(frozen=True)
class Judged:
    """Rankings, the ranking of each strict pair, and the settings of the bootstrap."""

    items: Sequence[RankingExample]
    prompt_P: NDArray[np.int64]
    user_N: NDArray[np.int64]
    text_N: NDArray[np.int64]
    """The user and the prompt of each ranking, as numbers. Users are resampled, or prompts if there is one user."""
    resamples: int
    seed: int

    def margins(self, scores: Scores) -> Floats:
        """margins_P: the better answer's score minus the worse one's."""
        return np.concatenate([pair_margins(row, item) for row, item in zip(scores, self.items, strict=True)])

    def share(self, values_P: Floats, chosen_P: Any = slice(None)) -> dict[str, float] | None:
        """Mean of a number over the chosen pairs, with its interval; None if no pair is chosen."""
        chosen = self.prompt_P[chosen_P]
        units = self.user_N[chosen] if len(set(self.user_N[chosen])) > 1 else self.text_N[chosen]
        counts, sums = np.bincount(units), np.bincount(units, values_P[chosen_P])
        # Units without such a pair are left out: a resample of only those would have no mean.
        used = counts > 0
        return (
            ratio_interval(sums[used].tolist(), counts[used].tolist(), self.resamples, self.seed)
            if len(units)
            else None
        )

    def mean(self, values: Sequence[float | None]) -> dict[str, float] | None:
        """Mean over the prompts that have a number, with its interval; None if none has."""
        if all(value is None for value in values):
            return None
        users_N = self.user_N if len(set(self.user_N)) > 1 else self.text_N
        found = Bootstrap(self.resamples, users_N.tolist(), self.seed).interval(values)
        return {name: found[name] for name in ("mean", "low", "high", "n")}

    def right(self, scores: Scores, margins_P: Floats) -> dict[str, Any]:
        """Accuracy over all pairs, and over pairs of a best and a worst answer, which are easier (None if there are
        none).
        """
        found = [best_vs_worst(row, item) for row, item in zip(scores, self.items, strict=True)]
        return {"accuracy": self.share(outcomes(margins_P)), "best_vs_worst": self.mean(found)}

    def beside(self, baseline: Scores, margins_P: Floats) -> dict[str, Any]:
        """A baseline's accuracy, and its difference from that of a model with these margins.

        The difference is paired: each bootstrap resample of users is used for both.
        """
        others_P = self.margins(baseline)
        return self.right(baseline, others_P) | {"difference": self.share(outcomes(margins_P) - outcomes(others_P))}


def report(
    scores: Scores,
    items: Sequence[RankingExample],
    baselines: Mapping[str, Scores] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """The contents of `accuracy.json` for one split.

    Args:
        baselines: scores of other judges for the same answers, by name.

    Raises ValueError if there is no strict pair, scores and answers differ in number, or a score is not finite.
    """
    if not any(item.pairs for item in items):
        raise ValueError("there is no strict pair to evaluate a reward model on")
    judges = {**cheap_judges(items), **(baselines or {})}
    for name, given in {"the reward model": scores, **judges}.items():
        check(name, given, items)
    prompts, users = prompts_of(items), users_of(items)
    prompt_P = np.repeat(np.arange(len(items)), [item.pairs for item in items])
    judged = Judged(items, prompt_P, indices_of(users), indices_of(prompts), resamples, seed)
    margins_P = judged.margins(scores)
    flat = np.concatenate([np.asarray(row, dtype=float) for row in scores])
    sizes_N = np.array([len(item.answers) for item in items], dtype=float)
    # Their margins count the ranks between two answers; NaN for rankings without ranks.
    rank_scores = [ranks_as_scores(item) or [float("nan")] * len(item.answers) for item in items]
    beside = {name: judged.beside(given, margins_P) for name, given in judges.items()}
    return {
        **judged.right(scores, margins_P),
        "score_mean": float(flat.mean()),
        "score_std": float(flat.std()),
        "prompts": len(set(prompts)),
        "users": len(set(users)),
        "pairs": len(margins_P),
        "baselines": beside,
        "best_baseline": max(
            (name for name in beside if name != "random"), key=lambda name: beside[name]["accuracy"]["mean"]
        ),
        "by_k": grouped(judged, margins_P, sizes_N[prompt_P], "k"),
        "by_distance": grouped(judged, margins_P, judged.margins(rank_scores), "distance"),
        "calibration": calibration(judged, margins_P),
        "ties": ties(scores, items, margins_P),
        "length": length(judged, scores, margins_P),
    }


def prompts_of(items: Sequence[RankingExample]) -> list[str | int]:
    """The prompt of each ranking; without a record the ranking counts as one."""
    return [item.ranking.text if item.ranking else index for index, item in enumerate(items)]


def by_prompt(items: Sequence[RankingExample]) -> list[list[RankingExample]]:
    """The rankings of each prompt, which several labelers may have ranked; prompts in order of first occurrence."""
    found: dict[str | int, list[RankingExample]] = {}
    for prompt, item in zip(prompts_of(items), items, strict=True):
        found.setdefault(prompt, []).append(item)
    return list(found.values())


def some_prompts(items: Sequence[RankingExample], count: int | None) -> list[RankingExample]:
    """All rankings of `count` prompts, spread evenly over the set; all if there are fewer or `count` is None."""
    groups = by_prompt(items)
    if count is None or count >= len(groups):
        return list(items)
    return list(chain.from_iterable(evenly(groups, count)))


def users_of(items: Sequence[RankingExample]) -> list[str | int]:
    """The user of each ranking; without a user its prompt counts as one, and without a record the ranking."""
    named = ((index, item.ranking) for index, item in enumerate(items))
    return [index if ranking is None else ranking.user_id or ranking.text for index, ranking in named]


def indices_of(keys: Sequence[str | int]) -> NDArray[np.int64]:
    """The index of each key among the distinct keys."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def check(name: str, scores: Scores, items: Sequence[RankingExample]) -> None:
    """Raises ValueError unless there is one finite score per answer."""
    if len(scores) != len(items):
        raise ValueError(f"{name} has scores of {len(scores)} prompts, and there are {len(items)}")
    for index, (row, item) in enumerate(zip(scores, items, strict=True)):
        if len(row) != len(item.answers):
            raise ValueError(f"{name} has {len(row)} scores of prompt {index}, which has {len(item.answers)} answers")
        if not np.isfinite(row).all():
            raise ValueError(
                f"{name} has a score that is not finite for prompt {index}: {[float(value) for value in row]}"
            )


def cheap_judges(items: Sequence[RankingExample]) -> dict[str, Scores]:
    """Baselines that do not read the answers: the longest, the shortest, and a random one, whose expected share of
    right pairs is that of equal scores, 1/2.
    """
    lengths = [lengths_as_scores(item) for item in items]
    return {
        "longest": lengths,
        "shortest": [[-value for value in row] for row in lengths],
        "random": [[0.0] * len(row) for row in lengths],
    }


def outcomes(margins_P: Floats) -> Floats:
    """1 if the better answer scores higher, 0 if lower, 1/2 if equal."""
    found: Floats = np.heaviside(margins_P, 0.5)
    return found


def grouped(judged: Judged, margins_P: Floats, group_P: Floats, key: str) -> list[dict[str, Any]]:
    """Accuracy by group. `group_P` is the positive number of each pair's group, which the result calls `key`; pairs
    with NaN are left out.
    """
    return [
        {
            key: int(group),
            "pairs": int((group_P == group).sum()),
            "accuracy": judged.share(outcomes(margins_P), group_P == group),
        }
        for group in np.unique(group_P[group_P > 0])
    ]


def calibration(judged: Judged, margins_P: Floats) -> dict[str, Any]:
    """Calibration of sigmoid(margin) as the probability that the labeler agrees.

    For each pair: the probability that the model assigns to the answer it prefers (1/2 to 1), and whether the labeler
    prefers the same one. `loss` is the ranking loss on these prompts. `temperature` is the T that minimizes the loss of
    margin / T: above 1, the model is overconfident. It is None if there is no minimum: T goes to 0 if no margin is
    wrong, and to infinity if the margins are no better than chance.
    """
    predicted_P, right_P = expit(np.abs(margins_P)), outcomes(margins_P)
    bins = []
    for chosen_P in equal_bins(predicted_P):
        agreement, predicted = judged.share(right_P, chosen_P), predicted_P[chosen_P]
        assert agreement is not None
        bins.append(
            {
                "low": float(predicted.min()),
                "high": float(predicted.max()),
                "predicted": float(predicted.mean()),
                "observed": agreement["mean"],
                "observed_low": agreement["low"],
                "observed_high": agreement["high"],
                "pairs": len(predicted),
            }
        )
    weights_P = prompt_weights(judged.prompt_P)
    return {
        "bins": bins,
        "expected_calibration_error": sum(
            found["pairs"] * abs(found["predicted"] - found["observed"]) for found in bins
        )
        / len(margins_P),
        "loss": log_loss(margins_P, weights_P),
        "temperature": temperature(margins_P, weights_P),
    }


def equal_bins(values_P: Floats) -> Iterator[NDArray[np.bool_]]:
    """Masks of bins with about the same number of values, in ascending order; equal values share a bin."""
    count = max(1, min(BINS, len(values_P) // PAIRS_A_BIN))
    starts = np.unique(np.sort(values_P)[np.arange(count) * len(values_P) // count])
    bin_P = np.searchsorted(starts, values_P, side="right") - 1
    for index in range(len(starts)):
        yield bin_P == index


def prompt_weights(prompt_P: NDArray[np.int64]) -> Floats:
    """weights_P for a mean over each prompt's pairs, then over prompts, as in the ranking loss."""
    counts = np.bincount(prompt_P)
    weights_P: Floats = 1.0 / (counts[prompt_P] * (counts > 0).sum())
    return weights_P


def log_loss(margins_P: Floats, weights_P: Floats) -> float:
    """Weighted mean of -log sigmoid(margin)."""
    return float(weights_P @ np.logaddexp(0.0, -margins_P))


def temperature(margins_P: Floats, weights_P: Floats) -> float | None:
    """The T > 0 that minimizes the loss of margin / T; None if there is none (the loss is convex in 1/T, with slope
    -mean margin / 2 at 0).
    """
    if weights_P @ margins_P <= 0 or (margins_P >= 0).all():
        return None
    scale = float(np.abs(margins_P).mean())
    found = minimize_scalar(
        lambda log_t: log_loss(margins_P / (scale * np.exp(log_t)), weights_P),
        bounds=(-12, 12),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(scale * np.exp(found.x))


def ties(scores: Scores, items: Sequence[RankingExample], margins_P: Floats) -> dict[str, Any] | None:
    """Score differences of tied and of strict pairs; None if there are no ties.

    `auc` is the probability that a strict pair's scores differ by more than a tied pair's (Mann-Whitney, ties count
    half).
    """
    tied = np.abs(np.concatenate([tied_margins(row, item) for row, item in zip(scores, items, strict=True)]))
    if not len(tied):
        return None
    strict = np.abs(margins_P)
    above = mannwhitneyu(strict, tied, method="asymptotic").statistic
    return {
        "pairs": len(tied),
        "mean_margin_tied": float(tied.mean()),
        "mean_margin_strict": float(strict.mean()),
        "auc": float(above / (len(strict) * len(tied))),
    }


def length(judged: Judged, scores: Scores, margins_P: Floats) -> dict[str, Any]:
    """Length bias: the rank correlation of score and length within prompts, compared with that of the labeler's order
    (1: longer is better), and the accuracy where the longer answer is better and where the shorter one is.
    """
    lengths = [lengths_as_scores(item) for item in judged.items]
    orders = [ranks_as_scores(item) for item in judged.items]
    longer_P = judged.margins(lengths)
    return {
        "spearman": judged.mean([spearman(row, tokens) for row, tokens in zip(scores, lengths, strict=True)]),
        "labeler_spearman": judged.mean(
            [spearman(row, tokens) if row else None for row, tokens in zip(orders, lengths, strict=True)]
        ),
        "accuracy_longer_is_better": judged.share(outcomes(margins_P), longer_P > 0),
        "accuracy_shorter_is_better": judged.share(outcomes(margins_P), longer_P < 0),
    }


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, without entries that are NaN in `first`; None if either is constant."""
    known = ~np.isnan(first)
    a, b = np.asarray(first)[known], np.asarray(second)[known]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
