"""Compares the reward models of several runs in one Markdown table, for example of runs with different seeds.

python -m reports.seeds runs/results-truthfulqa-seed0 runs/results-truthfulqa-seed1 runs/results-truthfulqa-seed2
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.page import Cell, markdown_cell, measured, number, percent

NAMES = {
    "longest": "longest answer",
    "shortest": "shortest answer",
    "sft_likelihood": "SFT likelihood",
    "sft_likelihood_per_token": "SFT likelihood per token",
    "random": "random",
}


def table(runs: Sequence[Path]) -> str:
    """The table: held-out accuracy of the reward model and of the baselines, then sizes and costs.

    Raises ValueError for a run without a finished reward model.
    """
    tests, manifests = [], []
    for run in runs:
        folder = run / "reward"
        if not (folder / "manifest.json").is_file():
            raise ValueError(f"{folder} holds no finished reward model")
        tests.append(json.loads((folder / "accuracy.json").read_text())["test"])
        manifests.append(json.loads((folder / "manifest.json").read_text()))
    rows = [("**reward model**", [test["accuracy"] for test in tests])]
    rows.append(("its best against worst, the easier number", [test["best_vs_worst"] for test in tests]))
    rows += [
        (title, [test["baselines"].get(name, {}).get("accuracy") for test in tests]) for name, title in NAMES.items()
    ]
    lines: list[list[Cell]] = [
        ["Held-out accuracy, 95% interval", "mean", *(f"seed {manifest['seed']}" for manifest in manifests)]
    ]
    lines += [
        [name, percent(mean(found)), *(measured(one, percent) for one in found)] for name, found in rows if any(found)
    ]
    lines.append(["held-out prompts, pairs", "", *(f"{test['prompts']}, {test['pairs']:,}" for test in tests)])
    lines.append(["score's standard deviation", "", *(f"{test['score_std']:.2f}" for test in tests)])
    lines.append(
        [
            "expected calibration error",
            "",
            *(f"{test['calibration']['expected_calibration_error']:.3f}" for test in tests),
        ]
    )
    lines.append(["training prompts", "", *(str(manifest["headline"]["train_prompts"]) for manifest in manifests)])
    lines.append(["CPU seconds of the stage", "", *(number(manifest.get("cpu_seconds")) for manifest in manifests)])
    lines.append(["peak memory, GiB", "", *(number(manifest.get("peak_memory_gib")) for manifest in manifests)])
    head, *body = ["| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines]
    return "\n".join([head, "|---" * (2 + len(runs)) + "|", *body])


def mean(found: Sequence[dict[str, Any] | None]) -> float | None:
    """Mean over runs, each counting once."""
    known = [one["mean"] for one in found if one is not None]
    return sum(known) / len(known) if known else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with a finished reward stage")
    try:
        print(table(parser.parse_args(arguments).runs))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
