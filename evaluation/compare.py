"""Win rates from verdicts on pairs of answers, the rubric's parts, and the KL between models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.intervals import Bootstrap
from labeling.config import LabelsConfig
from labeling.rubric import PARTS, weighted
from labeling.simulated import ranks_of


@dataclass
class Answer:
    """An answer and its measures."""

    text: str
    complete: bool
    """Whether it ended by itself rather than being cut off."""
    tokens: int
    """Its length in tokens of the SFT model."""
    parts: dict[str, float] = field(default_factory=dict)
    """The rubric's parts and their weighted `score`; `chrf`, the character overlap with the reference, on which no
    reward model was trained; scores of other judges by their names.
    """


Answers = Sequence[Sequence[Answer]]
"""The answers to each prompt; a prompt may have none."""
Verdicts = Sequence[Sequence[Sequence[float | None]]]
"""For each prompt, a row per answer of ours with an entry per answer of theirs: 1 if ours is preferred, 0 if theirs,
1/2 for a tie, the mean if several labelers disagree, None without a verdict."""


def preference(ours: float, theirs: float, tie_width: float) -> float:
    """1 if ours is ranked higher, 0 if lower, 1/2 if they tie."""
    ours_rank, theirs_rank = ranks_of([ours, theirs], tie_width)
    return 0.5 + 0.5 * ((ours_rank < theirs_rank) - (ours_rank > theirs_rank))


def by_scores(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], tie_width: float) -> Verdicts:
    """The verdicts of a judge who prefers higher scores."""
    return [
        [[preference(a, b, tie_width) for b in right] for a in left] for left, right in zip(ours, theirs, strict=True)
    ]


def scores_of(answers: Answers, name: str = "score") -> list[list[float]]:
    """A measure of each answer; the labeler's score by default."""
    return [[answer.parts[name] for answer in row] for row in answers]


def with_part(answers: Answers, name: str, scores: Sequence[Sequence[float]]) -> list[list[Answer]]:
    """The answers with one more score among their parts."""
    return [
        [replace(answer, parts=answer.parts | {name: score}) for answer, score in zip(row, own, strict=True)]
        for row, own in zip(answers, scores, strict=True)
    ]


def win_rate(verdicts: Verdicts, bootstrap: Bootstrap) -> dict[str, float] | None:
    """How often our answers are preferred, ties counting half: the mean over prompts of the mean over their pairs.

    Pairs and prompts without a verdict are left out; None if nothing is left. Swapping the two sides gives one minus
    the rate.
    """
    per_prompt = [mean([verdict for row in rows for verdict in row]) for rows in verdicts]
    return bootstrap.interval(per_prompt) if any(rate is not None for rate in per_prompt) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Of the values that are not None; None if there is none."""
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def among(
    verdicts: Verdicts, ours: Answers, theirs: Answers, counts: Callable[[Answer, Answer], bool]
) -> list[list[list[float | None]]]:
    """The verdicts on the pairs of answers that count; None for the others."""
    return [
        [
            [value if counts(a, b) else None for b, value in zip(right, row, strict=True)]
            for a, row in zip(left, rows, strict=True)
        ]
        for left, right, rows in zip(ours, theirs, verdicts, strict=True)
    ]


def like_length(a: Answer, b: Answer, slack: float = 0.25) -> bool:
    """Whether two lengths differ by at most the fraction `slack` of the longer."""
    return abs(a.tokens - b.tokens) <= slack * max(a.tokens, b.tokens)


def both_end(a: Answer, b: Answer) -> bool:
    """Whether neither answer was cut off."""
    return a.complete and b.complete


def rubric_win_rates(ours: Answers, theirs: Answers, labels: LabelsConfig, bootstrap: Bootstrap) -> dict[str, Any]:
    """The win rate by the rubric broken down by its parts, as stored in evaluation.json.

    `win_rate_without`: without each part of the rubric in turn, empty if there is one part only; `win_rate_by_part`: by
    each part alone. Weights and tie width are the labeler's.
    """
    used = [part for part in PARTS if getattr(labels.weights, part)]

    def by(parts: Sequence[str]) -> dict[str, float] | None:
        left, right = (
            [[weighted(answer.parts, labels.weights, parts) for answer in row] for row in rows]
            for rows in (ours, theirs)
        )
        return win_rate(by_scores(left, right, labels.tie_width), bootstrap)

    return {
        "win_rate_without": {part: by(rest) for part in used if (rest := [other for other in used if other != part])},
        "win_rate_by_part": {part: by([part]) for part in used},
    }


def parts_table(answers: Mapping[str, Answers], bootstrap: Bootstrap) -> dict[str, dict[str, dict[str, float]]]:
    """Means over prompts per model, with intervals: each measure in the answers' `parts`, and the length."""

    def value(row: Sequence[Answer], name: str) -> float | None:
        return mean([answer.tokens if name == "tokens" else answer.parts[name] for answer in row])

    found = {}
    for model, rows in answers.items():
        names = next(list(answer.parts) for row in rows for answer in row)
        found[model] = {name: bootstrap.interval([value(row, name) for row in rows]) for name in [*names, "tokens"]}
    return found


def differences(ours: Answers, theirs: Answers, name: str) -> list[float]:
    """For each prompt, the mean of a score over our answers minus the mean over theirs."""
    left, right = ([sum(row) / len(row) for row in scores_of(answers, name)] for answers in (ours, theirs))
    return [a - b for a, b in zip(left, right, strict=True)]


def kl_between(logprobs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> list[float]:
    """An estimate of KL(pi || pi_ref) per prompt: the mean over its answers of log pi(answer) - log pi_ref(answer).

    Both from `evaluation.likelihood.likelihoods` of the same examples.
    """
    pairs = [list(zip(row, other, strict=True)) for row, other in zip(logprobs, reference, strict=True)]
    return [sum(ours - theirs for ours, theirs in row) / len(row) for row in pairs]
