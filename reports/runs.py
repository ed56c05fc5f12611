"""The report that compares runs: headline numbers, judges, KL, alignment tax, metadata, settings, curves and answers.

Runs that differ only in their seed and split are drawn as one line with a band.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from data.sets import evenly
from reports import run_tables
from reports.curves import by_step
from reports.formats import dig, number, percent, spaced
from reports.page import Page, Table, side_by_side
from reports.plots import BLUE, DASHED, GREEN, PURPLE, RED, YELLOW, errors, grid
from reports.run import Results, digests

PAGE = Page("runs.j2", "index.html", "report.md", "pictures")
COLOURS = (BLUE, RED, GREEN, PURPLE, YELLOW)
CURVES = {
    "score": "Score",
    "kl": "KL to SFT, nats per episode",
    "entropy": "Entropy, nats per token",
    "length": "Length, tokens",
}
ANSWERS = 200
"""Maximum number of prompts whose answers are shown."""
APART = ("run_name", "runs_folder", "seed", "tracking", "processes")
"""Settings and sections that are ignored when runs are grouped by their settings."""


def write_comparison(runs: Sequence[Path], out: Path) -> None:
    """Writes `out/index.html` and `out/report.md`. Raises ValueError for a folder without results of a run."""
    results = {str(run): Results(run) for run in runs}
    for name, found in results.items():
        if not found.manifests:
            raise ValueError(f"{name} holds no results of a run: give run folders, such as runs/demo")
    settings = {name: flat(found.config) | files(found) for name, found in results.items()}
    groups = by_settings(settings)
    drawn = {"curves": curves(results, groups), "frontier": frontier(results)}
    PAGE.write(
        out, f"Comparison of {len(runs)} runs", drawn, results=results, groups=groups,
        judges=judges_table(results), tests=tests_table(results), metadata=metadata_table(results),
        differing=differing(settings), seeds={name: found["seed"] for name, found in settings.items()},
        lineage={
            name: {stage: digest[:10] for stage, digest in digests(found.manifests).items()}
            for name, found in results.items()
        },
        answers=answers(results),
    )  # fmt: skip


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def files(results: Results) -> dict[str, Any]:
    """The digests of the files that a run's data was made from, since a path may have other contents in another run."""
    base, read = dig(results.config, "model.base"), dig(results.manifests, "data.inputs") or {}
    return {
        f"contents of {place}": digest[:10]
        for place, digest in read.items()
        if place != base and not place.startswith("reads prompts: ")
    }


def by_settings(settings: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The runs in groups whose settings and files differ only in the seed, or also in the split."""
    groups: dict[str, list[str]] = {}
    for name, found in settings.items():
        shared = {key: value for key, value in found.items() if key.split(".")[0] not in APART}
        shared.pop("data.split_salt", None)  # often one split per seed
        groups.setdefault(json.dumps(shared, sort_keys=True), []).append(name)
    return list(groups.values())


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Setting -> run -> value as text, for the settings that differ between runs."""
    names = sorted({key for found in settings.values() for key in found if key.split(".")[0] not in APART})
    shown = {key: {run: json.dumps(found.get(key)) for run, found in settings.items()} for key in names}
    return {key: values for key, values in shown.items() if len(set(values.values())) > 1}


def judges_table(results: Mapping[str, Results]) -> Table:
    """PPO's win rates against SFT of the same run by each judge."""
    names = dict.fromkeys(judge["name"] for found in results.values() for judge in found.evaluation.get("judges", []))
    lines = [
        (run_tables.JUDGES[name], note, f"evaluation.comparisons.ppo.{name}.{path}", percent)
        for name in names
        for note, path in (("win rate", "win_rate"), ("length-controlled", "length_controlled"))
    ]
    return side_by_side("Judge", {name: vars(found) for name, found in results.items()}, lines)


def tests_table(results: Mapping[str, Results]) -> Table:
    """PPO's results on the benchmarks of the alignment tax, with the change from SFT of the same run."""
    better = {
        (task, metric): kind
        for found in results.values()
        for task, metrics in found.tax.get("better", {}).items()
        for metric, kind in metrics.items()
    }
    rows = [
        [
            run_tables.test_title(*key, kind),
            *(run_tables.test_cell(found.tax, "ppo", *key) for found in results.values()),
        ]
        for key, kind in better.items()
    ]
    return Table(["Test", *results], rows)


def metadata_table(results: Mapping[str, Results]) -> Table:
    """The paper's metadata of PPO's answers over all use cases, by run."""
    found = {name: dig(one.evaluation, "metadata.ppo.all") or {} for name, one in results.items()}
    fields = dict.fromkeys(field for rates in found.values() for field in rates)
    lines = [(spaced(field), "", field, number if field == "quality" else percent) for field in fields]
    return side_by_side("Metadata", found, lines)


def answers(results: Mapping[str, Results]) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """Each prompt that all runs evaluated, with PPO's first answer of each run: colour, run, text and measures."""
    rows = [{(row["prompt_id"], row["prompt"]): row for row in found.generations} for found in results.values()]
    shared = [key for key in rows[0] if all(key in found for found in rows)]
    return [
        (
            key[1],
            [("ppo", name, *run_tables.answers(found[key])[-1][2:]) for name, found in zip(results, rows, strict=True)],
        )
        for key in evenly(shared, ANSWERS)
    ]


def frontier(results: Mapping[str, Results]) -> Figure | None:
    """PPO's win rate against SFT and its KL, one point per run. Best-of-n is drawn only for runs whose first judge is
    the rubric, since its win rates are by the rubric.
    """
    shown = {
        name: found.evaluation
        for name, found in results.items()
        if found.evaluation.get("kl") and dig(found.evaluation, "win_rate.sft")
    }
    if not shown:
        return None
    figure, (axes,) = grid(1, 1, height=4.2)
    for place, (name, evaluation) in enumerate(shown.items()):
        colour = COLOURS[place % len(COLOURS)]
        rate = evaluation["win_rate"]["sft"]
        kl = {end: math.sqrt(max(0.0, evaluation["kl"][end])) for end in ("low", "mean", "high")}
        axes.errorbar(kl["mean"], rate["mean"], errors([rate]), errors([kl]), fmt="D", color=colour, label=name)
        rows = (evaluation.get("best_of_n") or {}).get("rows")
        if rows and evaluation["judges"][0]["name"] == "rubric":
            axes.plot(
                [math.sqrt(row["kl"]) for row in rows], [row["win_rate"]["mean"] for row in rows],
                color=colour, linestyle=":", marker="o", markersize=3, label=f"best of n, {name}",
            )  # fmt: skip
    axes.axhline(0.5, **DASHED)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("√KL to SFT, √nats")
    axes.set_ylabel("win rate against SFT")
    axes.legend()
    return figure


def curves(results: Mapping[str, Results], groups: Sequence[Sequence[str]]) -> Figure | None:
    """Metrics of PPO: the mean of each group over its seeds, and a band from its lowest to its highest run."""
    drawn = [group for group in groups if any(results[name].metrics["ppo"] for name in group)]
    if not drawn:
        return None
    figure, panels = grid(len(CURVES), 2)
    for axes, (key, title) in zip(panels, CURVES.items(), strict=True):
        for place, group in enumerate(drawn):
            rows = [by_step(results[name].metrics["ppo"]).get(key, pd.Series(dtype=float)) for name in group]
            table, colour = pd.concat(rows, axis=1), COLOURS[place % len(COLOURS)]
            label = group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} more"
            axes.plot(table.index, table.mean(axis=1), color=colour, label=label)
            axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("iteration")
    panels[0].legend()
    return figure
