"""Tables of the run report from the run's JSON files. A table without numbers has no rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports import run_plots
from reports.formats import (
    Cell,
    Format,
    Interval,
    between,
    change,
    counted,
    dig,
    duration,
    measured,
    number,
    percent,
    signed,
    spaced,
)
from reports.page import Table, matrix, side_by_side
from reports.verdict import PARTS, baseline, side, undecidable

Tree = Mapping[str, Any]
MODELS = {key: title for key, (title, _) in run_plots.MODELS.items()}
MEASURES: dict[str, tuple[str, str, Format]] = {
    "closeness": ("Closeness to the reference", "higher is better", number),
    "complete": ("Complete (ends by itself)", "higher is better", percent),
    "repetition": ("Repetition", "lower is better", number),
    "copying": ("Copied from the prompt", "lower is better", number),
    "profanity": ("Profanity", "lower is better", number),
    "score": ("Whole rubric", "higher is better", number),
    "chrf": ("chrF", "held-out judge, not used in training; higher is better", number),
    "tokens": ("Length, tokens", "neither is better", number),
}
JUDGES = {
    "rubric": "Rubric",
    "chrf": "chrF",
    "reference_likelihood": "Likelihood of the reference",
    "gold": "Gold reward model",
    "human": "People",
    "llm": "Language model",
}
NULL_BASELINES = {
    "random": "SFT's answer to another prompt",
    "longest": "longest of SFT's answers",
    "echo": "the prompt itself",
    "best_of_n": "best of n from SFT",
}
COMPARISONS = {
    "PPO vs SFT": "win_rate.sft",
    "PPO vs base": "win_rate.base",
    "PPO vs SFT, length-controlled": "win_rate_length_controlled",
    "PPO vs SFT, similar length": "win_rate_length_matched",
    "PPO vs SFT, both answers end": "win_rate_both_end",
}


def tiles(evaluation: Tree, accuracy: Tree, manifests: Tree) -> list[tuple[str, str, str]]:
    """The headline numbers: label, value, detail."""
    before, after = (dig(evaluation, f"perplexity.{model}") for model in ("sft", "ppo"))
    best = dig(accuracy, f"test.baselines.{dig(accuracy, 'test.best_baseline')}.accuracy.mean")

    def tile(label: str, found: Interval | None, form: Format, detail: str) -> tuple[str, str, str]:
        return label, form(found and found["mean"]), f"{between(found, form)}, {detail}" if found else "not measured"

    return [
        tile("Reward model accuracy", dig(accuracy, "test.accuracy"), percent, f"best baseline {percent(best)}"),
        tile("Win rate, PPO vs SFT", dig(evaluation, "win_rate.sft"), percent, "ties count half"),
        tile("KL to SFT, nats", evaluation.get("kl"), number, "per answer"),
        ("Perplexity, plain text", f"{number(before)} → {number(after)}", f"{change(before, after)}, SFT → PPO"),
        ("Total time", duration(sum(found["seconds"] for found in manifests.values())), f"{len(manifests)} stages"),
    ]


def comparisons(evaluation: Tree) -> dict[str, Interval]:
    """The win rates that were measured, by name."""
    found = {name: rate for name, path in COMPARISONS.items() if (rate := dig(evaluation, path))}
    without = evaluation.get("win_rate_without", {})
    return found | {f"PPO vs SFT by the rubric, without {PARTS[part]}": rate for part, rate in without.items()}


def wins_table(evaluation: Tree) -> Table:
    """PPO's win rates."""
    result = {"better": "PPO better", "worse": "PPO worse", "even": "no difference shown"}
    rows = []
    for name, path in COMPARISONS.items():
        if found := dig(evaluation, path):
            cells = [percent(found["mean"]), between(found), number(found["n"]), result[side(found, 0.5)]]
        else:
            cells = ["–", "–", "0", "no such pairs"]
        rows.append([name, *cells])
    return Table(["Comparison", "Win rate", "95% interval", "Prompts", "Result"], rows if evaluation else [])


def judges_table(evaluation: Tree, path: str) -> Table:
    """The win rates of each model against SFT by each judge; `path` is that of a number in a comparison."""
    judges = [judge["name"] for judge in evaluation["judges"]]
    rows = [
        [
            MODELS.get(model, NULL_BASELINES.get(model, model)),
            *(measured(found[name][path], percent) for name in judges),
        ]
        for model, found in evaluation["comparisons"].items()
    ]
    return Table(["Against SFT", *(JUDGES[name] for name in judges)], rows)


def agreement_table(evaluation: Tree) -> Table:
    """Agreement of each two judges on the same pairs of answers."""
    rows = [
        [
            " and ".join(JUDGES[name] for name in found["judges"]),
            number(found["pairs"]),
            percent(found["same"]),
            number(found["kappa"]),
            number(found["alpha"]),
        ]
        for found in (evaluation["judge_agreement"] or {"between": []})["between"]
    ]
    return Table(["Judges", "Pairs", "Same verdict", "Cohen's kappa", "Krippendorff's alpha"], rows)


def metadata_table(metadata: Tree) -> Table:
    """The paper's metadata of each model over all use cases, and PPO's differences from SFT on the same prompts."""
    columns = {MODELS.get(model, model): found["all"] for model, found in metadata.items()}
    if moved := dig(metadata, "ppo.minus_sft"):
        columns["PPO minus SFT"] = moved
    fields = dict.fromkeys(name for found in columns.values() for name in found)
    lines = [(spaced(name), "", name, number if name == "quality" else percent) for name in fields]
    return side_by_side("Metadata", columns, lines)


def quality_table(metadata: Tree) -> Table:
    """The quality of each model's answers by use case."""
    rows = {
        case: {
            MODELS.get(model, model): found["use_cases"].get(case, {}).get("quality")
            for model, found in metadata.items()
        }
        for case in sorted({case for found in metadata.values() for case in found["use_cases"]})
    }
    return matrix("Quality by use case", rows)


def tests_table(tax: Tree) -> Table:
    """Each metric of the alignment tax by model, and its change on the same items: from base for SFT, else from SFT."""
    rows = [
        [test_title(task, metric, better), *(test_cell(tax, model, task, metric) for model in tax["results"])]
        for task, metrics in tax["better"].items()
        for metric, better in metrics.items()
    ]
    return Table(["Test", *(MODELS.get(model, model) for model in tax["results"])], rows)


def test_title(task: str, metric: str, better: str) -> Cell:
    """A metric's name, and which direction is better."""
    return f"{task} {spaced(metric)}", f"{better} is better" if better != "neither" else ""


def test_cell(tax: Tree, model: str, task: str, metric: str) -> Cell:
    """A model's result, and its change from SFT, or SFT's from base; a dash if it was not measured."""
    # Not by `dig`: the name of a model may contain dots.
    result, found = (tax.get(part, {}).get(model, {}).get(task, {}) for part in ("results", "changes"))
    value = number(result.get(metric, {}).get("mean"))
    changes = {change["from"]: change for change in found.get(metric, [])}
    moved = changes.get("sft") or changes.get("base")
    return (value, *moved_text(moved, tax["better"][task][metric])) if moved else value


def moved_text(moved: Tree, better: str) -> tuple[str, str]:
    """A change as text, and its tone; no change is shown if its interval contains 0."""
    sides = {"higher": ("better", "worse"), "lower": ("worse", "better"), "neither": ("higher", "lower")}
    if undecidable(moved):
        kind = "too few items to tell"
    else:
        kind = sides[better][moved["mean"] < 0] if side(moved, 0.0) != "even" else "no change shown"
    interval = between(moved, lambda end: signed(end, 3))
    return f"{signed(moved['mean'], 3)} ({interval}) against {MODELS[moved['from']]}: {kind}", kind


def carrying_table(evaluation: Tree, weights: Mapping[str, float]) -> Table:
    """PPO's win rates against SFT by the rubric without each of its parts, and by each part alone."""
    rows = [
        [(PARTS[part], f"weight {weights[part]:g}"), measured(rate, percent), measured(alone, percent)]
        for part, rate in evaluation["win_rate_without"].items()
        if (alone := evaluation["win_rate_by_part"][part])
    ]
    return Table(["Part of the rubric", "Win rate without it", "Win rate by it alone"], rows)


def best_of_n_table(found: Tree) -> Table:
    """SFT's best-of-n by the reward model, and PPO, with their KL."""

    def row(name: str, note: str, measures: Tree) -> list[Cell]:
        cells = [measured(measures[key], number) for key in ("kl", "proxy", "score", "chrf")]
        return [(name, note), *cells, measured(measures["win_rate"], percent)]

    notes = {1: "a second sample of SFT answers; expected win rate 50%"}
    rows = [row(f"Best of {line['n']}", notes.get(line["n"], ""), line) for line in found["rows"]]
    titles = ["KL to SFT, nats", "Reward model's score", "Rubric", "chrF", "Win rate against SFT, by the rubric"]
    return Table([counted(found["prompts"], "held-out prompt"), *titles], [*rows, row("PPO", "", found["ppo"])])


def parts_table(models: Tree, weights: Mapping[str, float]) -> Table:
    """Each measure of each model with its interval."""
    lines = [
        (title, f"{note}; weight {weights[key]:g}" if key in weights else note, key, form)
        for key, (title, note, form) in MEASURES.items()
    ]
    columns = {MODELS[name]: models[name] for name in MODELS if name in models}
    return side_by_side("Mean over prompts, 95% interval", columns, lines)


def reward_table(accuracy: Tree) -> Table:
    """Agreement of the reward model with the labeler on held-out rankings."""
    titles = {"test": "Held-out test", "valid": "Validation"}
    columns = {title: accuracy[split] for split, title in titles.items() if split in accuracy}
    baselines = dict.fromkeys(name for found in columns.values() for name in found["baselines"])
    gap = "mean gap between confidence and accuracy"
    lines: list[tuple[str, str, str, Format]] = [
        ("Accuracy, all pairs", "the number to quote", "accuracy", percent),
        ("Accuracy, best vs worst", "the easier number", "best_vs_worst", percent),
        *((baseline(name)[0], "baseline, all pairs", f"baselines.{name}.accuracy", percent) for name in baselines),
        ("Expected calibration error", gap, "calibration.expected_calibration_error", percent),
        ("Spread of scores", "standard deviation", "score_std", number),
        ("Prompts", "", "prompts", number),
        ("Pairs", "ties left out", "pairs", number),
    ]
    return side_by_side("", columns, lines)


def tax_table(perplexity: Mapping[str, float]) -> Table:
    """Perplexity of held-out plain text (the alignment tax)."""
    base, sft, ppo = (perplexity.get(model) for model in MODELS)
    rows = [
        ["base", number(base), "–", "–"],
        ["SFT", number(sft), change(base, sft), "–"],
        ["PPO", number(ppo), change(base, ppo), change(sft, ppo)],
    ]
    return Table(["Model", "Perplexity", "Against base", "Against SFT"], rows if perplexity else [])


def outcomes(rows: Sequence[Tree]) -> list[str]:
    """How the first judge compared the first answers of PPO and SFT to each prompt."""

    def outcome(preference: float | None) -> str:
        if preference is None:
            return "not judged"
        if preference == 0.5:
            return "PPO and SFT tied"
        return "PPO ranked above SFT" if preference > 0.5 else "SFT ranked above PPO"

    return [outcome(row["ppo_against_sft"]) for row in rows]


def tags(rows: Sequence[Tree]) -> list[tuple[str, str]]:
    """Use case and outcome of each prompt."""
    return [(row["use_case"] or "no use case", outcome) for row, outcome in zip(rows, outcomes(rows), strict=True)]


def answers(row: Tree) -> list[tuple[str, str, str, str]]:
    """Each model's first answer to a prompt: the model, its title, the text, and its measures."""
    found = []
    names = {key: key for key in MEASURES} | {"score": "rubric", "chrf": "chrF"}
    for model, title in MODELS.items():
        given = row[model][0]
        measures = [f"{names[key]} {number(given['parts'][key])}" for key in MEASURES if key in given["parts"]]
        ending = "" if given["complete"] else " (cut off)"
        found.append((model, title + ending, given["text"], ", ".join([*measures, f"{given['tokens']} tokens"])))
    return found


def commit(name: str | None) -> str:
    """The first ten digits of a commit, and the mark of uncommitted changes."""
    digits, dirty, _ = (name or "–").partition("+dirty")
    return digits[:10] + dirty


def lineage_table(manifests: Mapping[str, Tree]) -> Table:
    """What each stage read, with digests: results of stages by their names, and other files."""
    rows = []
    for name, manifest in manifests.items():
        read = [f"{Path(source).name} {digest[:10]}" for source, digest in manifest["inputs"].items()]
        rows.append([name, ", ".join(read) or "no files", manifest["fingerprint"][:10]])
    return Table(["Stage", "Read", "Settings and inputs"], rows, words=(1,))


def packages(manifests: Mapping[str, Tree]) -> dict[str, dict[str, str]]:
    """Versions by package; several if stages ran with different ones."""
    stages = [{"python": manifest["python"]} | manifest["packages"] for manifest in manifests.values()]
    names = dict.fromkeys(name for stage in stages for name in stage)
    return {name: {"Version": ", ".join(dict.fromkeys(one[name] for one in stages if name in one))} for name in names}


def sizes(rows: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Rows of every set by split."""
    found: dict[str, dict[str, int]] = {}
    for name, count in rows.items():
        one, split = name.rsplit("_", 1)
        found.setdefault(one, {})[split] = count
    return found


def removed_table(removed: Mapping[str, Mapping[str, int]]) -> Table:
    """Records that curation removed, by kind and rule."""
    rows = [
        [kind, spaced(rule), number(count)] for kind, rules in removed.items() for rule, count in rules.items() if count
    ]
    empty = "Curation removed nothing." if removed else Table.empty
    return Table(["Of", "Rule", "Removed"], rows, words=(1,), empty=empty)
