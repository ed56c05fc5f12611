"""Plots of the data report: facts in, a Figure out. Plots without numbers are left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from data.language import UNDETERMINED
from reports.figures import INK, WIDTH, grid, tidy
from reports.paper import SET_TITLES as TITLES
from reports.paper import USE_CASE_SHARES

Facts = Mapping[str, Any]
COLOURS = {"sft": "#4477AA", "rm": "#228833", "rl": "#EE6677", "rankings": "#AA3377"}
"""Paul Tol's bright scheme, which colour-blind readers can tell apart; the same colour per set in every plot."""
PAPER = "#BBBBBB"
LANGUAGES_SHOWN = 12


def figures(facts: Facts) -> dict[str, Figure]:
    """The plots that there are numbers for."""
    found = {"prompts_per_user": prompts_per_user(facts), "prompt_lengths": lengths(facts)}
    cases = {case: count for case, count in facts["sets"]["rm"]["use_cases"].items() if case != "none"}
    if cases:
        found["use_cases"] = use_case_mix(cases)
    languages = list(facts["languages"]["prompts"].items())
    rest = sum(count for _, count in languages[LANGUAGES_SHOWN:])
    found["languages"] = language_bars(dict(languages[:LANGUAGES_SHOWN]) | ({"others": rest} if rest else {}))
    if facts["rankings"]["count"]:
        found["rankings"] = ranking_shapes(facts["rankings"])
    return found


def prompts_per_user(facts: Facts) -> Figure:
    """Number of users by number of prompts, by set; both axes are logarithmic."""
    group, sets = facts["settings"]["group_by"], facts["sets"]
    figure, panels = grid(len(sets), 4, height=2.7)
    for axes, (name, found) in zip(panels, sets.items(), strict=True):
        _histogram(axes, found["prompts_per_user"], COLOURS[name], bins=24)
        axes.set_yscale("log")
        axes.set_ylim(0.7, None)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_locator(NullLocator())
        count = sum(found["prompts_per_user"].values())
        axes.set_title(f"{TITLES[name]}: {count:,} {group}{'' if count == 1 else 's'}", fontsize=10, loc="left")
        axes.set_xlabel("rankings" if name == "rankings" else "prompts", fontsize=8)
        tidy(axes)
    panels[0].set_ylabel(f"{group}s", fontsize=8)
    return figure


def lengths(facts: Facts) -> Figure:
    """Lengths of prompts by set, in tokens on a logarithmic axis, with the limit of curation."""
    limit, sets = facts["settings"]["max_prompt_tokens"], facts["sets"]
    figure, panels = grid(len(sets), 4, height=2.7)
    for axes, (name, found) in zip(panels, sets.items(), strict=True):
        counts = found["prompt_tokens"]
        _histogram(axes, counts, COLOURS[name], bins=40)
        values = np.repeat([int(value) for value in counts], list(counts.values()))
        if values.max() > limit / 4:
            axes.axvline(limit, color=INK, linewidth=1, linestyle="--", label="limit")
            axes.legend(frameon=False, fontsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(f"{TITLES[name]}: median {np.median(values):,.0f}", fontsize=10, loc="left")
        axes.set_xlabel("tokens of the prompt", fontsize=8)
        tidy(axes)
    panels[0].set_ylabel("rows", fontsize=8)
    return figure


def use_case_mix(counts: Mapping[str, int]) -> Figure:
    """Shares of use cases beside the paper's."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    cases, total = list(USE_CASE_SHARES), sum(counts.values())
    places = np.arange(len(cases))
    ours = [counts.get(case, 0) / total for case in cases]
    axes.barh(places - 0.2, ours, 0.4, color=COLOURS["rm"], label="these data")
    axes.barh(places + 0.2, [USE_CASE_SHARES[case] for case in cases], 0.4, color=PAPER, label="the paper")
    axes.set_yticks(places, [case.replace("_", " ") for case in cases])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    tidy(axes)
    return figure


def language_bars(counts: Mapping[str, int]) -> Figure:
    """Rows by language, the most common first, with the number beside each bar."""
    figure = Figure(figsize=(WIDTH, 1.0 + 0.28 * len(counts)), layout="constrained")
    axes = figure.subplots()
    total = sum(counts.values())
    bars = axes.barh(range(len(counts)), [count / total for count in counts.values()], 0.7, color=COLOURS["rm"])
    axes.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=3, fontsize=8)
    axes.set_yticks(range(len(counts)), ["undetermined" if name == UNDETERMINED else name for name in counts])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(counts.values()) / total)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    tidy(axes)
    return figure


def ranking_shapes(found: Facts) -> Figure:
    """Rankings by number of answers, strict and tied pairs, and how often the longest answer is ranked best."""
    figure, (answers, pairs, longest) = grid(3, 3, height=2.8)
    _bars(answers, found["answers"], "Answers per ranking (K)")
    _bars(pairs, {"strict": found["strict"], "tied": found["tied"]}, "Judged pairs")
    if rates := found["longest"]:
        heights = [rates["best"], rates["chance"]]
        bars = longest.bar(["longest answer", "by chance"], heights, 0.6, color=[COLOURS["rankings"], PAPER])
        longest.bar_label(bars, [f"{100 * rate:.1f}%" for rate in heights], padding=2, fontsize=8)
        longest.set_ylim(0, min(1.15, 1.25 * max(heights)) or 1)
        longest.yaxis.set_major_formatter(PercentFormatter(1.0))
        longest.set_title("Ranked best", fontsize=10, loc="left")
        tidy(longest)
    else:
        longest.set_axis_off()
    return figure


def _bars(axes: Axes, counts: Mapping[str, int], title: str) -> None:
    bars = axes.bar(list(counts), list(counts.values()), 0.7, color=COLOURS["rankings"])
    if len(counts) <= 12:
        axes.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=2, fontsize=8)
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(title, fontsize=10, loc="left")
    tidy(axes)


def _histogram(axes: Axes, counts: Mapping[str, int], colour: str, bins: int) -> None:
    """A histogram of values with their counts, in bins of equal width on a logarithmic axis."""
    values = np.array([int(value) for value in counts])
    edges = _edges(values, bins)
    axes.hist(values, edges.tolist(), weights=list(counts.values()), color=colour, edgecolor="white", linewidth=0.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())
    if edges[-1] < 50 * edges[0]:
        # Too narrow for powers of ten only.
        steps = [
            step * 10**power for power in range(9) for step in (1, 2, 5) if edges[0] < step * 10**power < edges[-1]
        ]
        axes.set_xticks(steps if len(steps) > 1 else sorted({int(edges[0] + 0.5), int(edges[-1] - 0.5)}))


def _edges(values: NDArray[np.int64], bins: int) -> NDArray[np.float64]:
    """Edges between integers, so that every bin can have values."""
    low, high = max(1, int(values.min())), max(1, int(values.max()))
    edges: NDArray[np.float64] = np.unique(np.floor(np.geomspace(low, high + 1, bins + 1))) - 0.5
    return edges if len(edges) > 1 else np.array([low - 0.5, low + 0.5])


def _plain(value: float, place: int) -> str:
    return f"{value:,.0f}" if value < 1e4 else f"{value / 1e3:,.0f}k" if value < 1e6 else f"{value / 1e6:g}M"
