"""Win rates from verdicts on pairs of answers, the rubric's parts, and KL and perplexity of the compared models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.intervals import Bootstrap
from data.records import Prompt
from data.tokenize import encode_prompt
from labeling.config import LabelsConfig
from labeling.rubric import PARTS, weighted
from labeling.simulated import ranks_of
from modeling.accelerator import share_of
from modeling.batch import Batch, text_batch
from modeling.generation import Generation
from modeling.models import PolicyModel


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

    `win_rate_without`: without each part of the rubric in turn; `win_rate_by_part`: by each part alone. Weights and tie
    width are the labeler's.
    """
    used = [part for part in PARTS if getattr(labels.weights, part)]

    def by(parts: Sequence[str]) -> dict[str, float] | None:
        left, right = (
            [[weighted(answer.parts, labels.weights, parts) for answer in row] for row in rows]
            for rows in (ours, theirs)
        )
        return win_rate(by_scores(left, right, labels.tie_width), bootstrap)

    return {
        "win_rate_without": {part: by([other for other in used if other != part]) for part in used},
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


@dataclass(frozen=True)
class Scoring:
    """How forward passes over answers are run; the same for all compared models."""

    temperature: float
    """Log-probabilities are those of the distribution at this temperature."""
    batch_size: int
    accelerator: Accelerator


@torch.no_grad()
def logprobs_of_answers(
    policy: PolicyModel,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    generations: Sequence[Sequence[Generation]],
    how: Scoring,
) -> list[list[float]]:
    """log pi(answer) in nats of every answer to every prompt. Models that share a tokenizer get the same batches."""
    flat = [
        ((index, number), encode_prompt(tokenizer, prompts[index]), answer.ids)
        for index, row in enumerate(generations)
        for number, answer in enumerate(row)
    ]
    mine = sorted(share_of(how.accelerator, flat), key=lambda item: len(item[1]) + len(item[2]))
    found: list[tuple[tuple[int, int], float]] = []
    for start in range(0, len(mine), how.batch_size):
        places, befores, answers = zip(*mine[start : start + how.batch_size], strict=True)
        batch = Batch(befores, answers, how.accelerator.device)
        logprobs_R, _ = policy(batch, how.temperature, with_entropy=False)
        found += zip(places, batch.padded(logprobs_R.double()).sum(1).tolist(), strict=True)
    total = dict(gather_object(found))
    return [[total[index, number] for number in range(len(row))] for index, row in enumerate(generations)]


def kl_between(logprobs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> list[float]:
    """An estimate of KL(pi || pi_ref) per prompt: the mean over its answers of log pi(answer) - log pi_ref(answer).

    Both from `logprobs_of_answers` with the same `Scoring`: under bfloat16, log-probabilities of the same model from
    two kinds of pass differ by far more than a small KL.
    """
    pairs = [list(zip(row, other, strict=True)) for row, other in zip(logprobs, reference, strict=True)]
    return [sum(ours - theirs for ours, theirs in row) / len(row) for row in pairs]


@torch.no_grad()
def perplexity(policy: PolicyModel, chunks: Sequence[list[int]], batch_size: int, accelerator: Accelerator) -> float:
    """exp of the mean next-token loss over plain text."""
    mine = share_of(accelerator, sorted(chunks, key=len))
    total, tokens = 0.0, 0
    for start in range(0, len(mine), batch_size):
        logprobs_R, _ = policy(text_batch(mine[start : start + batch_size], accelerator.device), with_entropy=False)
        total, tokens = total - float(logprobs_R.double().sum()), tokens + len(logprobs_R)
    parts = gather_object([(total, tokens)])
    return float(torch.tensor(sum(t for t, _ in parts) / sum(n for _, n in parts)).exp())
