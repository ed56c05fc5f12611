"""Compares variants of a configuration, each run under several seeds, in one Markdown table and one picture.

python -m reports.ablations runs/results-demo-seed* runs/ablations/*-seed* --picture ablations.png

The part of a run folder's name before the last `-seed` names the variant, and the rest the seed.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from reports.formats import Format, number, percent
from reports.plots import BLUE, DASHED, INK, grid
from reports.seeds import finished, markdown

Numbers = Mapping[str, Any]
Variants = Mapping[str, Sequence[Numbers]]
"""Variant -> the headline numbers of each seed."""


MEASURES: dict[str, tuple[str, Format, float | None]] = {
    "reward model accuracy": ("reward_accuracy", percent, None),
    "win rate against SFT": ("win_rate", percent, 0.5),
    "both answers end": ("win_rate_both_end", percent, 0.5),
    "length-controlled": ("win_rate_length_controlled", percent, 0.5),
    "chrF, PPO minus SFT": ("chrf_difference", number, 0.0),
    "KL to SFT, nats": ("kl", number, None),
    "change of perplexity": ("perplexity_change", percent, 0.0),
    "explained variance": ("explained_variance", number, 0.0),
}
"""Title -> (the name in headline.json, or perplexity_change of `variants`; its format, the value without an effect)."""


def variants(runs: Sequence[Path]) -> Variants:
    """Groups the runs. Raises ValueError for a run without a finished evaluation."""
    found: dict[str, list[Numbers]] = {}
    for run in runs:
        _, headline = finished(run / "evaluate", "headline.json", "evaluation")
        change = headline["perplexity_ppo"] / headline["perplexity_sft"] - 1
        name, _, seed = run.name.rpartition("-seed") if "-seed" in run.name else (run.name, "", "")
        found.setdefault(name, []).append(headline | {"perplexity_change": change, "seed": f"seed {seed}"})
    return found


def known(runs: Sequence[Numbers], name: str) -> list[float]:
    """A measure of the runs that have it."""
    return [run[name] for run in runs if run.get(name) is not None]


def table(found: Variants) -> str:
    """A row for each variant: the mean over its seeds and the sample standard deviation."""
    lines = [["variant", "seeds", *MEASURES], ["---"] * (2 + len(MEASURES))]
    for name, runs in found.items():
        cells = []
        for measure, form, _ in MEASURES.values():
            values = known(runs, measure)
            spread = f" ± {form(stdev(values))}" if len(values) > 1 else ""
            cells.append(f"{form(mean(values))}{spread}" if values else "–")
        lines.append([name, str(len(runs)), *cells])
    return markdown(lines)


def picture(found: Variants) -> Figure:
    """A panel for each measure, with a marker for each seed, the same in every row, and a line at the mean."""
    seeds = sorted({run["seed"] for runs in found.values() for run in runs})
    marker = dict(zip(seeds, itertools.cycle("o^sDvP"), strict=False))
    figure, panels = grid(len(MEASURES), 4, height=1.2 + 0.3 * len(found))
    for place, (axes, (title, (measure, form, even))) in enumerate(zip(panels, MEASURES.items(), strict=True)):
        for row, runs in enumerate(found.values()):
            if values := known(runs, measure):
                axes.plot([mean(values)] * 2, [row - 0.3, row + 0.3], color=INK)
            for run in runs:
                if run.get(measure) is not None:
                    axes.plot(run[measure], row, marker[run["seed"]], color=BLUE, markersize=4)
        if even is not None:
            axes.axvline(even, **DASHED)
        if form is percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(title)
        axes.set_yticks(range(len(found)), list(found) if place % 4 == 0 else [""] * len(found))
        axes.set_ylim(len(found) - 0.5, -0.5)
    if len(seeds) > 1:
        shown = [Line2D([], [], linestyle="", marker=marker[seed], color=BLUE, label=seed) for seed in seeds]
        figure.legend(handles=shown, loc="outside lower center", ncols=len(seeds))
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with a finished evaluation")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    given = parser.parse_args(arguments)
    try:
        found = variants(given.runs)
        if given.picture is not None:
            picture(found).savefig(given.picture, dpi=130)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(table(found))


if __name__ == "__main__":
    main()
