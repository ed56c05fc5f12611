"""Plots of the reward model: parts of `accuracy.json` in, a Figure out; None if there is nothing to plot."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from reports.figures import INK, grid, tidy
from reports.page import Interval

SPLITS = {"train": "training", "valid": "validation", "test": "test"}
COLOURS = {"train": "#228833", "valid": "#AA3377", "test": "#4477AA"}
"""Paul Tol's bright scheme, which colour-blind readers can tell apart; the same colour per split in every plot."""
MARKS = {"train": "s", "valid": "o", "test": "D"}
CHANCE: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": "--"}


def calibration_curves(reports: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """One panel per split: how often the labeler agrees with the model, against the model's predicted probability."""
    shown = {split: report["calibration"]["bins"] for split, report in reports.items() if report["calibration"]["bins"]}
    if not shown:
        return None
    # A single split takes half the width, like each of two.
    figure, panels = grid(max(2, len(shown)), 2, height=4.4)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    floor = min(0.5, *(found["observed_low"] for bins in shown.values() for found in bins))
    for axes, (split, bins) in zip(panels, shown.items(), strict=False):
        axes.plot([0.5, 1], [0.5, 1], label="perfect calibration", **CHANCE)
        intervals = [
            {"mean": found["observed"], "low": found["observed_low"], "high": found["observed_high"]} for found in bins
        ]
        _points(axes, [found["predicted"] for found in bins], intervals, split, "bins of pairs")
        axes.set_xlim(0.49, 1.01)
        # Room above for the legend.
        axes.set_ylim(max(-0.02, floor - 0.03), 1.1)
        axes.set_yticks([tenth / 10 for tenth in range(math.ceil(10 * floor), 11)])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("predicted probability of the answer that the model prefers", fontsize=8)
        axes.set_ylabel("observed agreement of the labeler", fontsize=8)
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
        axes.set_title(f"Calibration, {SPLITS.get(split, split)}", fontsize=10, loc="left")
        tidy(axes)
    return figure


def epoch_curves(epochs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Accuracy and loss after each epoch on training and validation rankings; they diverge when the model overfits."""
    if not epochs:
        return None
    figure, panels = grid(2, 2, height=3.0)
    titles = {
        "accuracy": ("Accuracy", 0.5, "chance"),
        "loss": ("Ranking loss", math.log(2), "log 2: chance"),
    }
    for axes, (key, (title, level, name)) in zip(panels, titles.items(), strict=True):
        for split in ("train", "valid"):
            rows = [(row["epoch"], row[split][key]) for row in epochs if split in row]
            if rows:
                places, values = zip(*rows, strict=True)
                axes.plot(
                    places,
                    values,
                    color=COLOURS[split],
                    linewidth=1.6,
                    marker=MARKS[split],
                    markersize=5,
                    label=SPLITS[split],
                )
        axes.axhline(level, label=name, **CHANCE)
        if key == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.ticklabel_format(axis="y", useOffset=False)
        # Room above for the legend; epochs are integers.
        axes.margins(x=0.08, y=0.25)
        axes.set_xticks([row["epoch"] for row in epochs]) if len(epochs) <= 12 else axes.xaxis.set_major_locator(
            MaxNLocator(8, integer=True)
        )
        axes.set_xlabel("epochs", fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
        tidy(axes)
    return figure


def learning_curve(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Held-out accuracy against the number of training prompts; a curve that still rises suggests more labels."""
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: row["prompts"])
    figure, (axes,) = grid(1, 1, height=3.4)
    places = [row["prompts"] for row in ordered]
    axes.plot(places, [row["accuracy"]["mean"] for row in ordered], color=COLOURS["test"], linewidth=1.2, alpha=0.6)
    _points(axes, places, [row["accuracy"] for row in ordered], "test", "")
    axes.axhline(0.5, **CHANCE)
    axes.annotate(
        "chance",
        (1, 0.5),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.set_xscale("log")
    axes.set_xticks(
        places, [f"{place:,}\n{100 * row['fraction']:.3g}%" for place, row in zip(places, ordered, strict=True)]
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.15)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("training prompts (log scale), and their share of all", fontsize=8)
    axes.set_ylabel("held-out accuracy", fontsize=8)
    tidy(axes)
    return figure


def _points(axes: Axes, places: Sequence[float], found: Sequence[Interval], split: str, label: str) -> None:
    """Means with their intervals as vertical error bars."""
    colour = COLOURS.get(split, INK)
    means = [one["mean"] for one in found]
    # Rounding can put the mean just outside its percentile interval.
    down = [max(0.0, one["mean"] - one["low"]) for one in found]
    up = [max(0.0, one["high"] - one["mean"]) for one in found]
    axes.errorbar(
        places,
        means,
        [down, up],
        fmt=MARKS.get(split, "o"),
        color=colour,
        markersize=6,
        elinewidth=2,
        alpha=0.85,
        label=label,
    )
