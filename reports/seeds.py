"""Compares several runs in one Markdown table, for example runs with different seeds: their reward models, or
(`--headline`) the headline numbers of whole runs with mean and standard deviation over the runs.

python -m reports.seeds runs/results-truthfulqa-seed0 runs/results-truthfulqa-seed1 runs/results-truthfulqa-seed2
python -m reports.seeds --headline runs/results-demo-seed0 runs/results-demo-seed1 runs/results-demo-seed2
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reports.formats import Format, dig, in_points, measured, number, percent
from reports.page import markdown_cell

ACCURACIES = {
    "**reward model**": "accuracy",
    "its best against worst, the easier number": "best_vs_worst",
    "longest answer": "baselines.longest.accuracy",
    "shortest answer": "baselines.shortest.accuracy",
    "SFT likelihood": "baselines.sft_likelihood.accuracy",
    "SFT likelihood per token": "baselines.sft_likelihood_per_token.accuracy",
}
SIZES: dict[str, tuple[str, Format]] = {
    "held-out prompts, pairs": ("test", lambda test: f"{test['prompts']}, {test['pairs']:,}"),
    "score's standard deviation": ("test.score_std", "{:.2f}".format),
    "expected calibration error": ("test.calibration.expected_calibration_error", "{:.3f}".format),
    "training prompts": ("headline.train_prompts", str),
    "CPU seconds of the stage": ("cpu_seconds", number),
    "peak memory, GiB": ("peak_memory_gib", number),
}
HEADLINE: dict[str, tuple[str, Format]] = {
    "reward model, held-out accuracy": ("reward_accuracy", percent),
    "the same of the best baseline": ("reward_accuracy_best_baseline", percent),
    "the difference, percentage points": ("reward_above_best_baseline", in_points),
    "**win rate of PPO against SFT**": ("win_rate", percent),
    "the same, both answers end": ("win_rate_both_end", percent),
    "the same, length-controlled": ("win_rate_length_controlled", percent),
    "win rate of PPO against best-of-n from SFT": ("win_rate_vs_best_of_n", percent),
    "chrF, PPO minus SFT": ("chrf_difference", number),
    "KL to SFT, nats": ("kl", number),
    "perplexity of held-out text, SFT": ("perplexity_sft", number),
    "perplexity of held-out text, PPO": ("perplexity_ppo", number),
    "explained variance of the value model": ("explained_variance", number),
    "seconds before evaluation": ("seconds_before_evaluation", number),
}
"""Title -> the name in headline.json (docs/metrics.md) and its format."""


def table(runs: Sequence[Path]) -> str:
    """The table: held-out accuracy of the reward model and of the baselines, then sizes and costs.

    Raises ValueError for a run without a finished reward model.
    """
    found = [
        manifest | {"test": accuracy["test"]}
        for manifest, accuracy in (finished(run / "reward", "accuracy.json", "reward model") for run in runs)
    ]
    lines = [["Held-out accuracy, 95% interval", "mean", *(f"seed {run['seed']}" for run in found)]]
    lines.append(["---"] * len(lines[0]))
    for title, path in ACCURACIES.items():
        rates = [dig(run, f"test.{path}") for run in found]
        if known := [rate["mean"] for rate in rates if rate]:  # every run counts once in the mean
            cells = [markdown_cell(measured(rate, percent)) for rate in rates]
            lines.append([title, percent(sum(known) / len(known)), *cells])
    lines += [[title, "", *(form(dig(run, path)) for run in found)] for title, (path, form) in SIZES.items()]
    return markdown(lines)


def headline_table(runs: Sequence[Path]) -> str:
    """The headline numbers with their intervals, the mean and the sample standard deviation over the runs.

    Raises ValueError for a run without a finished evaluation.
    """
    found = [finished(run / "evaluate", "headline.json", "evaluation") for run in runs]
    lines = [["95% interval", "mean", "standard deviation", *(f"seed {manifest['seed']}" for manifest, _ in found)]]
    lines.append(["---"] * len(lines[0]))
    for title, (name, form) in HEADLINE.items():
        cells, known = [], []
        for _, numbers in found:
            value, low, high = (numbers.get(f"{name}{end}") for end in ("", "_low", "_high"))
            cells.append(
                markdown_cell(measured(value if low is None else {"mean": value, "low": low, "high": high}, form))
            )
            known += [] if value is None else [value]
        spread = form(stdev(known)).removeprefix("+") if len(known) > 1 else "–"
        lines.append([title, form(mean(known)) if known else "–", spread, *cells])
    return markdown(lines)


def finished(folder: Path, name: str, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A stage's manifest and one of its JSON files. Raises ValueError if the stage is not finished."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} holds no finished {what}")
    manifest, found = (json.loads((folder / file).read_text(encoding="utf-8")) for file in ("manifest.json", name))
    return manifest, found


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these rows."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders with a finished reward stage")
    parser.add_argument("--headline", action="store_true", help="compare headline numbers of finished evaluations")
    given = parser.parse_args(arguments)
    try:
        print((headline_table if given.headline else table)(given.runs))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
