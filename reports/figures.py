"""Shared layout of all plots: width, panels and axes style."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#333333"
WIDTH = 11.0


def grid(count: int, columns: int, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows of at most `columns`."""
    columns = max(1, min(columns, count))
    lines = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(WIDTH, height * lines), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def tidy(axes: Axes) -> None:
    """A faint grid behind the drawing, and no box around it."""
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, length=0)
