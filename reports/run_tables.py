"""Tables of the run report: parts of the run's JSON files in, a Table out. A table without numbers has no rows."""

from collections.abc import Mapping
from typing import Any

from reports.page import Cell, Format, Interval, Table, between, counted, duration, measured, number, percent
from reports.run_plots import NAMES
from reports.verdict import BASELINES, PARTS, change, dig, side

MEASURES = {
    "closeness": ("Closeness to the reference", "higher is better"),
    "complete": ("Complete (ends by itself)", "higher is better"),
    "repetition": ("Repetition", "lower is better"),
    "profanity": ("Profanity", "lower is better"),
    "score": ("Whole rubric", "higher is better"),
    "chrf": ("chrF", "held-out judge: no reward model saw it; higher is better"),
    "tokens": ("Length, tokens", "neither is better"),
}
COMPARISONS = {
    "PPO vs SFT": ("win_rate", "sft"),
    "PPO vs base": ("win_rate", "base"),
    "PPO vs SFT, length-controlled": ("win_rate_length_controlled",),
    "PPO vs SFT, similar length": ("win_rate_length_matched",),
    "PPO vs SFT, both answers end": ("win_rate_both_end",),
}


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


def best_of_n_table(found: Mapping[str, Any]) -> Table:
    """SFT's best-of-n by the reward model, and PPO, with their KL."""
    if not found:
        return Table([], [])

    def row(name: str, note: str, kl: Any, measures: Mapping[str, Interval]) -> list[Cell]:
        cells = [measured(measures[key], number) for key in ("proxy", "score", "chrf")]
        return [(name, note), measured(kl, number), *cells, measured(measures["win_rate"], percent)]

    names = {1: ("Best of 1", "a second sample of SFT answers; expected win rate 50%")}
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
        cells = [measured(dig(models, model, key), form) for model in NAMES]
        if any(cell != "–" for cell in cells):
            rows.append([(title, weight), *cells])
    return Table(["Mean over prompts, 95% interval", *NAMES.values()], rows)


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
        for model, name in NAMES.items()
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
    """Records that curation removed, by kind and rule."""
    rows: list[list[Cell]] = [
        [kind, rule.replace("_", " "), number(count)]
        for kind, rules in removed.items()
        for rule, count in rules.items()
    ]
    return Table(["Of", "Rule", "Removed"], rows, words=(1,))
