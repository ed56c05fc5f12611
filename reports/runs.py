"""The report that compares runs: their headline numbers, the settings in which they differ, and their PPO curves.

Runs that differ in nothing but their seed are drawn as one line with a band.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.curves import by_step
from reports.page import Page
from reports.plots import BLUE, GREEN, PURPLE, RED, YELLOW, grid, styled
from reports.run import Results

PAGE = Page("runs.j2", "index.html", "report.md", "pictures")
COLOURS = (BLUE, RED, GREEN, PURPLE, YELLOW)
CURVES = {
    "score": "Score",
    "kl": "KL to SFT, nats per episode",
    "entropy": "Entropy, nats per token",
    "length": "Length, tokens",
}
APART = ("run_name", "runs_folder", "seed", "tracking", "processes")
"""Settings and sections that do not make two runs different."""


def write_comparison(runs: Sequence[Path], out: Path) -> None:
    """Writes `out/index.html` and `out/report.md`. Raises ValueError for a folder without results of a run."""
    results = {str(run): Results(run) for run in runs}
    for name, found in results.items():
        if not found.manifests:
            raise ValueError(f"{name} holds no results of a run: give run folders, such as runs/demo")
    settings = {name: flat(found.config) for name, found in results.items()}
    groups = by_settings(settings)
    PAGE.write(
        out, f"Comparison of {len(runs)} runs", {"curves": curves(results, groups)}, results=results, groups=groups,
        differing=differing(settings), seeds={name: found["seed"] for name, found in settings.items()},
    )  # fmt: skip


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def by_settings(settings: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The runs in groups that have the same settings but for the seed."""
    groups: dict[str, list[str]] = {}
    for name, found in settings.items():
        key = json.dumps({key: value for key, value in found.items() if key.split(".")[0] not in APART}, sort_keys=True)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Setting -> run -> value as text, of the settings that are not the same in all runs."""
    names = sorted({key for found in settings.values() for key in found if key.split(".")[0] not in APART})
    shown = {key: {run: json.dumps(found.get(key)) for run, found in settings.items()} for key in names}
    return {key: values for key, values in shown.items() if len(set(values.values())) > 1}


@styled
def curves(results: Mapping[str, Results], groups: Sequence[Sequence[str]]) -> Figure | None:
    """Metrics of PPO: the mean of each group over its seeds, and a band from its lowest to its highest run."""
    drawn = [group for group in groups if any(results[name].metrics["ppo"] for name in group)]
    if not drawn:
        return None
    figure, panels = grid(len(CURVES), 2)
    for axes, (key, title) in zip(panels, CURVES.items(), strict=True):
        for number, group in enumerate(drawn):
            rows = [by_step(results[name].metrics["ppo"]).get(key, pd.Series(dtype=float)) for name in group]
            table, colour = pd.concat(rows, axis=1), COLOURS[number % len(COLOURS)]
            label = group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} more"
            axes.plot(table.index, table.mean(axis=1), color=colour, label=label)
            axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("iteration")
    panels[0].legend()
    return figure
