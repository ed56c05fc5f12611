"""Compares base, SFT and PPO on held-out prompts: win rates, the rubric's parts, KL and perplexity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.intervals import Bootstrap
from data.overlap import chrf
from data.records import Demonstration
from data.tokenize import decode_completion, encode_prompt
from labeling.config import LabelsConfig
from labeling.judges import Closeness
from labeling.rubric import PARTS, judge, weighted
from labeling.simulated import ranks_of
from modeling.accelerator import share_of
from modeling.batch import Batch, text_batch
from modeling.generation import Generation
from modeling.models import PolicyModel

MODELS = ("base", "sft", "ppo")


@dataclass
class Answer:
    """An answer and its judgments."""

    text: str
    complete: bool
    tokens: int
    parts: dict[str, float]
    """The rubric's parts and their weighted `score`; `chrf`, the character overlap with the reference, on which no
    reward model was trained.
    """


def judged_answers(
    tokenizer: Any,
    prompts: Sequence[Demonstration],
    generations: Sequence[Sequence[Generation]],
    labels: LabelsConfig,
    closeness: Closeness,
) -> list[list[Answer]]:
    """Each prompt's answers with the simulated labeler's scores, without its random errors."""
    flat = [(prompt, generation) for prompt, row in zip(prompts, generations, strict=True) for generation in row]
    texts = [decode_completion(tokenizer, generation.ids, generation.ended) for _, generation in flat]
    references = [prompt.completion for prompt, _ in flat]
    judged = judge(texts, [generation.ended for _, generation in flat], references, labels.weights, closeness)
    answers = iter(
        Answer(text, generation.ended, len(generation.ids), vars(verdict) | {"chrf": chrf(text, reference)})
        for text, (_, generation), verdict, reference in zip(texts, flat, judged, references, strict=True)
    )
    return [[next(answers) for _ in row] for row in generations]


Score = Callable[[Answer], float]
Answers = Sequence[Sequence[Answer]]
"""The answers to each prompt."""


def whole_rubric(answer: Answer) -> float:
    """The labeler's score."""
    return answer.parts["score"]


def win_rate(
    ours: Answers,
    theirs: Answers,
    tie_width: float,
    bootstrap: Bootstrap,
    score: Score = whole_rubric,
) -> dict[str, float]:
    """How often the labeler prefers our answers, ties counting half: all our answers to a prompt against all of theirs.

    Swapping the two sides gives one minus the rate.
    """
    per_prompt = [
        sum(preference(score(a), score(b), tie_width) for a in left for b in right) / (len(left) * len(right))
        for left, right in zip(ours, theirs, strict=True)
    ]
    return bootstrap.interval(per_prompt)


def preference(ours: float, theirs: float, tie_width: float) -> float:
    """1 if ours is ranked higher, 0 if lower, 1/2 if they tie."""
    ours_rank, theirs_rank = ranks_of([ours, theirs], tie_width)
    return 0.5 + 0.5 * ((ours_rank < theirs_rank) - (ours_rank > theirs_rank))


def win_rate_among(
    ours: Answers,
    theirs: Answers,
    tie_width: float,
    bootstrap: Bootstrap,
    counts: Callable[[Answer, Answer], bool],
) -> dict[str, float] | None:
    """The win rate over the selected pairs of answers; prompts without one are left out. None if there is no such
    pair."""
    per_prompt: list[float | None] = []
    for left, right in zip(ours, theirs, strict=True):
        pairs = [(whole_rubric(a), whole_rubric(b)) for a in left for b in right if counts(a, b)]
        per_prompt.append(sum(preference(a, b, tie_width) for a, b in pairs) / len(pairs) if pairs else None)
    return bootstrap.interval(per_prompt) if any(rate is not None for rate in per_prompt) else None


def like_length(a: Answer, b: Answer, slack: float = 0.25) -> bool:
    """Whether two lengths differ by at most the fraction `slack` of the longer."""
    return abs(a.tokens - b.tokens) <= slack * max(a.tokens, b.tokens)


def both_end(a: Answer, b: Answer) -> bool:
    """Whether neither answer was cut off."""
    return a.complete and b.complete


def rubric_win_rates(ours: Answers, theirs: Answers, labels: LabelsConfig, bootstrap: Bootstrap) -> dict[str, Any]:
    """The win rate broken down by the rubric's parts and by kinds of pairs, as stored in evaluation.json.

    `win_rate_without`: without each part of the rubric in turn; `win_rate_by_part`: by each part alone;
    `win_rate_both_end`: among pairs in which both answers end by themselves; `win_rate_length_matched`: among pairs of
    similar length. Weights and tie width are the labeler's.
    """
    used = [part for part in PARTS if getattr(labels.weights, part)]

    def by(parts: Sequence[str]) -> dict[str, float]:
        return win_rate(ours, theirs, labels.tie_width, bootstrap, lambda a: weighted(a.parts, labels.weights, parts))

    def among(counts: Callable[[Answer, Answer], bool]) -> dict[str, float] | None:
        return win_rate_among(ours, theirs, labels.tie_width, bootstrap, counts)

    return {
        "win_rate_length_matched": among(like_length),
        "win_rate_both_end": among(both_end),
        "win_rate_without": {part: by([other for other in used if other != part]) for part in used},
        "win_rate_by_part": {part: by([part]) for part in used},
    }


def parts_table(
    answers: Mapping[str, Sequence[Sequence[Answer]]], bootstrap: Bootstrap
) -> dict[str, dict[str, dict[str, float]]]:
    """Means per model, with intervals over prompts: each rubric part, the whole rubric, chrF and the length."""
    names = [*PARTS, "score", "chrf"]

    def mean(row: Sequence[Answer], name: str) -> float:
        return sum(answer.tokens if name == "tokens" else answer.parts[name] for answer in row) / len(row)

    return {
        model: {name: bootstrap.interval([mean(row, name) for row in rows]) for name in [*names, "tokens"]}
        for model, rows in answers.items()
    }


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
    prompts: Sequence[Demonstration],
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
