"""The data report's pictures: columns of numbers in, a Figure out. What has no numbers has no picture."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from data.build import Built
from data.config import DataConfig
from data.figures import INK, WIDTH, grid, tidy
from data.language import UNDETERMINED
from data.report.counts import (
    TITLES,
    languages,
    members,
    most_common,
    part_of,
    per_group,
    present,
    prompt_lengths,
    use_cases,
)
from data.report.paper import USE_CASE_SHARES
from data.report.rankings import RankingFacts

COLOURS = {"sft": "#4477AA", "rm": "#228833", "rl": "#EE6677", "rankings": "#AA3377"}
"""Paul Tol's bright scheme, which colour-blind readers can tell apart; one colour a set in every picture."""
PAPER = "#BBBBBB"
LANGUAGES_SHOWN = 12


def figures(built: Built, config: DataConfig, facts: RankingFacts) -> dict[str, Figure]:
    """All pictures that the data have numbers for."""
    found = {
        "prompts_per_user": prompts_per_user(built, config.group_by),
        "prompt_lengths": lengths(built, config.max_prompt_tokens),
    }
    cases = {case: count for case, count in use_cases(built.pool, built.pool.kept()).items() if case}
    if any(cases.values()):
        found["use_cases"] = use_case_mix(cases)
    found["languages"] = language_bars(dict(most_common(languages(built.pool, built.pool.kept()), LANGUAGES_SHOWN)))
    if facts.count:
        found["rankings"] = ranking_shapes(facts)
    return found


def prompts_per_user(built: Built, group: str) -> Figure:
    """How many users sent how many prompts, by set; both axes are logarithmic."""
    sets = present(built)
    figure, panels = grid(len(sets), 4, height=2.7)
    for axes, name in zip(panels, sets, strict=True):
        counts = per_group(part_of(built, name), members(built, name))
        _histogram(axes, counts, _bins(counts), COLOURS[name])
        axes.set_yscale("log")
        axes.set_ylim(0.7, None)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(
            f"{TITLES[name]}: {len(counts):,} {group}{'' if len(counts) == 1 else 's'}", fontsize=10, loc="left"
        )
        axes.set_xlabel("rankings" if name == "rankings" else "prompts", fontsize=8)
        tidy(axes)
    panels[0].set_ylabel(f"{group}s", fontsize=8)
    return figure


def lengths(built: Built, limit: int) -> Figure:
    """Lengths of prompts by set, in tokens on a logarithmic axis, with the limit of curation."""
    sets = present(built)
    figure, panels = grid(len(sets), 4, height=2.7)
    for axes, name in zip(panels, sets, strict=True):
        values = prompt_lengths(part_of(built, name), members(built, name))
        _histogram(axes, values, _bins(values, most=40), COLOURS[name])
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
    """Rows by language, the most common first; the number stands beside each bar."""
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


def ranking_shapes(facts: RankingFacts) -> Figure:
    """How many answers rankings have, what became of their pairs, and how the longest answer fares."""
    figure, (answers, pairs, longest) = grid(3, 3, height=2.8)
    sizes = sorted(facts.answers)
    _bars(answers, [str(size) for size in sizes], [facts.answers[size] for size in sizes], "Answers in a ranking (K)")
    _bars(pairs, ["strict", "tied"], [facts.strict, facts.tied], "Judged pairs")
    if facts.longest_of:
        rates = [facts.longest_best / facts.longest_of, facts.longest_chance / facts.longest_of]
        bars = longest.bar(["longest answer", "by chance"], rates, 0.6, color=[COLOURS["rankings"], PAPER])
        longest.bar_label(bars, [f"{100 * rate:.1f}%" for rate in rates], padding=2, fontsize=8)
        longest.set_ylim(0, min(1.15, 1.25 * max(rates)) or 1)
        longest.yaxis.set_major_formatter(PercentFormatter(1.0))
        longest.set_title("Ranked best", fontsize=10, loc="left")
        tidy(longest)
    else:
        longest.set_axis_off()
    return figure


def _bars(axes: Axes, names: list[str], counts: list[int], title: str) -> None:
    bars = axes.bar(names, counts, 0.7, color=COLOURS["rankings"])
    if len(names) <= 12:
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=2, fontsize=8)
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(title, fontsize=10, loc="left")
    tidy(axes)


def _bins(values: NDArray[np.int64] | NDArray[np.int32], most: int = 24) -> NDArray[np.float64]:
    """Edges of equal width on a logarithmic axis, between whole numbers so that no bin can only be empty."""
    low, high = max(1, int(values.min())), max(1, int(values.max()))
    edges = np.geomspace(low, high + 1, most + 1)
    found: NDArray[np.float64] = np.unique(np.floor(edges)) - 0.5
    return found if len(found) > 1 else np.array([low - 0.5, low + 0.5])


def _histogram(
    axes: Axes, values: NDArray[np.int64] | NDArray[np.int32], edges: NDArray[np.float64], colour: str
) -> None:
    axes.hist(values, edges.tolist(), color=colour, edgecolor="white", linewidth=0.4)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())
    if edges[-1] < 50 * edges[0]:
        # Too narrow for powers of ten alone.
        steps = [
            step * 10**power for power in range(9) for step in (1, 2, 5) if edges[0] < step * 10**power < edges[-1]
        ]
        axes.set_xticks(steps if len(steps) > 1 else sorted({int(edges[0] + 0.5), int(edges[-1] - 0.5)}))


def _plain(value: float, place: int) -> str:
    return f"{value:,.0f}" if value < 1e4 else f"{value / 1e3:,.0f}k" if value < 1e6 else f"{value / 1e6:g}M"
