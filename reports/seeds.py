"""Compares the reward models of several runs in one Markdown table, for example of runs with different seeds.

python -m reports.seeds runs/results-truthfulqa-seed0 runs/results-truthfulqa-seed1 runs/results-truthfulqa-seed2
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.formats import Format, dig, measured, number, percent
from reports.page import markdown_cell

ACCURACIES = {
    "**reward model**": "accuracy",
    "its best against worst, the easier number": "best_vs_worst",
    "longest answer": "baselines.longest.accuracy",
    "shortest answer": "baselines.shortest.accuracy",
    "SFT likelihood": "baselines.sft_likelihood.accuracy",
    "SFT likelihood per token": "baselines.sft_likelihood_per_token.accuracy",
    "random": "baselines.random.accuracy",
}
SIZES: dict[str, tuple[str, Format]] = {
    "held-out prompts, pairs": ("test", lambda test: f"{test['prompts']}, {test['pairs']:,}"),
    "score's standard deviation": ("test.score_std", "{:.2f}".format),
    "expected calibration error": ("test.calibration.expected_calibration_error", "{:.3f}".format),
    "training prompts": ("headline.train_prompts", str),
    "CPU seconds of the stage": ("cpu_seconds", number),
    "peak memory, GiB": ("peak_memory_gib", number),
}


def table(runs: Sequence[Path]) -> str:
    """The table: held-out accuracy of the reward model and of the baselines, then sizes and costs.

    Raises ValueError for a run without a finished reward model.
    """
    found = []
    for folder in (run / "reward" for run in runs):
        if not (folder / "manifest.json").is_file():
            raise ValueError(f"{folder} holds no finished reward model")
        files = [json.loads((folder / name).read_text()) for name in ("manifest.json", "accuracy.json")]
        found.append(files[0] | {"test": files[1]["test"]})
    lines = [["Held-out accuracy, 95% interval", "mean", *(f"seed {run['seed']}" for run in found)]]
    lines.append(["---"] * len(lines[0]))
    for title, path in ACCURACIES.items():
        rates = [dig(run, f"test.{path}") for run in found]
        if known := [rate["mean"] for rate in rates if rate]:  # every run counts once in the mean
            cells = [markdown_cell(measured(rate, percent)) for rate in rates]
            lines.append([title, percent(sum(known) / len(known)), *cells])
    lines += [[title, "", *(form(dig(run, path)) for run in found)] for title, (path, form) in SIZES.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
