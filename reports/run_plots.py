"""Plots of the run report from metrics and evaluation.json; None without numbers.

docs/metrics.md explains the metrics and their healthy ranges.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reports.curves import ERRORS, MANY, Line, Panel, by_step, x_axis
from reports.formats import Interval, number, percent
from reports.plots import BLUE, DASHED, GREEN, GREY, INK, PURPLE, RED, YELLOW, dots, errors, grid

Rows = Sequence[Mapping[str, Any]]
MODELS = {"base": ("base", "#777777"), "sft": ("SFT", BLUE), "ppo": ("PPO", RED)}
SFT = (
    Panel("Loss, nats per token", "", (Line("loss", "training", BLUE), Line("valid_loss", "validation", INK))),
    Panel("Token accuracy (training batch)", "", (Line("token_accuracy", colour=BLUE),), percent=True),
)
REWARD = (
    Panel("Loss", "", (Line("loss", colour=GREEN),), marks=((math.log(2), "log 2: chance"),)),
    Panel("Accuracy (training batch)", "", (Line("accuracy", colour=GREEN),), marks=((0.5, "chance"),), percent=True),
)


def held(key: str) -> Line:
    """A metric on held-out prompts."""
    return Line(f"held_out_{key}", "held-out prompts", INK, "s")


SCORE = Panel(
    "Score", "reward model's units", (Line("score", "roll-outs"), held("score")), marks=((0, "demonstrations"),)
)
WEIGHTED = replace(SCORE, unit="weighted sum of ppo.rewards", marks=())
KL = Panel("KL to SFT", "nats per episode", (Line("kl", "k1"), Line("kl_k3", "k3", PURPLE), held("kl")))
KL_COEF = Panel("KL coefficient (beta)", "score per nat", (Line("kl_coef"),))
ENDED = Panel(
    "Responses that end by themselves", "share", (Line("ended", "roll-outs"), held("ended")), (0.5, inf), percent=True
)
PANELS = (
    SCORE,
    Panel("Held-out judge", "chrF, 0 to 1", (held("judge"),)),
    KL,
    KL_COEF,
    Panel("Entropy", "nats per token", (Line("entropy"),)),
    Panel("Length", "tokens", (Line("length", "roll-outs"), held("length"))),
    ENDED,
    Panel(
        "Repetition", "share of repeated 4-grams", (Line("repetition", "roll-outs"), held("repetition")), (-inf, 0.1),
        percent=True,
    ),
    Panel("Clip fraction", "share of tokens", (Line("clip_fraction"),), (-inf, 0.2), percent=True),
    Panel("Max ratio", "factor; 1: unchanged", (Line("ratio_max"),), (1.0, 10.0), lowest=1.0, log=True),
    Panel(
        "Explained variance", "share", (Line("explained_variance", colour=PURPLE),), (0.0, inf),
        marks=((0.0, "no better than their mean"),), lowest=-1.0,
    ),
    Panel("Value loss", "squared score units", (Line("value_loss", colour=PURPLE),)),
    Panel("Pretraining loss", "nats per token", (Line("ptx_loss", colour=GREEN),)),
    Panel(
        "Pretraining gradient relative to PPO's", "ratio of norms", (Line("ptx_to_ppo_grad_ratio", colour=GREEN),),
        (0.05, 1.0), log=True,
    ),
    Panel(
        "Gradient norm", "before clipping",
        (Line("policy_grad_norm", "policy"), Line("value_grad_norm", "value model", PURPLE)), log=True,
    ),
    Panel(
        "Speed", "response tokens per second",
        (Line("rollout_tokens_per_second", "sampling", BLUE), Line("tokens_per_second", "all")),
    ),
)  # fmt: skip
PHASES = {
    "seconds_rollout": ("sampling", BLUE),
    "seconds_score": ("scoring", YELLOW),
    "seconds_update": ("update", RED),
    "seconds_held_out": ("held-out", INK),
}
JUDGES = {
    "proxy": "Proxy: the reward model's score",
    "score": "Gold: the labeler's rubric",
    "chrf": "Gold: chrF, not used in training",
}
"""The judges: the proxy, which is optimized, and two gold scores."""


def ppo_curves(
    rows: Rows, held_out: Rows = (), kl_target: float | None = None, weighted: bool = False
) -> Figure | None:
    """Metrics of PPO and the time of each phase; None if there is nothing to plot.

    Args:
        weighted: the score is a weighted sum of rewards, not the reward model's.
    """
    frame = by_step([*rows, *held_out])
    panels = {panel: panel.values(frame) for panel in PANELS}
    # A fixed coefficient is a setting, not a curve.
    shown = [
        panel for panel, lines in panels.items() if lines and (panel != KL_COEF or lines[panel.lines[0]].nunique() > 1)
    ]
    seconds = by_step(rows).reindex(columns=list(PHASES)).dropna(how="all")
    if not shown and seconds.empty:
        return None
    figure, panes = grid(len(shown) + (not seconds.empty), 3)
    for axes, panel in zip(panes, shown, strict=False):
        if panel == SCORE and weighted:
            panel = WEIGHTED
        if panel == KL and kl_target is not None:
            panel = replace(panel, marks=((kl_target, "target"),))
        panel.draw(axes, frame, "iteration")
        axes.set_xlim(-0.02 * frame.index.max(), 1.02 * max(1, frame.index.max()))
    if not seconds.empty:
        _draw_phases(panes[-1], seconds)
    notes = ["green: healthy, docs/metrics.md"] if any(panel.healthy for panel in shown) else []
    notes += [f"grey: ±{ERRORS} standard errors over held-out prompts"] if held_out else []
    notes += ["faint: single iterations; strong: their running mean"] if len(rows) > MANY else []
    figure.supxlabel("; ".join(notes), fontsize=8, color=INK)
    return figure


def _draw_phases(axes: Axes, seconds: pd.DataFrame) -> None:
    """Stacked seconds per iteration."""
    tops = seconds.fillna(0.0).cumsum(axis=1)
    for key, (name, colour) in PHASES.items():
        if seconds[key].any():
            height = seconds[key].fillna(0.0)
            axes.bar(
                seconds.index,
                height,
                0.9 if len(seconds) <= MANY else 1.0,
                tops[key] - height,
                color=colour,
                label=name,
            )
    axes.set_xlim(seconds.index[0] - 0.6, seconds.index[-1] + 0.6)
    axes.set_ylim(0, 1.35 * tops.max(axis=None))
    axes.set_ylabel("seconds")
    axes.legend(ncols=2, loc="upper center", handlelength=1, columnspacing=1)
    axes.set_title("Time per iteration")
    x_axis(axes, "iteration")


def win_rates(comparisons: Mapping[str, Interval]) -> Figure | None:
    """One point with its 95% interval per comparison, and a line at 50%."""
    if not comparisons:
        return None
    figure, (axes,) = grid(1, 1, height=0.9 + 0.5 * len(comparisons))
    dots(axes, comparisons, [RED] * len(comparisons), percent)
    axes.axvline(0.5, **DASHED)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of comparisons won by PPO, ties counting half; dashed: no difference")
    return figure


def rubric_parts(models: Mapping[str, Mapping[str, Interval]], titles: Mapping[str, str]) -> Figure | None:
    """One panel per measure with base, SFT and PPO as points with their 95% intervals. `titles` maps measures to their
    names, in order.
    """
    if not models:
        return None
    figure, panels = grid(len(titles), 4, height=1.9)
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        found = {name: models[model][key] for model, (name, _) in MODELS.items()}
        dots(axes, found, [colour for _, colour in MODELS.values()], number)
        axes.margins(x=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(title)
    return figure


def over_optimisation(rows: Rows, best_of_n: Mapping[str, Any] | None = None) -> Figure | None:
    """Score against the square root of KL during training (Gao et al. 2022). Where the curve bends down, the policy is
    over-optimized.

    With best-of-n (evaluation/best_of_n.py), also best-of-n and the final policy on held-out prompts, by the reward
    model and by the judges.
    """
    path = by_step(rows).reindex(columns=["kl", "score"]).dropna()
    if path.empty and not best_of_n:
        return None
    figure, panes = grid(len(JUDGES) if best_of_n else 1, len(JUDGES), height=4.2)
    roots, size = path["kl"].clip(0) ** 0.5, 36 if len(path) <= MANY else 12
    panes[0].plot(roots, path["score"], color=GREY, linewidth=1, zorder=1)
    if best_of_n:
        panes[0].scatter(roots, path["score"], color=GREY, s=size / 2, zorder=1, label="PPO during training")
        for axes, (key, title) in zip(panes, JUDGES.items(), strict=True):
            axes.sharex(panes[0]) if axes is not panes[0] else None
            _frontier(axes, best_of_n, key)
            axes.set_title(title)
            axes.margins(y=0.1)
        panes[0].legend()
    else:
        drawn = panes[0].scatter(
            roots, path["score"], c=path.index, cmap="cividis", s=size, zorder=2, edgecolors="white"
        )
        bar = figure.colorbar(drawn, ax=panes[0], label="iteration", ticks=MaxNLocator(6, integer=True))
        bar.outline.set_visible(False)
        panes[0].set_ylabel("score (reward model's units)")
    for axes in panes:
        axes.set_xlabel("√KL to SFT, √nats")
    return figure


def _frontier(axes: Axes, found: Mapping[str, Any], key: str) -> None:
    """Best-of-n as a curve with a band, labelled with n, and PPO as a point with error bars."""
    rows, ppo = found["rows"], found["ppo"]
    roots = [math.sqrt(row["kl"]) for row in rows]
    low, mean, high = ([row[key][end] for row in rows] for end in ("low", "mean", "high"))
    axes.fill_between(roots, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(roots, mean, color=BLUE, marker="o", markersize=5, label="best of n from SFT")
    offset: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
    for root, height, row in zip(roots, mean, rows, strict=True):
        axes.annotate(f"{row['n']}", (root, height), fontsize=8, color=INK, **offset)
    kl = {end: math.sqrt(max(0.0, value)) for end, value in ppo["kl"].items()}
    axes.errorbar(
        kl["mean"], ppo[key]["mean"], errors([ppo[key]]), errors([kl]),
        fmt="D", color=RED, markersize=7, capsize=3, elinewidth=1.6, zorder=3, label="PPO",
    )  # fmt: skip


def baseline_epochs(rows: Rows) -> Figure | None:
    """Validation loss and the reward model's score of each epoch of the SFT baseline; the chosen one is marked."""
    if not rows:
        return None
    scored = [row for row in rows if row.get("score")]
    figure, panels = grid(2 if scored else 1, 2)
    places = [row["epoch"] for row in rows]
    panels[0].plot(places, [row["valid_loss"] for row in rows], color=BLUE, marker="o", label="validation")
    panels[0].plot(places, [row["train_loss"] for row in rows], color=GREY, marker="o", label="training")
    panels[0].set_title("Loss, nats per token")
    panels[0].legend()
    if scored:
        scores = [row["score"] for row in scored]
        panels[1].errorbar(
            [row["epoch"] for row in scored], [one["mean"] for one in scores], errors(scores), color=GREEN, marker="o"
        )
        panels[1].set_title("Reward model's score of its answers")
    for axes in panels:
        axes.axvline(next(row["epoch"] for row in rows if row["chosen"]), **DASHED)
        axes.set_xlabel("epoch (dashed: the chosen one)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
