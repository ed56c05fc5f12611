"""Plots of a PPO run: rows of metrics.jsonl, timings.jsonl and held_out.jsonl in, a Figure out.

Panels without data are left out. docs/metrics.md explains the metrics and their healthy ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from reports.figures import INK, grid
from reports.run_plots import COLOURS, GREEN, MANY, PURPLE, YELLOW, Rows, finish, running_mean, series

HEALTHY = "#EAF5EA"
ERRORS = 2
"""Half-width of the band around a held-out mean, in standard errors."""


@dataclass(frozen=True)
class Line:
    """One metric over training."""

    key: str
    label: str = ""
    colour: str = COLOURS["ppo"]
    marker: str = "o"

    @property
    def is_held_out(self) -> bool:
        """Whether it is in held_out.jsonl, which may also have its standard error."""
        return self.key.startswith("held_out_")


def held(key: str) -> Line:
    """A metric on held-out prompts."""
    return Line(f"held_out_{key}", "held-out prompts", INK, "s")


@dataclass(frozen=True)
class Panel:
    """One panel of the figure."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    healthy: tuple[float, float] | None = None
    """The healthy range according to docs/metrics.md."""
    mark: tuple[float, str] | None = None
    """A reference level, and its name."""
    lowest: float | None = None
    """Lower limit of the axis; values below are marked on it."""
    percent: bool = False
    log: bool = False


INFINITE = float("inf")
PANELS = (
    Panel("Score", "reward model's units", (Line("score", "roll-outs"), held("score")), mark=(0.0, "demonstrations")),
    Panel("Judge that no reward model saw", "chrF, 0 to 1", (held("judge"),)),
    Panel("KL to SFT", "nats per episode", (Line("kl", "k1"), Line("kl_k3", "k3", PURPLE), held("kl"))),
    Panel("KL coefficient (beta)", "score per nat", (Line("kl_coef"),)),
    Panel("Entropy", "nats per token", (Line("entropy"),)),
    Panel("Length", "tokens", (Line("length", "roll-outs"), held("length"))),
    Panel(
        "Responses that end by themselves",
        "share",
        (Line("ended", "roll-outs"), held("ended")),
        healthy=(0.5, INFINITE),
        percent=True,
    ),
    Panel(
        "Repetition",
        "share of runs of 4 tokens",
        (Line("repetition", "roll-outs"), held("repetition")),
        healthy=(-INFINITE, 0.1),
        percent=True,
    ),
    Panel("Clip fraction", "share of tokens", (Line("clip_fraction"),), healthy=(-INFINITE, 0.2), percent=True),
    Panel("Max ratio", "factor; 1: unchanged", (Line("ratio_max"),), healthy=(1.0, 10.0), lowest=1.0, log=True),
    Panel(
        "Explained variance",
        "share",
        (Line("explained_variance", colour=PURPLE),),
        healthy=(0.0, INFINITE),
        mark=(0.0, "no better than their mean"),
        lowest=-1.0,
    ),
    Panel("Value loss", "squared score units", (Line("value_loss", colour=PURPLE),)),
    Panel("Pretraining loss", "nats per token", (Line("ptx_loss", colour=GREEN),)),
    Panel(
        "Pretraining gradient relative to PPO's",
        "ratio of norms",
        (Line("ptx_to_ppo_grad_ratio", colour=GREEN),),
        healthy=(0.05, 1.0),
        log=True,
    ),
    Panel(
        "Gradient norm",
        "before clipping",
        (Line("policy_grad_norm", "policy"), Line("value_grad_norm", "value model", PURPLE)),
        log=True,
    ),
    Panel(
        "Speed",
        "response tokens per second",
        (Line("rollout_tokens_per_second", "sampling", COLOURS["sft"]), Line("tokens_per_second", "all")),
    ),
)
PHASES = {
    "seconds_rollout": ("sampling", COLOURS["sft"]),
    "seconds_score": ("scoring", YELLOW),
    "seconds_update": ("update", COLOURS["ppo"]),
    "seconds_held_out": ("held-out", INK),
}


def ppo_curves(
    rows: Rows, held_out: Rows = (), kl_target: float | None = None, weighted: bool = False
) -> Figure | None:
    """Metrics of PPO and the time of each phase; None if there is nothing to plot.

    Args:
        weighted: the score is a weighted sum of rewards, not the reward model's.
    """
    panels = [replace(PANELS[0], unit="weighted sum of ppo.rewards", mark=None), *PANELS[1:]] if weighted else PANELS
    shown = [panel for panel in panels if _worth_showing(panel, rows, held_out)]
    phases = [key for key in PHASES if any(series(rows, key, "step")[1])]
    if not shown and not phases:
        return None
    figure, panes = grid(len(shown) + bool(phases), 3)
    last = max(1, *(row["step"] for row in (*rows, *held_out)))
    for axes, panel in zip(panes, shown, strict=False):
        _draw(axes, panel, rows, held_out, kl_target)
        axes.set_xlim(-0.02 * last, 1.02 * last)
    if phases:
        _draw_phases(panes[-1], rows, phases)
    notes = ["green: healthy, docs/metrics.md"] if any(panel.healthy for panel in shown) else []
    notes += [f"grey: ±{ERRORS} standard errors over held-out prompts"] if held_out else []
    if len(rows) > MANY:
        notes.append("faint: single iterations; strong: their running mean")
    figure.supxlabel("; ".join(notes), fontsize=8, color=INK)
    return figure


def _worth_showing(panel: Panel, rows: Rows, held_out: Rows) -> bool:
    values = [value for line in panel.lines for value in _points(panel, line, rows, held_out)[1]]
    # A fixed coefficient is a setting, not a curve.
    return bool(values) and (panel.lines[0].key != "kl_coef" or min(values) < max(values))


def _draw(axes: Axes, panel: Panel, rows: Rows, held_out: Rows, kl_target: float | None) -> None:
    """Draws the lines of a panel; long noisy ones are faint, with their running mean on top."""
    seen: list[float] = []
    drawn = 0
    for line in panel.lines:
        places, values = _points(panel, line, rows, held_out)
        if not values:
            continue
        seen += values
        drawn += 1
        size = 3.0 if len(values) <= MANY else 0.0
        if len(values) > MANY and not line.is_held_out:
            axes.plot(places, values, color=line.colour, linewidth=0.7, alpha=0.3)
            values = running_mean(values, len(values) // 40)
        if panel.lowest is not None and (
            under := [place for place, value in zip(places, values, strict=True) if value < panel.lowest]
        ):
            axes.plot(
                under,
                [panel.lowest] * len(under),
                "v",
                color=line.colour,
                markersize=5,
                clip_on=False,
                label=f"below {panel.lowest:g}",
            )
            drawn += 1
        axes.plot(
            places,
            values,
            color=line.colour,
            linewidth=1.6,
            marker=line.marker,
            markersize=size,
            label=line.label,
            zorder=3,
        )
        errors = dict(zip(*series(held_out, f"{line.key}_se", "step"), strict=True)) if line.is_held_out else {}
        if errors:
            below, above = (
                [value + sign * ERRORS * errors.get(place, 0.0) for place, value in zip(places, values, strict=True)]
                for sign in (-1, 1)
            )
            axes.fill_between(places, below, above, color=line.colour, alpha=0.15, linewidth=0, zorder=2)
            seen += [*below, *above]
    marks = [panel.mark] if panel.mark is not None else []
    if panel.lines[0].key == "kl" and kl_target is not None:
        marks.append((kl_target, "target"))
    for level, name in marks:
        axes.axhline(level, color=INK, linewidth=0.9, linestyle="--", label=name, zorder=1)
    _set_limits(axes, panel, [*seen, *(level for level, _ in marks)])
    if panel.healthy is not None:
        low, high = axes.get_ylim()
        axes.axhspan(max(low, panel.healthy[0]), min(high, panel.healthy[1]), color=HEALTHY, linewidth=0, zorder=0)
        axes.set_ylim(low, high)
    if marks or drawn > 1:
        axes.legend(frameon=False, fontsize=8, handlelength=1.4)
    axes.set_ylabel(panel.unit, fontsize=8)
    finish(axes, panel.title, "iteration")


def _set_limits(axes: Axes, panel: Panel, seen: Sequence[float]) -> None:
    """Sets limits that include all values and, if a value is outside the healthy range, the bound that it crossed."""
    low, high = min(seen), max(seen)
    if panel.healthy is not None:
        # On a log scale slightly beyond the bound, so that the band is visible.
        low, high = (
            min(low, panel.healthy[1] * (0.8 if panel.log else 1)),
            max(high, panel.healthy[0] * (1.2 if panel.log else 1)),
        )
    if panel.lowest is not None:
        low = max(low, panel.lowest)
        high = max(high, panel.lowest + 1)
    if panel.log:
        low, high = low / 1.3, high * 1.3
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20) if high / low > 4 else MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        room = 0.08 * (high - low) or 0.08 * abs(high) or 0.01
        low, high = low - room, high + room
        if panel.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else 1))
            low, high = max(low, -0.04 * high), min(high, 1.01)
        else:
            axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylim(low, high)


def _draw_phases(axes: Axes, rows: Rows, phases: Sequence[str]) -> None:
    """Stacked seconds per iteration."""
    places, bottom = [float(row["step"]) for row in rows], [0.0] * len(rows)
    for key in phases:
        name, colour = PHASES[key]
        found = dict(zip(*series(rows, key, "step"), strict=True))
        heights = [found.get(place, 0.0) for place in places]
        axes.bar(places, heights, 0.9 if len(places) <= MANY else 1.0, bottom, color=colour, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    axes.set_ylim(0, 1.35 * max(bottom))
    axes.set_ylabel("seconds", fontsize=8)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", handlelength=1, columnspacing=1)
    finish(axes, "Time per iteration", "iteration")


def _points(panel: Panel, line: Line, rows: Rows, held_out: Rows) -> tuple[list[float], list[float]]:
    """(iterations, values) of a line; only positive values on a log scale."""
    places, values = series(held_out if line.is_held_out else rows, line.key, "step")
    kept = [(place, value) for place, value in zip(places, values, strict=True) if value > 0 or not panel.log]
    return [place for place, _ in kept], [value for _, value in kept]
