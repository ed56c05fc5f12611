"""The reward model's report, made from the contents of accuracy.json."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from reports.curves import Line, Panel, curves
from reports.formats import Cell, measured, number, percent, points
from reports.page import Page, Table, matrix
from reports.plots import BLUE, DASHED, GREEN, PURPLE, errors, grid
from reports.verdict import against_best, baseline

PAGE = Page("reward.j2", "reward.html", "reward.md", "reward_pictures")
TITLES = {"test": "Held-out test", "valid": "Validation"}
EPOCHS = [
    Panel(title, "", (Line(f"train.{key}", "training", GREEN, "s"), Line(f"valid.{key}", "validation", PURPLE)), **more)
    for title, key, more in (
        ("Accuracy", "accuracy", {"marks": ((0.5, "chance"),), "percent": True}),
        ("Ranking loss", "loss", {"marks": ((math.log(2), "log 2: chance"),)}),
    )
]

Reports = Mapping[str, Mapping[str, Any]]
"""The report of evaluation/reward_model.py for each held-out split, by the split's title, the main one first."""


def write_reward_page(out: Path, name: str, evaluation: Mapping[str, Any]) -> None:
    """Writes both files and the plots into `out`. Parts that `evaluation` lacks are left out."""
    reports = reports_of(evaluation)
    PAGE.write(
        out,
        f"{name}: the reward model",
        figures(evaluation),
        evaluation=evaluation,
        reports=reports,
        against_best=against_best,
        judges=judges_table(reports),
        by_k=grouped_table(reports, "by_k", "k", "Answers per prompt (K)"),
        by_distance=grouped_table(reports, "by_distance", "distance", "Steps apart in the labeler's order"),
    )


def reports_of(evaluation: Mapping[str, Any]) -> Reports:
    """The reports of the held-out splits."""
    return {title: evaluation[split] for split, title in TITLES.items() if evaluation.get(split)}


def figures(evaluation: Mapping[str, Any]) -> dict[str, Figure | None]:
    """The plots; None without numbers."""
    epochs = pd.json_normalize(evaluation.get("epochs") or []).rename(columns={"epoch": "step"})
    return {
        "calibration": calibration_curves(reports_of(evaluation)),
        "epochs": curves(EPOCHS, epochs.to_dict("records"), "epochs"),
        "learning_curve": learning_curve(evaluation.get("learning_curve") or []),
    }


def judges_table(reports: Reports) -> Table:
    """Agreement of the model and of every baseline with the labeler, on the same pairs."""
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for split, report in reports.items():
        judges = {("Reward model", ""): report} | {baseline(name): one for name, one in report["baselines"].items()}
        for title, found in judges.items():
            rows.setdefault(title, {}).update(
                {
                    f"{split}, all pairs": measured(found["accuracy"], percent),
                    f"{split}, best vs worst (easier)": measured(found["best_vs_worst"], percent),
                    f"{split}, reward model minus this, paired": points(found["difference"])
                    if "difference" in found
                    else "–",
                }
            )
    return matrix("Agrees with the labeler", rows, lambda cell: cell or "–")


def grouped_table(reports: Reports, part: str, key: str, title: str) -> Table:
    """Accuracy and number of pairs of each group in a part of the report, two columns for each split."""
    found = {split: {row[key]: row for row in report[part]} for split, report in reports.items() if report[part]}
    rows: list[list[Cell]] = []
    for group in sorted({group for groups in found.values() for group in groups}):
        row = [groups.get(group, {}) for groups in found.values()]
        cells = [(measured(one.get("accuracy"), percent), number(one.get("pairs"))) for one in row]
        rows.append([number(group), *(cell for pair in cells for cell in pair)])
    return Table([title, *(column for split in found for column in (split, "Pairs"))], rows)


def calibration_curves(reports: Reports) -> Figure | None:
    """One panel per split: how often the labeler agrees with the model, against the model's predicted probability."""
    shown = {split: report["calibration"]["bins"] for split, report in reports.items() if report["calibration"]["bins"]}
    if not shown:
        return None
    figure, panels = grid(len(shown), 2, height=4.4)
    floor = min(0.5, *(found["observed_low"] for bins in shown.values() for found in bins))
    for axes, colour, (split, bins) in zip(panels, (BLUE, PURPLE), shown.items(), strict=False):
        axes.plot([0.5, 1], [0.5, 1], label="perfect calibration", **DASHED)
        ends = {"mean": "observed", "low": "observed_low", "high": "observed_high"}
        intervals = [{end: found[key] for end, key in ends.items()} for found in bins]
        axes.errorbar(
            [found["predicted"] for found in bins], [found["observed"] for found in bins], errors(intervals),
            fmt="D", color=colour, elinewidth=2, label="bins of pairs",
        )  # fmt: skip
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(max(-0.02, floor - 0.03), 1.1)  # room above for the legend
        axes.set_yticks([tenth / 10 for tenth in range(math.ceil(10 * floor), 11)])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("predicted probability of the answer that the model prefers")
        axes.set_ylabel("observed agreement of the labeler")
        axes.legend(ncols=2, loc="upper left")
        axes.set_title(f"Calibration, {split.lower()}")
    return figure


def learning_curve(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Held-out accuracy against the number of training prompts; a curve that still rises suggests more labels."""
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row["prompts"])
    figure, (axes,) = grid(1, 1, height=3.4)
    places, found = [row["prompts"] for row in rows], [row["accuracy"] for row in rows]
    axes.errorbar(
        places, [one["mean"] for one in found], errors(found), fmt="D-", color=BLUE, linewidth=1, elinewidth=2
    )
    axes.axhline(0.5, label="chance", **DASHED)
    axes.legend(loc="lower right")
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{row['prompts']:,}\n{100 * row['fraction']:.3g}%" for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.15)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("training prompts (log scale), and their share of all")
    axes.set_ylabel("held-out accuracy")
    return figure
