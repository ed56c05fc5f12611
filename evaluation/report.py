"""The report of a run: whether PPO is better, by how much, at what cost, and whether to trust the result.

It shows the files of the run folder; parts without files are left out. plots.py and ppo_plots.py draw the plots.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from data.files import read_rows
from data.pages import Cell, Format, Interval, Table, between, counted, duration, measured, number, percent, write_pages
from evaluation import plots, ppo_plots
from evaluation.verdict import (
    BASELINES,
    PARTS,
    against_best_of_n,
    best_baseline,
    change,
    checks,
    dig,
    side,
    too_few,
    verdict,
)
from modeling.tracking import read_metrics, read_numbers
from ppo.monitors import MonitorSettings, warnings_of

STAGES = ("data", "sft", "samples", "labels", "reward", "ppo", "evaluate")
MEASURES = {
    "closeness": ("Closeness to the reference", "higher is better"),
    "complete": ("Complete (ends by itself)", "higher is better"),
    "repetition": ("Repetition", "lower is better"),
    "profanity": ("Profanity", "lower is better"),
    "score": ("Whole rubric", "higher is better"),
    "chrf": ("chrF", "held-out judge: no reward model saw it; higher is better"),
    "tokens": ("Length, tokens", "neither is better"),
}
WEIGHTS = {"ema": "Evaluated with EMA weights", "last": "Evaluated with the last weights, not their EMA"}
COMPARISONS = {
    "PPO vs SFT": ("win_rate", "sft"),
    "PPO vs base": ("win_rate", "base"),
    "PPO vs SFT, similar length": ("win_rate_length_matched",),
    "PPO vs SFT, both answers end": ("win_rate_both_end",),
}


@dataclass(frozen=True)
class Results:
    """The results in a run folder; empty for stages without a result."""

    evaluation: dict[str, Any]
    accuracy: dict[str, Any]
    counts: dict[str, Any]
    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, list[dict[str, float]]]
    generations: list[dict[str, Any]]

    @staticmethod
    def read(run: Path) -> "Results":
        """All files below `run` that the report shows."""
        generations = run / "evaluate" / "generations.jsonl"
        return Results(
            evaluation=_json(run / "evaluate" / "evaluation.json"),
            accuracy=_json(run / "reward" / "accuracy.json"),
            counts=_json(run / "data" / "counts.json"),
            manifests={name: found for name in STAGES if (found := _json(run / name / "manifest.json"))},
            metrics={
                **{name: read_numbers(run / name) for name in ("sft", "reward", "ppo")},
                "held_out": read_metrics(run / "ppo" / "held_out.jsonl"),
            },
            generations=[row for _, row in read_rows(generations)] if generations.is_file() else [],
        )

    def config(self) -> dict[str, Any]:
        """The run's configuration; each section is the one with which its stage last ran."""
        merged: dict[str, Any] = {}
        for manifest in self.manifests.values():
            merged |= manifest.get("config", {})
        own = {name: found["config"][name] for name, found in self.manifests.items() if name in found.get("config", {})}
        return merged | own


def write_report(run: Path, out: Path, run_name: str, samples: int) -> None:
    """Writes `out/index.html` with inline pictures, and `out/report.md` with pictures in `out/pictures`."""
    results = Results.read(run)
    templates = Path(__file__).parent / "templates"
    write_pages(out, templates, "index.html", context(results, run_name, samples), figures(results), "pictures")


def figures(results: Results) -> dict[str, Figure]:
    """The plots that the run has numbers for."""
    found: dict[str, Figure] = {}
    comparisons = {name: rate for name, path in COMPARISONS.items() if (rate := dig(results.evaluation, *path))}
    without = results.evaluation.get("win_rate_without") or {}
    comparisons |= {f"PPO vs SFT, without {PARTS[part]}": rate for part, rate in without.items()}
    if comparisons:
        found["win_rates"] = plots.win_rates(comparisons)
    if models := results.evaluation.get("models"):
        found["parts"] = plots.rubric_parts(models, {key: title for key, (title, _) in MEASURES.items()})
    curves = {"sft": plots.sft_curves, "reward": plots.reward_curves}
    drawn = {name: draw(results.metrics[name]) for name, draw in curves.items()}
    drawn["ppo"] = ppo_plots.ppo_curves(
        results.metrics["ppo"], results.metrics["held_out"], dig(results.config(), "ppo", "kl_target")
    )
    drawn["over_optimisation"] = plots.over_optimisation(results.metrics["ppo"], results.evaluation.get("best_of_n"))
    return found | {name: figure for name, figure in drawn.items() if figure is not None}


def context(results: Results, run_name: str, samples: int) -> dict[str, Any]:
    """The variables of the templates, without the plots."""
    evaluation, config = results.evaluation, results.config()
    rows = results.generations
    count = min(samples, len(rows))
    outcomes = [row["ppo_against_sft"] for row in rows]
    return {
        "run_name": run_name,
        "verdict": verdict(evaluation),
        "tiles": tiles(results),
        "labeler_note": labeler_note(config),
        "checks": checks(evaluation, results.accuracy, rows),
        "too_few": too_few(evaluation, results.accuracy),
        "wins": wins_table(evaluation),
        "carrying": carrying_table(evaluation, dig(config, "labels", "weights") or {}),
        "parts": parts_table(evaluation.get("models", {}), dig(config, "labels", "weights") or {}),
        "reward": reward_table(results.accuracy),
        "left_out": left_out_table(results.accuracy.get("left_out", {})),
        "disagreement": dig(config, "labels", "disagreement") if dig(config, "labels", "labeler") == "simulated" else 0,
        "tax": tax_table(evaluation.get("perplexity", {})),
        "compared": compared(evaluation, config),
        "best_of_n": best_of_n_table(evaluation.get("best_of_n", {})),
        "against_best_of_n": against_best_of_n(evaluation.get("best_of_n", {})),
        "kl_coef": dig(config, "ppo", "kl_coef"),
        "warnings": monitor_warnings(results),
        "samples": [rows[index * len(rows) // count] for index in range(count)],
        "prompts": len(rows),
        "outcomes": {"won": outcomes.count(1.0), "tied": outcomes.count(0.5), "lost": outcomes.count(0.0)},
        "names": plots.NAMES,
        "measures": {key: key for key in MEASURES} | {"score": "rubric", "chrf": "chrF"},
        "stages": stages_table(results.manifests),
        "packages": packages_table(results.manifests),
        "counts": counts_table(results.counts.get("rows", {})),
        "removed": removed_table(results.counts.get("removed", {})),
        "skipped": results.counts.get("skipped", 0),
        "handed_on": {name: dig(results.manifests, name, "headline") or {} for name in ("samples", "labels")},
        "config_json": json.dumps(config, indent=2),
    }


def tiles(results: Results) -> list[dict[str, str]]:
    """The headline numbers."""
    evaluation, before, after = (
        results.evaluation,
        dig(results.evaluation, "perplexity", "sft"),
        dig(results.evaluation, "perplexity", "ppo"),
    )
    seconds = sum(found.get("seconds", 0.0) for found in results.manifests.values())

    def tile(label: str, found: Interval | None, form: Format, detail: str) -> dict[str, str]:
        return {
            "label": label,
            "value": form(found and found["mean"]),
            "detail": f"{between(found, form)}, {detail}" if found else "not measured",
        }

    test = results.accuracy.get("test", {})
    name = best_baseline(test)
    beside = f"best baseline {percent(test['baselines'][name]['accuracy']['mean'])}" if name else "held-out pairs"
    tax = {
        "label": "Perplexity, plain text",
        "value": f"{number(before)} → {number(after)}",
        "detail": f"{change(before, after)}, SFT → PPO",
    }
    return [
        tile("Reward model accuracy", dig(results.accuracy, "test", "accuracy"), percent, beside),
        tile("Win rate, PPO vs SFT", dig(evaluation, "win_rate", "sft"), percent, "ties count half"),
        tile("KL from SFT, nats", evaluation.get("kl"), number, "per answer"),
        tax,
        {"label": "Total time", "value": duration(seconds), "detail": f"{len(results.manifests)} stages"},
    ]


def labeler_note(config: Mapping[str, Any]) -> str:
    """A note on who ranked the answers, for the reward model and for this report."""
    rubric = "a rubric (closeness to a reference answer, completeness, less repetition and profanity)"
    brought = bool(dig(config, "data", "rankings"))
    labeler = dig(config, "labels", "labeler")
    if labeler == "simulated":
        taught = " The reward model was also trained on rankings from data.rankings." if brought else ""
        return (
            f"No person ranked any answer of this run: the labeler is simulated, {rubric}.{taught} A win here is "
            "a win by that rubric only."
        )
    if labeler == "none":
        return (
            "The reward model was trained on the rankings in data.rankings. The win rates below are judged by "
            f"{rubric}, not by a person."
        )
    return (
        f"The reward model's labeler is not recorded here. The win rates below are judged by {rubric}, not by a person."
    )


def monitor_warnings(results: Results) -> list[str] | None:
    """The warnings of PPO's monitors; None for a run without them."""
    settings, rows = dig(results.config(), "ppo", "monitors"), results.metrics["ppo"]
    if settings is None or not rows:
        return None
    return [
        sentence.removeprefix("warning: ")
        for sentence in warnings_of(MonitorSettings(**settings), [*rows, *results.metrics["held_out"]])
    ]


def wins_table(evaluation: Mapping[str, Any]) -> Table:
    """PPO's win rates."""
    rows: list[list[Cell]] = []
    reading = {"better": "PPO better", "worse": "PPO worse", "even": "no difference shown"}
    for name, path in COMPARISONS.items():
        if found := dig(evaluation, *path):
            rows.append(
                [name, percent(found["mean"]), between(found, percent), number(found["n"]), reading[side(found, 0.5)]]
            )
        elif path[0] in evaluation:
            rows.append([name, "–", "–", "0", "no such pairs"])
    return Table(["Comparison", "Win rate", "95% interval", "Prompts", "Reading"], rows)


def carrying_table(evaluation: Mapping[str, Any], weights: Mapping[str, float]) -> Table:
    """PPO's win rates against SFT by the rubric without each of its parts, and by each part alone."""
    without, alone = evaluation.get("win_rate_without") or {}, evaluation.get("win_rate_by_part") or {}
    rows: list[list[Cell]] = [
        [
            (PARTS[part], f"weight {weights[part]:g}" if part in weights else ""),
            measured(rate, percent),
            measured(alone.get(part), percent),
        ]
        for part, rate in without.items()
    ]
    return Table(["Part of the rubric", "Win rate without it", "Win rate by it alone"], rows)


def compared(evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Which weights of PPO and how many answers were compared; empty without an evaluation."""
    if not evaluation:
        return ""
    weights = evaluation.get("weights") or dig(config, "evaluate", "weights")
    answers = f"{counted(evaluation['answers_per_prompt'], 'answer')} per prompt from PPO and from SFT, one from base"
    temperature = dig(config, "evaluate", "temperature")
    at = f", at temperature {temperature:g}" if isinstance(temperature, int | float) else ""
    unknown = "It is not recorded which of PPO's weights were evaluated"
    return f"{WEIGHTS.get(weights, unknown)}. {answers}{at}."


def best_of_n_table(found: Mapping[str, Any]) -> Table:
    """SFT's best-of-n by the reward model, and PPO, with their KL."""
    if not found:
        return Table([], [])

    def row(name: str, note: str, kl: Any, measures: Mapping[str, Interval]) -> list[Cell]:
        cells = [measured(measures[key], number) for key in ("proxy", "score", "chrf")]
        return [(name, note), measured(kl, number), *cells, measured(measures["win_rate"], percent)]

    names = {1: ("Best of 1", "plain SFT answers, other than those of the win rate: 50% but for sampling noise")}
    rows = [row(*names.get(line["n"], (f"Best of {line['n']}", "")), line["kl"], line) for line in found["rows"]]
    rows.append(row("PPO", "", found["ppo"]["kl"], found["ppo"]))
    titles = ["Reward model's score", "Rubric", "chrF", "Win rate against SFT"]
    return Table([f"{counted(found['prompts'], 'held-out prompt')}", "KL to SFT, nats", *titles], rows)


def parts_table(models: Mapping[str, Any], weights: Mapping[str, float]) -> Table:
    """Each measure of each model with its interval."""
    rows: list[list[Cell]] = []
    for key, (title, note) in MEASURES.items():
        form: Format = percent if key == "complete" else number
        weight = f"{note}; weight {weights[key]:g}" if key in weights else note
        cells = [measured(dig(models, model, key), form) for model in plots.NAMES]
        if any(cell != "–" for cell in cells):
            rows.append([(title, weight), *cells])
    return Table(["Mean over prompts, 95% interval", *plots.NAMES.values()], rows)


def reward_table(accuracy: Mapping[str, Any]) -> Table:
    """Agreement of the reward model with the labeler on held-out rankings."""
    splits = [split for split in ("test", "valid") if split in accuracy]
    baselines = [name for name in BASELINES if any(dig(accuracy, split, "baselines", name) for split in splits)]
    lines: list[tuple[str, str, tuple[str, ...], Format]] = [
        ("Accuracy, all pairs", "the number to quote", ("accuracy",), percent),
        ("Accuracy, best vs worst", "the easier number", ("best_vs_worst",), percent),
        *((BASELINES[name][0], "baseline, all pairs", ("baselines", name, "accuracy"), percent) for name in baselines),
        (
            "Expected calibration error",
            "gap between confidence and accuracy",
            ("calibration", "expected_calibration_error"),
            percent,
        ),
        ("Spread of scores", "standard deviation", ("score_std",), number),
        ("Prompts", "", ("prompts",), number),
        ("Pairs", "ties left out", ("pairs",), number),
    ]
    body: list[list[Cell]] = [
        [(title, note), *(measured(dig(accuracy, split, *path), form) for split in splits)]
        for title, note, path, form in lines
    ]
    return Table(
        ["", *({"test": "Held-out test", "valid": "Validation"}[split] for split in splits)], body if splits else []
    )


def left_out_table(left_out: Mapping[str, Mapping[str, int]]) -> Table:
    """Rankings left out of the reward model's training and evaluation, by reason."""
    reasons = list(dict.fromkeys(reason for found in left_out.values() for reason in found))
    rows: list[list[Cell]] = [
        [split, *(number(found.get(reason, 0)) for reason in reasons)] for split, found in left_out.items()
    ]
    return Table(["Rankings left out", *(reason.replace("_", " ") for reason in reasons)], rows)


def tax_table(perplexity: Mapping[str, float]) -> Table:
    """Perplexity of held-out plain text (the alignment tax)."""
    base, sft = perplexity.get("base"), perplexity.get("sft")
    rows: list[list[Cell]] = [
        [
            name,
            number(found),
            "–" if model == "base" else change(base, found),
            change(sft, found) if model == "ppo" else "–",
        ]
        for model, name in plots.NAMES.items()
        if (found := perplexity.get(model)) is not None
    ]
    return Table(["Model", "Perplexity", "Against base", "Against SFT"], rows)


def stages_table(manifests: Mapping[str, Mapping[str, Any]]) -> Table:
    """Time, device and commit of every stage."""
    rows: list[list[Cell]] = []
    for name, manifest in manifests.items():
        seconds, commit = manifest.get("seconds"), manifest.get("git_commit") or "–"
        dirty = "+dirty" if commit.endswith("+dirty") else ""
        where = [str(manifest.get(key, "–")) for key in ("device", "world_size")]
        rows.append([name, duration(seconds), number(seconds), *where, commit[:10] + dirty])
    return Table(["Stage", "Time", "Seconds", "Device", "Processes", "Git commit"], rows)


def packages_table(manifests: Mapping[str, Mapping[str, Any]]) -> Table:
    """Package versions; several if stages ran with different ones."""
    versions: dict[str, dict[str, None]] = {}
    for manifest in manifests.values():
        for name, version in {"python": manifest.get("python", "–"), **manifest.get("packages", {})}.items():
            versions.setdefault(name, {})[version] = None
    return Table(["Package", "Version"], [[name, ", ".join(found)] for name, found in versions.items()])


def counts_table(rows: Mapping[str, int]) -> Table:
    """Rows of every set by split."""
    sets, splits = (list(dict.fromkeys(name.rsplit("_", 1)[part] for name in rows)) for part in (0, 1))
    body: list[list[Cell]] = [[name, *(number(rows.get(f"{name}_{split}")) for split in splits)] for name in sets]
    return Table(["Set", *splits], body)


def removed_table(removed: Mapping[str, Mapping[str, int]]) -> Table:
    """Rows that curation removed, by kind and rule."""
    rows: list[list[Cell]] = [
        [kind, rule.replace("_", " "), number(count)]
        for kind, rules in removed.items()
        for rule, count in rules.items()
    ]
    return Table(["Of", "Rule", "Removed"], rows, words=(1,))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
