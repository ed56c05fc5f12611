"""Writes the reward model's report page: `reward.html`, which is self-contained, and `reward.md` with its pictures in
`reward_pictures`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reports import reward_plots
from reports.page import (
    Block,
    Cell,
    Format,
    Heading,
    Page,
    Picture,
    Table,
    Text,
    between,
    measured,
    number,
    percent,
)
from reports.run_tables import left_out_table
from reports.verdict import BASELINES, CHOSEN_AFTERWARDS, against_best, best_baseline, dig, points

TITLES = {"test": "Held-out test", "valid": "Validation"}
PAPER_KL_COEF = 0.02

Reports = Mapping[str, Mapping[str, Any]]
"""The report of evaluation/reward_model.py for each split, the main one first."""


def write_reward_page(out: Path, name: str, evaluation: Mapping[str, Any]) -> None:
    """Writes both files and the plots into `out`. `evaluation` has the contents of `accuracy.json`; missing parts are
    left out.
    """
    page = Page(f"{name}: the reward model", blocks(evaluation), "reward.html", "reward.md", "reward_pictures")
    page.write(out, figures(evaluation))


def reports_of(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The reports of the held-out splits."""
    return {split: evaluation[split] for split in TITLES if evaluation.get(split)}


def figures(evaluation: Mapping[str, Any]) -> dict[str, Figure]:
    """The plots that there are numbers for."""
    reports = reports_of(evaluation)
    drawn = {
        "calibration": reward_plots.calibration_curves(reports),
        "epochs": reward_plots.epoch_curves(evaluation.get("epochs") or []),
        "learning_curve": reward_plots.learning_curve(evaluation.get("learning_curve") or []),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def blocks(evaluation: Mapping[str, Any]) -> list[Block]:
    """The content of the page."""
    reports = reports_of(evaluation)
    sections: list[tuple[str, list[Block]]] = [
        (
            "Agreement",
            [
                judges_table(reports),
                Text(
                    "All pairs is the number to quote. Best vs worst, an answer that none beats against one that beats "
                    "none, is the easier number. Equal scores count half. Intervals are 95% bootstraps over users. "
                    "Compare judges by their paired difference: separate intervals overlap even if the difference is "
                    "clear.",
                    small=True,
                ),
            ],
        ),
        ("By the number of answers", [grouped_table(reports, "by_k", "k", "Answers per prompt (K)")]),
        (
            "By distance",
            [
                grouped_table(reports, "by_distance", "distance", "Steps apart in the labeler's order"),
                Text(
                    "Neighbours in the labeler's order are 1 step apart, ties none; larger distances are easier. Only "
                    "prompts whose judgments are an order.",
                    small=True,
                ),
            ],
        ),
        (
            "Calibration",
            [
                calibration_table(reports),
                Picture(
                    "calibration",
                    "Agreement of the labeler with the model's choice, against the model's probability of that choice; "
                    "95% intervals. Below the dashed line the model is overconfident, above it underconfident.",
                ),
            ],
        ),
        (
            "Length",
            [
                length_table(reports),
                Text(
                    "A model that only prefers long answers is right where the longer one is better, and wrong "
                    "elsewhere.",
                    small=True,
                ),
            ],
        ),
        ("Ties", [ties_table(reports)]),
        (
            "Epochs",
            [
                epochs_table(evaluation),
                Picture(
                    "epochs",
                    "After each epoch, on training and on validation rankings. They diverge when the model overfits.",
                ),
            ],
        ),
        (
            "Learning curve",
            [
                learning_table(evaluation),
                Picture(
                    "learning_curve",
                    "Accuracy on the same held-out rankings by the number of training prompts, with 95% intervals. A "
                    "curve that still rises suggests more labels.",
                ),
            ],
        ),
        (
            "Left out",
            [
                left_out_table(evaluation.get("left_out") or {}),
                Text("Used neither in training nor in evaluation.", small=True),
            ],
        ),
    ]
    found: list[Block] = [Text(head(reports))]
    if sentence := beside_best(reports):
        found.append(Text(sentence))
    for title, parts in sections:
        if isinstance(parts[0], Table) and parts[0].rows:
            found += [Heading(title), *parts]
        if title == "Ties" and (sentences := score_spread(reports, evaluation.get("bias"))):
            found += [Heading("Scores and the KL penalty"), *map(Text, sentences)]
    return found


def head(reports: Reports) -> str:
    """The main result in one sentence."""
    if not reports:
        return "No held-out rankings were judged."
    split, report = next(iter(reports.items()))
    accuracy = report["accuracy"]
    return (
        f"The reward model orders {percent(accuracy['mean'])} of {number(report['pairs'])} pairs as the labeler did "
        f"(95% interval {between(accuracy, percent)}; {number(report['prompts'])} prompts, {TITLES[split].lower()})."
    )


def beside_best(reports: Reports) -> str:
    """Sentences that compare the model with the best baseline on the main split; empty if none was measured."""
    test = next(iter(reports.values()), {})
    if (name := best_baseline(test)) is None:
        return ""
    kind, numbers = against_best(test, name)
    claim = {
        "better": "It beats the best simple baseline",
        "worse": "It is worse than the best simple baseline",
        "even": "There is no significant difference from the best simple baseline",
    }[kind]
    return f"{claim}: {numbers} {CHOSEN_AFTERWARDS}"


def judges_table(reports: Reports) -> Table:
    """Agreement of the model and of every baseline with the labeler, on the same pairs."""
    names = dict.fromkeys(name for report in reports.values() for name in report["baselines"])
    body: list[list[Cell]] = [[("Reward model", ""), *_judged(list(reports.values()))]]
    for name in names:
        title = BASELINES.get(name, (name.replace("_", " "), ""))
        body.append([title, *_judged([report["baselines"].get(name, {}) for report in reports.values()])])
    titles = ("all pairs", "best vs worst (easier)", "reward model minus this, paired")
    columns = [f"{TITLES[split]}, {what}" for split in reports for what in titles]
    return Table(["Agrees with the labeler", *columns], body if reports else [])


def _judged(judged: Sequence[Mapping[str, Any]]) -> list[Cell]:
    cells: list[Cell] = []
    for found in judged:
        cells += [measured(found.get(key), percent) for key in ("accuracy", "best_vs_worst")]
        cells.append(points(found["difference"]) if found.get("difference") else "–")
    return cells


def grouped_table(reports: Reports, part: str, key: str, title: str) -> Table:
    """Accuracy and number of pairs of each group in a part of the report, one pair of columns per split."""
    found = {split: {row[key]: row for row in report[part]} for split, report in reports.items() if report[part]}
    groups = sorted({group for rows in found.values() for group in rows})
    body: list[list[Cell]] = [
        [
            number(group),
            *(
                form((rows.get(group) or {}).get(key))
                for rows in found.values()
                for key, form in (("accuracy", _share), ("pairs", number))
            ),
        ]
        for group in groups
    ]
    return Table([title, *(column for split in found for column in (TITLES[split], "Pairs"))], body)


def _share(found: Any) -> Cell:
    return measured(found, percent)


def calibration_table(reports: Reports) -> Table:
    """Calibration error, temperature and loss."""
    return _lines(
        reports,
        "Calibration",
        [
            (
                "Expected calibration error",
                "mean gap between confidence and accuracy",
                ("calibration", "expected_calibration_error"),
                percent,
            ),
            (
                "Temperature",
                "1: well calibrated; above: overconfident; below: underconfident",
                ("calibration", "temperature"),
                number,
            ),
            ("Ranking loss", "chance: 0.693", ("calibration", "loss"), number),
        ],
    )


def ties_table(reports: Reports) -> Table:
    """Score differences of tied and of strict pairs."""
    return _lines(
        {split: report for split, report in reports.items() if report["ties"]},
        "Pairs that the labeler judged equal",
        [
            ("Tied pairs", "not trained on", ("ties", "pairs"), number),
            ("Mean difference of scores, tied", "", ("ties", "mean_margin_tied"), number),
            ("Mean difference of scores, strict", "", ("ties", "mean_margin_strict"), number),
            ("A strict pair's scores differ by more than a tied pair's", "chance: 50%", ("ties", "auc"), percent),
        ],
    )


def length_table(reports: Reports) -> Table:
    """Length bias of the model."""
    return _lines(
        reports,
        "Length in tokens",
        [
            ("Score and length", "Spearman's correlation within a prompt", ("length", "spearman"), number),
            (
                "Labeler's order and length",
                "the same; 1: the longer the better",
                ("length", "labeler_spearman"),
                number,
            ),
            (
                "Accuracy where the longer answer is better",
                "choosing the longest: 100%",
                ("length", "accuracy_longer_is_better"),
                percent,
            ),
            (
                "Accuracy where the shorter answer is better",
                "choosing the longest: 0%",
                ("length", "accuracy_shorter_is_better"),
                percent,
            ),
        ],
    )


def _lines(reports: Reports, title: str, lines: list[tuple[str, str, tuple[str, ...], Format]]) -> Table:
    """One row per number, one column per split."""
    body: list[list[Cell]] = [
        [(name, note), *(measured(dig(report, *path), form) for report in reports.values())]
        for name, note, path, form in lines
    ]
    return Table([title, *(TITLES[split] for split in reports)], body if reports else [])


def score_spread(reports: Reports, bias: float | None) -> list[str]:
    """Sentences about the spread of scores relative to the KL penalty, and about the score bias."""
    said = []
    if reports:
        split, report = next(iter(reports.items()))
        deviation = report["score_std"]
        said.append(
            f"Over all answers ({TITLES[split].lower()}) scores have a mean of {number(report['score_mean'])} and a "
            "standard deviation of "
            f"{number(deviation)}. PPO maximises score less kl_coef times KL, so one standard deviation of score "
            f"equals the penalty for {number(deviation)} / kl_coef nats of KL per answer: at the paper's kl_coef of "
            f"{PAPER_KL_COEF}, "
            f"{number(deviation / PAPER_KL_COEF)} nats. If that is far "
            "more than the KL that you want to allow, raise kl_coef."
        )
    if bias:
        said.append(
            f"A score is the saved model's logit minus config.score_bias ({number(bias)}), which makes demonstrations "
            "score 0 on average. This project's loader subtracts it; with other loaders subtract it yourself."
        )
    return said


def epochs_table(evaluation: Mapping[str, Any]) -> Table:
    """Accuracy and loss after each epoch."""
    splits = {"train": "training", "valid": "validation"}
    body: list[list[Cell]] = [
        [
            number(row["epoch"]),
            *(
                form(dig(row, split, key))
                for key, form in (("accuracy", percent), ("loss", number))
                for split in splits
            ),
        ]
        for row in evaluation.get("epochs") or []
    ]
    return Table(["Epoch", *(f"{key}, {title}" for key in ("Accuracy", "Loss") for title in splits.values())], body)


def learning_table(evaluation: Mapping[str, Any]) -> Table:
    """Accuracy by the number of prompts trained on."""
    body: list[list[Cell]] = [
        [percent(row["fraction"]), number(row["prompts"]), measured(row["accuracy"], percent)]
        for row in evaluation.get("learning_curve") or []
    ]
    return Table(["Share of the training prompts", "Prompts", "Accuracy"], body)
