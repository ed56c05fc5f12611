"""Style, panels and error bars shared by all plots. Importing this module sets the style."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports.formats import Interval

INK, GREY, HEALTHY = "#333333", "#BBBBBB", "#EAF5EA"
BLUE, RED, GREEN, PURPLE, YELLOW = "#4477AA", "#EE6677", "#228833", "#AA3377", "#CCBB44"
"""Paul Tol's bright scheme, which colour-blind readers can tell apart."""
WIDTH = 11.0
rcParams.update({
    "axes.axisbelow": True, "axes.formatter.useoffset": False, "axes.grid": True, "grid.color": "#E6E6E6",
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlelocation": "left",
    "axes.titlesize": 10, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "xtick.major.size": 0, "xtick.minor.size": 0, "ytick.major.size": 0, "ytick.minor.size": 0,
    "legend.frameon": False, "legend.handlelength": 1.4, "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
})  # fmt: skip
DASHED: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": "--", "zorder": 1}


def grid(count: int, columns: int, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows of at most `columns`."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * lines))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def errors(found: Sequence[Interval]) -> NDArray[np.float64]:
    """Distances of the ends from the means, for `errorbar`; rounding can put a mean just outside its interval."""
    ends = [[one["mean"] - one["low"] for one in found], [one["high"] - one["mean"] for one in found]]
    return np.clip(np.array(ends), 0.0, None)


def dots(axes: Axes, found: Mapping[str, Interval], colours: Sequence[str], form: Callable[[float], str]) -> None:
    """A row for each interval, with its name on the axis and its mean as text."""
    blank = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    above: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "bbox": blank}
    for row, (one, colour) in enumerate(zip(found.values(), colours, strict=True)):
        axes.errorbar(one["mean"], row, xerr=errors([one]), fmt="o", color=colour, markersize=7, elinewidth=2.5)
        axes.annotate(form(one["mean"]), (one["mean"], row), fontsize=8, color=INK, **above)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.7)
