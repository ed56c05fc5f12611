"""Training curves: panels of a figure from rows of metrics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from reports.plots import DASHED, HEALTHY, RED, grid

MANY = 60
"""Longer curves also get a running mean."""
ERRORS = 2
"""Half-width of the band around a mean, in standard errors."""


@dataclass(frozen=True)
class Line:
    """One metric over training. A metric `<key>_se`, if there is one, is its standard error."""

    key: str
    label: str = ""
    colour: str = RED
    marker: str = "o"

    def values(self, rows: pd.DataFrame) -> pd.Series:
        """The finite numbers by step."""
        found = pd.to_numeric(rows.get(self.key, pd.Series(dtype=float)), errors="coerce")
        return found.replace([math.inf, -math.inf], math.nan).dropna()


@dataclass(frozen=True)
class Panel:
    """The lines of one panel."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    healthy: tuple[float, float] | None = None
    """The healthy range according to docs/metrics.md."""
    marks: tuple[tuple[float, str], ...] = ()
    """Reference levels, and their names."""
    lowest: float | None = None
    """Lower limit of the axis; values below are marked on it."""
    percent: bool = False
    log: bool = False

    def values(self, rows: pd.DataFrame) -> dict[Line, pd.Series]:
        """The numbers of the lines that have any; only positive ones on a log scale."""
        found = {line: line.values(rows) for line in self.lines}
        found = {line: values[values > 0] if self.log else values for line, values in found.items()}
        return {line: values for line, values in found.items() if len(values)}

    def draw(self, axes: Axes, rows: pd.DataFrame, x_label: str) -> None:
        """Draws the lines; long noisy ones are faint, with their running mean on top."""
        for line, values in self.values(rows).items():
            error = Line(f"{line.key}_se").values(rows)
            if len(values) > MANY and not len(error):
                axes.plot(values.index, values, color=line.colour, linewidth=0.7, alpha=0.3)
                values = running_mean(values)
            if self.lowest is not None and len(under := values[values < self.lowest]):
                low = values.clip(self.lowest)[under.index]
                axes.plot(low, "v", color=line.colour, markersize=5, clip_on=False, label=f"below {self.lowest:g}")
            size = 3 if len(values) <= MANY else 0
            axes.plot(values, color=line.colour, marker=line.marker, markersize=size, label=line.label, zorder=3)
            if len(error):
                wide = ERRORS * error.reindex(values.index, fill_value=0.0)
                axes.fill_between(
                    values.index, values - wide, values + wide, color=line.colour, alpha=0.15, linewidth=0
                )
        for level, name in self.marks:
            axes.axhline(level, label=name, **DASHED)
        self._set_limits(axes)
        if len(axes.get_legend_handles_labels()[1]) > 1 or self.marks:
            axes.legend()
        axes.set_ylabel(self.unit)
        axes.set_title(self.title)
        x_axis(axes, x_label)

    def _set_limits(self, axes: Axes) -> None:
        """Includes all values and, if one is outside the healthy range, the bound that it crossed."""
        low, high = axes.dataLim.intervaly
        if self.healthy is not None:
            low, high = min(low, self.healthy[1]), max(high, self.healthy[0])
        if self.lowest is not None:
            low, high = max(low, self.lowest), max(high, self.lowest + 1)
        if self.log:
            low, high = low / 1.3, high * 1.3
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20) if high / low > 4 else MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            room = 0.08 * (high - low) or 0.08 * abs(high) or 0.01
            low, high = low - room, high + room
        if self.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            low, high = max(low, -0.04 * high), min(high, 1.01)
        axes.set_ylim(low, high)
        if self.healthy is not None:
            axes.axhspan(max(low, self.healthy[0]), min(high, self.healthy[1]), color=HEALTHY, linewidth=0, zorder=0)
            axes.set_ylim(low, high)


def curves(
    panels: Sequence[Panel], rows: Sequence[Mapping[str, Any]], x_label: str = "optimizer steps"
) -> Figure | None:
    """The panels that have numbers, two in a row; None if none has."""
    frame = by_step(rows)
    shown = [panel for panel in panels if panel.values(frame)]
    if not shown:
        return None
    figure, panes = grid(len(shown), 2, height=3.0)
    for axes, panel in zip(panes, shown, strict=True):
        panel.draw(axes, frame, x_label)
    return figure


def by_step(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of metrics files with their steps as the index."""
    return pd.DataFrame(list(rows), columns=None if rows else ["step"]).set_index("step")


def running_mean(values: pd.Series) -> pd.Series:
    """A centred moving average, whose window shrinks near the ends."""
    last, half = len(values) - 1, len(values) // 40
    reach = [min(half, at, last - at) for at in range(len(values))]
    return pd.Series([values.iloc[at - r : at + r + 1].mean() for at, r in enumerate(reach)], values.index)


def x_axis(axes: Axes, label: str) -> None:
    """A horizontal axis of steps, which may be a single one."""
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, (low + high - 1) / 2), max(high, (low + high + 1) / 2))
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
