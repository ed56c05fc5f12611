"""The report of a run: whether PPO is better, by how much, at what cost, and whether to trust the result.

It shows the files of the run folder; parts without files say so. run_plots.py and ppo_plots.py draw the plots.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from data.files import read_rows
from modeling.tracking import read_metrics, read_numbers
from reports import ppo_plots, run_plots
from reports.page import (
    Block,
    Box,
    Bullets,
    Columns,
    Details,
    Format,
    Heading,
    Interval,
    Page,
    Picture,
    Quote,
    Text,
    Tiles,
    between,
    duration,
    number,
    percent,
)
from reports.run_tables import (
    COMPARISONS,
    MEASURES,
    best_of_n_table,
    carrying_table,
    counts_table,
    left_out_table,
    packages_table,
    parts_table,
    removed_table,
    reward_table,
    stages_table,
    tax_table,
    wins_table,
)
from reports.verdict import (
    PARTS,
    against_best_of_n,
    best_baseline,
    change,
    checks,
    compared,
    dig,
    labeler_note,
    too_few,
    verdict,
)

STAGES = ("data", "sft", "samples", "labels", "reward", "ppo", "evaluate")


@dataclass(frozen=True)
class Results:
    """The results in a run folder; empty for stages without a result."""

    evaluation: dict[str, Any]
    accuracy: dict[str, Any]
    counts: dict[str, Any]
    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, list[dict[str, float]]]
    generations: list[dict[str, Any]]
    warnings: list[str] | None
    """The warnings of PPO's monitors; None for a run without them."""

    @staticmethod
    def read(run: Path) -> "Results":
        """All files below `run` that the report shows. Raises ValueError if one is damaged."""
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
            warnings=_json(run / "ppo" / "warnings.json", None),
        )

    def config(self) -> dict[str, Any]:
        """The run's configuration; each section is the one with which its stage last ran."""
        merged: dict[str, Any] = {}
        for manifest in self.manifests.values():
            merged |= manifest.get("config", {})
        own = {name: found["config"][name] for name, found in self.manifests.items() if name in found.get("config", {})}
        return merged | own

    def weights(self) -> dict[str, float]:
        """The weights of the rubric's parts."""
        return dig(self.config(), "labels", "weights") or {}


def write_report(run: Path, out: Path, run_name: str, samples: int) -> None:
    """Writes `out/index.html`, which is self-contained, and `out/report.md` with its plots in `out/pictures`."""
    results = Results.read(run)
    page = Page(run_name, blocks(results, samples), "index.html", "report.md", "pictures")
    page.write(out, figures(results))


def figures(results: Results) -> dict[str, Figure]:
    """The plots that the run has numbers for."""
    found: dict[str, Figure] = {}
    comparisons = {name: rate for name, path in COMPARISONS.items() if (rate := dig(results.evaluation, *path))}
    without = results.evaluation.get("win_rate_without") or {}
    comparisons |= {f"PPO vs SFT, without {PARTS[part]}": rate for part, rate in without.items()}
    if comparisons:
        found["win_rates"] = run_plots.win_rates(comparisons)
    if models := results.evaluation.get("models"):
        found["parts"] = run_plots.rubric_parts(models, {key: title for key, (title, _) in MEASURES.items()})
    curves = {"sft": run_plots.sft_curves, "reward": run_plots.reward_curves}
    drawn = {name: draw(results.metrics[name]) for name, draw in curves.items()}
    drawn["ppo"] = ppo_plots.ppo_curves(
        results.metrics["ppo"],
        results.metrics["held_out"],
        dig(results.config(), "ppo", "kl_target"),
        weighted=reward_metric(results.config()) != "score",
    )
    drawn["over_optimisation"] = run_plots.over_optimisation(model_scores(results), results.evaluation.get("best_of_n"))
    return found | {name: figure for name, figure in drawn.items() if figure is not None}


def reward_metric(config: Mapping[str, Any]) -> str | None:
    """The metric of PPO with the score of the run's reward model; None if `ppo.rewards` does not contain the model."""
    terms = dig(config, "ppo", "rewards") or [{"kind": "model"}]
    own = [term for term in terms if term["kind"] == "model" and not term.get("path")]
    if not own:
        return None
    if len(terms) == 1:
        return "score" if own[0].get("weight", 1.0) == 1.0 else None
    return f"score_{own[0].get('name') or 'model'}"


def model_scores(results: Results) -> list[dict[str, float]]:
    """PPO's metrics, with the score of the run's reward model in place of the weighted sum of rewards."""
    metric = reward_metric(results.config())
    return [row | {"score": row[metric]} for row in results.metrics["ppo"] if metric in row]


def blocks(results: Results, samples: int) -> list[Block]:
    """The content of the page."""
    evaluation = results.evaluation
    said = verdict(evaluation)
    few = too_few(evaluation, results.accuracy)
    return [
        Text("SFT, reward model and PPO-ptx after Ouyang et al. 2022, compared on prompts of held-out users."),
        Box(said["text"], tone=said["kind"]),
        Tiles(tiles(results)),
        Box(labeler_note(results.config()), "Who judged."),
        *trust(checks(evaluation, results.accuracy, results.generations)),
        *([Box(few, "Note.")] if few else []),
        *win_rates(results),
        Heading("Rubric"),
        parts_table(evaluation.get("models", {}), results.weights()),
        Picture("parts", "Each measure for base, SFT and PPO: mean over prompts with its 95% interval. Axes differ."),
        *training(results),
        *over_optimisation(results),
        *reward_model(results),
        Heading("Alignment tax"),
        Text(
            "Perplexity of held-out pretraining text. A rise is the cost of alignment on other tasks; the pretraining "
            "mix (ptx) is meant to keep it small."
        ),
        tax_table(evaluation.get("perplexity", {})),
        *answers(results.generations, samples),
        *stages(results),
    ]


def trust(found: Sequence[Mapping[str, str]]) -> list[Block]:
    """The checks of the verdict."""
    if not found:
        return []
    return [
        Heading("Can the result be trusted?", 3),
        Text(
            "Claims that this run was checked for. holds or fails: the whole 95% interval is on that side; open: it "
            "contains the level of no difference. Intervals are bootstraps over users with all their prompts.",
            small=True,
        ),
        Bullets([(check["claim"], check["numbers"]) for check in found], [check["mark"] for check in found]),
    ]


def win_rates(results: Results) -> list[Block]:
    """PPO's win rates, and the part of the rubric that carries them."""
    evaluation = results.evaluation
    carrying, which = carrying_table(evaluation, results.weights()), compared(evaluation, results.config())
    found: list[Block] = [Heading("Win rates"), wins_table(evaluation)]
    if which:
        found.append(Text(f"{which} Similar length: the two differ by at most a quarter of the longer.", small=True))
    if carrying.rows:
        note = (
            "A part carries a win if, without that part, the interval contains 50% or lies on the other side; the same "
            "for a loss."
        )
        found += [Heading("Which part of the rubric carries the result", 3), carrying, Text(note, small=True)]
    caption = "Win rates of PPO with 95% intervals. An interval that crosses the dashed line shows no difference."
    return [*found, Picture("win_rates", caption)]


def training(results: Results) -> list[Block]:
    """Curves of the three stages, and the warnings of PPO's monitors."""
    captions = {
        "sft": ("Stage 1: supervised fine-tuning", "Rising validation loss with falling training loss is overfitting."),
        "reward": (
            "Stage 2: reward model",
            "log 2 is chance level. Each batch is scored before its step; in the first epoch its rankings are "
            "new to the model.",
        ),
        "ppo": (
            "Stage 3: PPO-ptx",
            "Healthy: score rises while KL stays bounded, entropy does not collapse, few tokens are clipped, explained "
            "variance approaches 1. docs/metrics.md explains each metric.",
        ),
    }
    found: list[Block] = [Heading("Training")]
    for name, (title, caption) in captions.items():
        drawn = Picture(name, caption) if results.metrics[name] else Text("No metrics in this run.")
        found += [Heading(title, 3), drawn]
    if results.warnings:
        found += [Text("Warnings about PPO's settings and metrics:"), Bullets(results.warnings)]
    elif results.warnings is not None:
        found.append(Text("The monitors raised no warning."))
    return found


def over_optimisation(results: Results) -> list[Block]:
    """Score against KL, beside best-of-n."""
    best_of_n = results.evaluation.get("best_of_n", {})
    caption = (
        "Score against the square root of KL to SFT; during training one point per iteration, of other prompts and "
        "last weights, with negative KL estimates drawn at 0."
    )
    if best_of_n:
        caption += " Numbers on the curve are n; bands and bars are 95% intervals over prompts."
    if (coefficient := dig(results.config(), "ppo", "kl_coef")) is not None:
        caption += f" KL penalty coefficient (beta): {coefficient}."
    aim = {
        "score": "PPO maximises the reward model's score.",
        None: "PPO's reward is not the score of the run's reward model, so that its path is not drawn.",
    }.get(reward_metric(results.config()), "The reward model's score is one of several rewards that PPO maximises.")
    found: list[Block] = [
        Heading("Over-optimisation"),
        Text(
            f"{aim} If this curve still rises while the win rates and chrF above do not, the policy exploits the "
            "reward model's mistakes. ppo/samples.jsonl has answers from training."
        ),
        Picture("over_optimisation", caption),
    ]
    if not best_of_n:
        return found
    return [
        *found,
        Heading("Best-of-n sampling from SFT", 3),
        Text(
            "Best-of-n takes the SFT answer with the highest score: the baseline for PPO at the same KL. "
            + against_best_of_n(best_of_n)
        ),
        best_of_n_table(best_of_n),
        Text(
            "Means over all ways to draw n of the sampled answers. The KL of best-of-n is log n - (n - 1) / n, exact "
            "if no two answers tie, otherwise too large; PPO's is measured on its answers. The SFT answers of the win "
            "rates are not among those chosen from. Training used other prompts, so its path need not meet PPO's "
            "point.",
            small=True,
        ),
    ]


def reward_model(results: Results) -> list[Block]:
    """The reward model's accuracy beside its baselines."""
    labels = dig(results.config(), "labels") or {}
    found: list[Block] = [
        Heading("Reward model"),
        reward_table(results.accuracy),
        Text("Calibration, ties, length and more:", link=("the reward model's page", "../reward/reward.html")),
    ]
    if labels.get("labeler") == "simulated" and labels.get("disagreement"):
        sentence = (
            f"The simulated labeler misjudges {percent(labels['disagreement'])} of answers on purpose, in held-out "
            "rankings too, so 100% cannot be reached."
        )
        found.append(Text(sentence, small=True))
    left_out = left_out_table(results.accuracy.get("left_out", {}))
    return [*found, *([left_out] if left_out.rows else [])]


def answers(rows: Sequence[Mapping[str, Any]], samples: int) -> list[Block]:
    """Evenly spaced prompts with the answers of all models."""
    found: list[Block] = [Heading("Answers side by side")]
    if not rows:
        return [*found, Text("No answers in this run.")]
    count = min(samples, len(rows))
    outcomes = [row["ppo_against_sft"] for row in rows]
    found.append(
        Text(
            f"{count} of {len(rows)} held-out prompts, evenly spaced in the file's order: not selected by hand or "
            "outcome. Each model's first answer is shown. Of all first answers PPO's was ranked above SFT's "
            f"{outcomes.count(1.0)} times, tied {outcomes.count(0.5)} times, below {outcomes.count(0.0)} times."
        )
    )
    results = {1.0: "PPO ranked above SFT", 0.5: "PPO and SFT tied", 0.0: "SFT ranked above PPO"}
    for place in range(count):
        row = rows[place * len(rows) // count]
        models = [model for model in run_plots.NAMES if row[model]]
        found += [
            Heading(f"{place + 1}. {row['use_case'] or 'no use case'}: {results[row['ppo_against_sft']]}", 3),
            Text(f"KL {number(row['kl'])} nats, {row['prompt_id']}", small=True),
            Quote(row["prompt"], "Prompt"),
            Details("Reference answer", [Quote(row["reference"])]),
            Columns([answer(run_plots.NAMES[model], row[model][0]) for model in models], models),
        ]
    return found


def answer(name: str, given: Mapping[str, Any]) -> Quote:
    """An answer with its measures."""
    names = {key: key for key in MEASURES} | {"score": "rubric", "chrf": "chrF"}
    measures = [f"{title} {number(given['parts'][key])}" for key, title in names.items() if key in given["parts"]]
    ending = "" if given["complete"] else " (cut off)"
    return Quote(given["text"], name + ending, ", ".join([*measures, f"{given['tokens']} tokens"]))


def stages(results: Results) -> list[Block]:
    """Times, sizes and settings of the stages."""
    found: list[Block] = [
        Heading("Stages"),
        stages_table(results.manifests),
        counts_table(results.counts.get("rows", {})),
        removed_table(results.counts.get("removed", {})),
    ]
    if skipped := results.counts.get("skipped", 0):
        found.append(
            Text(f"{skipped} malformed rows were skipped; the data report shows the first of them.", small=True)
        )
    for name in ("samples", "labels"):
        if headline := dig(results.manifests, name, "headline"):
            found_numbers = {key: value for key, value in headline.items() if isinstance(value, int | float)}
            numbers = ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in found_numbers.items())
            found.append(Text(f"{name}: {numbers}", small=True))
    return [
        *found,
        Details("Package versions", [packages_table(results.manifests)]),
        Details("Configuration", [Quote(json.dumps(results.config(), indent=2), language="json")]),
    ]


def tiles(results: Results) -> list[tuple[str, str, str]]:
    """The headline numbers."""
    evaluation = results.evaluation
    before, after = (dig(evaluation, "perplexity", model) for model in ("sft", "ppo"))
    seconds = sum(found.get("seconds", 0.0) for found in results.manifests.values())
    test = results.accuracy.get("test", {})
    name = best_baseline(test)
    beside = f"best baseline {percent(test['baselines'][name]['accuracy']['mean'])}" if name else "held-out pairs"

    def tile(label: str, found: Interval | None, form: Format, detail: str) -> tuple[str, str, str]:
        return label, form(found and found["mean"]), f"{between(found, form)}, {detail}" if found else "not measured"

    return [
        tile("Reward model accuracy", dig(results.accuracy, "test", "accuracy"), percent, beside),
        tile("Win rate, PPO vs SFT", dig(evaluation, "win_rate", "sft"), percent, "ties count half"),
        tile("KL from SFT, nats", evaluation.get("kl"), number, "per answer"),
        ("Perplexity, plain text", f"{number(before)} → {number(after)}", f"{change(before, after)}, SFT → PPO"),
        ("Total time", duration(seconds), f"{len(results.manifests)} stages"),
    ]


def _json(path: Path, missing: Any = MappingProxyType({})) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else missing
