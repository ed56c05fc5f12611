"""Writes the report of a run: index.html with inline pictures, and report.md; and a model card beside each model.

python -m stages.report --config configs/demo.yaml
python -m stages.report runs/one runs/other --out runs/comparison    # one report that compares runs
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling.disk import file_digest
from stages.config import STAGES, RunConfig
from stages.errors import report
from stages.outdated import outdated
from stages.runner import RunFolder, Stage, stage_main


def work(config: RunConfig, run: RunFolder, out: Path) -> dict[str, Any]:
    """Writes both files, and README.md in the folders of the run's models."""
    from reports.model_card import write_model_cards
    from reports.run import write_report

    write_model_cards(run.root, config.run_name)
    write_report(run.root, out, config.run_name, config.evaluate.samples_in_report)
    return {"report": str(run.stage("report") / "index.html")}


def external(config: RunConfig) -> dict[str, str]:
    """Digests of the results, shown in the report, of stages outside the pipeline."""
    from reports.run import EXTRA

    root = Path(config.runs_folder) / config.run_name
    return {name: file_digest(root / name) for name in EXTRA if (root / name).is_file()}


STAGE = Stage(
    "report",
    sections=("evaluate", "run_name"),
    after=("data", "sft", "samples", "labels", "reward", "ppo", "evaluate"),
    work=work,
    external=external,
)


def compare(arguments: Sequence[str]) -> int:
    """Compares runs and returns the exit code. A run with outdated results is an error."""
    from reports.runs import write_comparison

    parser = argparse.ArgumentParser(prog="python -m stages.report", description="Compares runs in one report.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="folder of the report")
    given = parser.parse_args(arguments)
    try:
        for run in given.runs:
            outdated(run, [name for name in STAGES if name != "report"], {})
        write_comparison(given.runs, given.out)
    except (OSError, ValueError) as error:
        return report(error, None)
    print(f"report: {given.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1 and (not sys.argv[1].startswith("-") or any(one.startswith("--out") for one in sys.argv[1:])):
        sys.exit(compare(sys.argv[1:]))
    stage_main(STAGE, "Writes the report.")
