"""The report of a run: whether PPO is better than SFT, by how much, at what cost, and how reliable that is."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from data.files import read_rows
from data.sets import evenly
from modeling.tracking import read_metrics, read_numbers
from reports import run_plots, run_tables, sweeps, verdict
from reports.curves import curves
from reports.formats import dig
from reports.page import Page
from reports.reward import calibration_curves, reports_of

STAGES = ("data", "sft", "samples", "labels", "reward", "ppo", "evaluate")
SWEEPS = {"sweep_kl": sweeps.scores_by_kl, "sweep_ptx": sweeps.loss_by_reward}
EXTRA = {"tax/tax.json": "tax", "sft_baseline/epochs.jsonl": "sft_baseline"} | {
    f"{name}/sweep.json": f"{name}/measured-sft" for name in SWEEPS
}
"""Files of stages outside the pipeline that the report shows -> the folder of a manifest that names their inputs."""
PAGE = Page("run.j2", "index.html", "report.md", "pictures")


class Results:
    """The contents of a run folder; empty for stages without a result. Raises ValueError if a file is damaged."""

    def __init__(self, run: Path) -> None:
        self.evaluation: dict[str, Any] = _json(run / "evaluate" / "evaluation.json")
        if self.evaluation and "judges" not in self.evaluation:
            raise ValueError(f"{run / 'evaluate'} is the result of an earlier version: run `make evaluate` again")
        self.accuracy: dict[str, Any] = _json(run / "reward" / "accuracy.json")
        self.counts: dict[str, Any] = _json(run / "data" / "counts.json")
        self.manifests = {name: found for name in STAGES if (found := _json(run / name / "manifest.json"))}
        self.metrics = {name: read_numbers(run / name) for name in ("sft", "reward", "ppo")}
        self.held_out = read_metrics(run / "ppo" / "held_out.jsonl")
        self.generations = _rows(run / "evaluate" / "generations.jsonl")
        self.left_out = self._of_other_models(run)
        """Stages outside the pipeline whose results are of other data or models than those that the run has now."""
        self.tax: dict[str, Any] = {} if "tax" in self.left_out else _json(run / "tax" / "tax.json")
        self.baseline = [] if "sft_baseline" in self.left_out else _rows(run / "sft_baseline" / "epochs.jsonl")
        self.sweeps = {
            name: found for name in SWEEPS if name not in self.left_out and (found := _json(run / name / "sweep.json"))
        }
        self.warnings: list[str] | None = _json(run / "ppo" / "warnings.json", None)
        self.config: dict[str, Any] = {}
        """Each section of the configuration as of the last run of its stage."""
        for manifest in self.manifests.values():
            self.config |= manifest["config"]
        for name, manifest in self.manifests.items():
            self.config |= {name: manifest["config"][name]} if name in manifest["config"] else {}

    def _of_other_models(self, run: Path) -> list[str]:
        current = digests(self.manifests)
        left_out = []
        for name, place in EXTRA.items():
            made = _json(run / place / "manifest.json")
            read = made.get("inputs", {}) | (_json(run / name).get("inputs", {}) if name.startswith("sweep") else {})
            other = any(current.get(source, digest) != digest for source, digest in read.items())
            if name.startswith("tax"):  # of one PPO result, either the EMA or the last weights
                weights = dig(made, "config.evaluate.weights")
                other |= weights is not None and weights != self.evaluation.get("weights", weights)
            if (run / name).is_file() and other:
                left_out.append(name.split("/")[0])
        return left_out

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the rubric's parts in the evaluation, which may differ from those of the labels stage."""
        of_evaluation = self.manifests.get("evaluate", {}).get("config", {})
        return dig(of_evaluation, "labels.weights") or dig(self.config, "labels.weights") or {}


def write_report(run: Path, out: Path, run_name: str, samples: int) -> None:
    """Writes `out/index.html`, which is self-contained, and `out/report.md` with its plots in `out/pictures`."""
    results = Results(run)
    PAGE.write(
        out, run_name, figures(results), results=results, tables=run_tables, verdict=verdict,
        metric=reward_metric(results.config), rows=evenly(results.generations, samples),
        configuration=json.dumps(results.config, indent=2),
    )  # fmt: skip


def figures(results: Results) -> dict[str, Figure | None]:
    """The plots; None without numbers."""
    evaluation, metrics = results.evaluation, results.metrics
    metric, titles = reward_metric(results.config), {key: title for key, (title, *_) in run_tables.MEASURES.items()}
    # The score of the run's reward model in place of the weighted sum of rewards.
    path = [row | {"score": row[metric]} for row in metrics["ppo"] if metric in row]
    return {
        "win_rates": run_plots.win_rates(run_tables.comparisons(evaluation)),
        "parts": run_plots.rubric_parts(evaluation.get("models", {}), titles),
        "sft": curves(run_plots.SFT, metrics["sft"]) if dig(results.config, "sft.epochs") != 0 else None,
        "baseline": run_plots.baseline_epochs(results.baseline),
        "reward": curves(run_plots.REWARD, metrics["reward"]),
        "ppo": run_plots.ppo_curves(
            metrics["ppo"], results.held_out, dig(results.config, "ppo.kl_target"), weighted=metric != "score"
        ),
        "over_optimisation": run_plots.over_optimisation(path, evaluation.get("best_of_n")),
        "calibration": calibration_curves(reports_of(results.accuracy)),
        **{name: SWEEPS[name](found) for name, found in results.sweeps.items()},
    }


def digests(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Stage -> the SHA-256 of its result, as the last stage that read it recorded it."""
    read = {name: digest for manifest in manifests.values() for name, digest in manifest["inputs"].items()}
    return {stage: read[stage] for stage in STAGES if stage in read}


def reward_metric(config: Mapping[str, Any]) -> str | None:
    """The metric of PPO with the score of the run's reward model; None if the model is not rewarded."""
    terms = dig(config, "ppo.rewards") or [{"kind": "model"}]
    rewarded = [term for term in terms if term.get("weight", 1.0)]  # the others are only logged
    own = [term for term in rewarded if term["kind"] == "model" and not term.get("path")]
    if not own:
        return None
    if len(rewarded) == 1 and own[0].get("weight", 1.0) == 1.0:
        return "score"
    if len(terms) == 1:
        return None
    return f"score_{own[0].get('name') or 'model'}"


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)] if path.is_file() else []


def _json(path: Path, missing: Any = MappingProxyType({})) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else missing
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): run the stage {path.parent.name} again with --force") from None
