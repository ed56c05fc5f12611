"""Plots of the data report from its facts; None without numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator, PercentFormatter

from data.language import UNDETERMINED
from reports.formats import counted, spaced
from reports.paper import SET_TITLES, USE_CASE_SHARES
from reports.plots import BLUE, DASHED, GREEN, GREY, PURPLE, RED, grid

Facts = Mapping[str, Any]
COLOURS = {"sft": BLUE, "rm": GREEN, "rl": RED, "rankings": PURPLE}
LANGUAGES_SHOWN = 12


def figures(facts: Facts) -> dict[str, Figure | None]:
    """All plots."""
    return {
        "prompts_per_user": prompts_per_user(facts),
        "prompt_lengths": lengths(facts),
        "use_cases": use_case_mix(facts["sets"]["rm"]["use_cases"]),
        "languages": language_bars(facts["languages"]["prompts"]),
        "rankings": ranking_shapes(facts["rankings"]),
    }


def prompts_per_user(facts: Facts) -> Figure:
    """Number of users by number of prompts, by set; both axes are logarithmic."""
    group, sets = facts["settings"]["group_by"], facts["sets"]
    figure, panels = grid(len(sets), 4, height=2.7)
    for axes, (name, found) in zip(panels, sets.items(), strict=True):
        counts = histogram(axes, found["prompts_per_user"], name, bins=24)
        axes.set_yscale("log")
        axes.set_ylim(0.7, None)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{SET_TITLES[name]}: {counted(int(counts.sum()), group)}")
        axes.set_xlabel("rankings" if name == "rankings" else "prompts")
    panels[0].set_ylabel(f"{group}s")
    return figure


def lengths(facts: Facts) -> Figure:
    """Lengths of prompts by set, in tokens on a logarithmic axis, with the limit of curation."""
    limit, sets = facts["settings"]["max_prompt_tokens"], facts["sets"]
    figure, panels = grid(len(sets), 4, height=2.7)
    for axes, (name, found) in zip(panels, sets.items(), strict=True):
        counts = histogram(axes, found["prompt_tokens"], name, bins=40)
        if counts.index.max() > limit / 4:
            axes.axvline(limit, label="limit", **DASHED)
            axes.legend()
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(f"{SET_TITLES[name]}: median {np.median(np.repeat(counts.index, counts)):,.0f}")
        axes.set_xlabel("tokens of the prompt")
    panels[0].set_ylabel("rows")
    return figure


def histogram(axes: Axes, counts: Mapping[str, int], name: str, bins: int) -> pd.Series:
    """A histogram on a logarithmic axis with bin edges between integers, so that no bin is empty by construction;
    returns the counts by value.
    """
    found = pd.Series(counts.values(), [int(value) for value in counts])
    low, high = max(1, found.index.min()), max(1, found.index.max())
    edges = np.unique(np.floor(np.geomspace(low, high + 1, bins + 1))) - 0.5
    axes.hist(found.index, edges.tolist(), weights=found, color=COLOURS[name], edgecolor="white", linewidth=0.4)
    axes.set_xscale("log")
    if high < 50 * low:  # too narrow for powers of ten
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    return found


def use_case_mix(counts: Mapping[str, int]) -> Figure | None:
    """Shares of use cases beside the paper's."""
    named = pd.Series(counts, dtype=float).drop("none", errors="ignore")
    if named.empty:
        return None
    shares = pd.DataFrame({"these data": named / named.sum(), "the paper": USE_CASE_SHARES}).loc[[*USE_CASE_SHARES]]
    figure, (axes,) = grid(1, 1, height=4.2)
    shares.rename(spaced).plot.barh(ax=axes, width=0.8, color=[GREEN, GREY])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def language_bars(counts: Mapping[str, int]) -> Figure:
    """Rows by language, the most common first, with the number beside each bar."""
    found = pd.Series(counts).rename({UNDETERMINED: "undetermined"})
    if rest := found[LANGUAGES_SHOWN:].sum():
        found = pd.concat([found[:LANGUAGES_SHOWN], pd.Series({"others": rest})])
    figure, (axes,) = grid(1, 1, height=1.0 + 0.28 * len(found))
    bars = axes.barh(found.index, found / found.sum(), 0.7, color=GREEN)
    axes.bar_label(bars, [f"{count:,}" for count in found], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def ranking_shapes(found: Facts) -> Figure | None:
    """Rankings by number of answers, strict and tied pairs, and how often the longest answer is ranked best."""
    if not found["count"]:
        return None
    figure, (answers, pairs, best) = grid(3, 3, height=2.8)
    bars(answers, "Answers per ranking (K)", found["answers"])
    bars(pairs, "Judged pairs", {"strict": found["strict"], "tied": found["tied"]})
    if rates := found["longest"]:
        bars(best, "Ranked best", {"longest answer": rates["best"], "by chance": rates["chance"]}, "{:.1%}")
        best.yaxis.set_major_formatter(PercentFormatter(1.0))
        best.patches[1].set_color(GREY)
    else:
        best.set_axis_off()
    return figure


def bars(axes: Axes, title: str, heights: Mapping[str, float], form: str = "{:,.0f}") -> None:
    """Bars with their heights above them."""
    drawn = axes.bar(list(heights), list(heights.values()), 0.7, color=PURPLE)
    axes.bar_label(drawn, fmt=form, padding=2, fontsize=8)
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer="," in form))
    axes.set_title(title)
