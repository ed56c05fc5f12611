"""Plots of the report: rows of numbers in, a Figure out.

Panels without data are left out; a plot without panels is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from reports.figures import INK, WIDTH, grid, tidy
from reports.page import Interval

Rows = Sequence[Mapping[str, Any]]

NAMES = {"base": "base", "sft": "SFT", "ppo": "PPO"}
COLOURS = {"base": "#777777", "sft": "#4477AA", "ppo": "#EE6677"}
"""Paul Tol's bright scheme, which colour-blind readers can tell apart; the same colour per model in every plot."""
GREEN, PURPLE, YELLOW = "#228833", "#AA3377", "#CCBB44"
MANY = 60
"""With more points than this, lines are smoothed and markers are small."""


@dataclass(frozen=True)
class Line:
    """One metric over training."""

    key: str
    colour: str
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel of a figure."""

    title: str
    lines: tuple[Line, ...]
    percent: bool = False
    mark: tuple[float, str] | None = None
    """A reference level, and its name."""


JUDGES = {
    "proxy": "Proxy: the reward model's score",
    "score": "Gold: the labeler's rubric",
    "chrf": "Gold: chrF, which no reward model saw",
}
"""Judges of answers as the KL grows: the proxy, which is optimised, and the gold judges."""


def win_rates(comparisons: Mapping[str, Interval]) -> Figure:
    """One point with its 95% interval per comparison, and a line at 50%."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.5 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    for row, (name, found) in enumerate(comparisons.items()):
        _point(axes, row, found, COLOURS["ppo"], f"{100 * found['mean']:.1f}%", name)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(comparisons)), list(comparisons))
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of comparisons won by PPO, ties counting half; dashed: no difference", fontsize=9)
    tidy(axes)
    return figure


def rubric_parts(table: Mapping[str, Mapping[str, Interval]], titles: Mapping[str, str]) -> Figure:
    """One panel per measure with base, SFT and PPO as points with their 95% intervals. `titles` maps measures to their
    names, in order.
    """
    models = [model for model in NAMES if model in table]
    keys = [key for key in titles if any(key in table[model] for model in models)]
    figure, panels = grid(len(keys), 4, height=1.9)
    for axes, key in zip(panels, keys, strict=True):
        for row, model in enumerate(models):
            if (found := table[model].get(key)) is not None:
                shown = f"{found['mean']:.3g}" if key == "tokens" else f"{found['mean']:.3f}"
                _point(axes, row, found, COLOURS[model], shown, NAMES[model])
        axes.set_yticks(range(len(models)), [NAMES[model] for model in models])
        axes.set_ylim(len(models) - 0.5, -0.8)
        axes.margins(x=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(titles[key], fontsize=10, loc="left")
        tidy(axes)
    return figure


def sft_curves(rows: Rows) -> Figure | None:
    """Training and validation loss of SFT, and its token accuracy."""
    panels = [
        Panel(
            "Loss, nats per token", (Line("loss", COLOURS["sft"], "training"), Line("valid_loss", INK, "validation"))
        ),
        Panel("Token accuracy (training batch)", (Line("token_accuracy", COLOURS["sft"]),), percent=True),
    ]
    return _curves(rows, panels, "step", "optimizer steps", columns=2)


def reward_curves(rows: Rows) -> Figure | None:
    """Loss and accuracy of the reward model on each batch before its step, with chance levels."""
    panels = [
        Panel("Loss", (Line("loss", GREEN),), mark=(math.log(2), "log 2: chance")),
        Panel("Accuracy (training batch)", (Line("accuracy", GREEN),), percent=True, mark=(0.5, "chance")),
    ]
    return _curves(rows, panels, "step", "optimizer steps", columns=2)


def over_optimisation(rows: Rows, best_of_n: Mapping[str, Any] | None = None) -> Figure | None:
    """Score against the square root of KL during training (Gao et al. 2022): where the curve bends down, more KL no
    longer helps.

    With best-of-n (evaluation/best_of_n.py), also best-of-n and the final policy on held-out prompts, by the reward
    model and by the judges.
    """
    whole = [row for row in rows if finite(row.get("kl")) is not None and finite(row.get("score")) is not None]
    if not whole and not best_of_n:
        return None
    figure, panes = grid(len(JUDGES) if best_of_n else 1, len(JUDGES), height=4.2)
    for axes in panes[1:]:
        axes.sharex(panes[0])
    if whole:
        _training(figure, panes[0], whole, beside=best_of_n is not None)
    for axes, (key, title) in zip(panes, JUDGES.items(), strict=False):
        if best_of_n:
            _frontier(axes, best_of_n, key)
            axes.set_title(title, fontsize=10, loc="left")
            axes.margins(y=0.1)
        axes.set_xlabel("√KL to SFT, √nats", fontsize=9)
        tidy(axes)
    if best_of_n:
        panes[0].legend(frameon=False, fontsize=8)
    else:
        panes[0].set_ylabel("score (reward model's units)", fontsize=9)
    return figure


def _training(figure: Figure, axes: Axes, rows: Rows, beside: bool) -> None:
    """Plots the training iterations; coloured, with a colour bar, unless drawn `beside` best-of-n."""
    steps, scores = [row["step"] for row in rows], [row["score"] for row in rows]
    roots = [math.sqrt(max(0.0, row["kl"])) for row in rows]
    axes.plot(roots, scores, color="#BBBBBB", linewidth=1, zorder=1)
    size, edge = (36, 0.5) if len(rows) <= MANY else (12, 0)
    if beside:
        axes.scatter(roots, scores, c="#BBBBBB", s=size / 2, zorder=1, linewidths=0, label="PPO during training")
        return
    drawn = axes.scatter(roots, scores, c=steps, cmap="cividis", s=size, zorder=2, edgecolors="white", linewidths=edge)
    bar = figure.colorbar(drawn, ax=axes)
    bar.set_label("iteration", fontsize=9)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar.outline.set_visible(False)


def _frontier(axes: Axes, found: Mapping[str, Any], key: str) -> None:
    """Best-of-n as a curve with a band, labelled with n, and PPO as a point with error bars."""
    rows, ppo = found["rows"], found["ppo"]
    roots = [math.sqrt(row["kl"]) for row in rows]
    low, mean, high = ([row[key][end] for row in rows] for end in ("low", "mean", "high"))
    axes.fill_between(roots, low, high, color=COLOURS["sft"], alpha=0.18, linewidth=0)
    axes.plot(roots, mean, color=COLOURS["sft"], linewidth=1.8, marker="o", markersize=5, label="best of n from SFT")
    for root, height, row in zip(roots, mean, rows, strict=True):
        axes.annotate(
            f"{row['n']}", (root, height), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK
        )
    place, (left, right) = (
        math.sqrt(max(0.0, ppo["kl"]["mean"])),
        (math.sqrt(max(0.0, ppo["kl"][end])) for end in ("low", "high")),
    )
    at = ppo[key]["mean"]
    axes.errorbar(
        [place], [at], [[at - ppo[key]["low"]], [ppo[key]["high"] - at]], [[place - left], [right - place]],
        fmt="D", color=COLOURS["ppo"], markersize=7, capsize=3, elinewidth=1.6, zorder=3, label="PPO",
    )  # fmt: skip


def _curves(rows: Rows, panels: Sequence[Panel], x_key: str, x_label: str, columns: int) -> Figure | None:
    shown = [panel for panel in panels if _drawable(rows, panel)]
    if not shown:
        return None
    figure, panes = grid(len(shown), columns, height=3.0)
    for axes, panel in zip(panes, shown, strict=True):
        _draw(axes, rows, panel, x_key, x_label)
    return figure


def _draw(axes: Axes, rows: Rows, panel: Panel, x_key: str, x_label: str) -> None:
    """Draws the lines of a panel; long noisy ones are faint, with their running mean on top."""
    for line in panel.lines:
        places, values = series(rows, line.key, x_key)
        if not values:
            continue
        if len(values) > MANY:
            axes.plot(places, values, color=line.colour, linewidth=0.7, alpha=0.3)
            axes.plot(
                places, running_mean(values, len(values) // 40), color=line.colour, linewidth=1.8, label=line.label
            )
        else:
            axes.plot(places, values, color=line.colour, linewidth=1.6, marker="o", markersize=3, label=line.label)
    if panel.mark is not None:
        axes.axhline(panel.mark[0], color=INK, linewidth=0.9, linestyle="--", label=panel.mark[1])
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if panel.mark is not None or len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    finish(axes, panel.title, x_label)


def _point(axes: Axes, row: int, found: Interval, colour: str, shown: str, label: str) -> None:
    axes.plot([found["low"], found["high"]], [row, row], color=colour, linewidth=2.5, solid_capstyle="round", alpha=0.6)
    axes.plot([found["mean"]], [row], "o", color=colour, markersize=7, label=label)
    blank = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    above: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "bbox": blank}
    axes.annotate(shown, (found["mean"], row), fontsize=8, color=INK, **above)


def finish(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_label, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axes)


def _drawable(rows: Rows, panel: Panel) -> bool:
    return any(series(rows, line.key, "step")[0] for line in panel.lines)


def series(rows: Rows, key: str, x_key: str) -> tuple[list[float], list[float]]:
    """(places, values) of the rows that have a finite number under `key`."""
    found = [(float(row.get(x_key, row["step"])), value) for row in rows if (value := finite(row.get(key))) is not None]
    return [place for place, _ in found], [value for _, value in found]


def finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean of each value and `half` neighbours on either side; near the ends fewer, but as many on one side as on the
    other.
    """
    last = len(values) - 1
    reach = [min(half, at, last - at) for at in range(len(values))]
    return [sum(values[at - r : at + r + 1]) / (2 * r + 1) for at, r in enumerate(reach)]
