"""Base, SFT and PPO side by side on held-out prompts: who wins, by which parts of the rubric, and how far the policy went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.intervals import interval
from data.overlap import chrf
from data.records import Demonstration
from data.tokenize import decode_completion, encode_prompt
from labeling.config import LabelsConfig
from labeling.judges import Closeness
from labeling.rubric import PARTS, judge
from labeling.simulated import ranks_of
from modeling.batch import Batch
from modeling.config import ModelConfig
from modeling.engines.types import Generation
from modeling.load import autocast
from modeling.logprobs import response_logprobs, text_loss
from modeling.processes import Processes

MODELS = ("base", "sft", "ppo")


@dataclass
class Answer:
    """One answer and what the judges say of it."""

    text: str
    complete: bool
    tokens: int
    parts: dict[str, float]
    """The rubric's parts and their weighted `score`; `chrf`, overlap of characters with the reference, which no reward model was taught."""


def judged_answers(
    tokenizer: Any,
    prompts: Sequence[Demonstration],
    generations: Sequence[Sequence[Generation]],
    labels: LabelsConfig,
    closeness: Closeness,
) -> list[list[Answer]]:
    """Each prompt's answers with the simulated labeler's view of them, without its misjudgements."""
    flat = [(prompt, generation) for prompt, row in zip(prompts, generations, strict=True) for generation in row]
    decoded = [decode_completion(tokenizer, generation.ids) for _, generation in flat]
    references = [prompt.completion for prompt, _ in flat]
    judged = judge([text for text, _ in decoded], [ended for _, ended in decoded], references, labels.weights, closeness)
    answers = iter(
        Answer(text, ended, len(generation.ids), vars(verdict) | {"chrf": chrf(text, reference)})
        for (text, ended), (_, generation), verdict, reference in zip(decoded, flat, judged, references, strict=True)
    )
    return [[next(answers) for _ in row] for row in generations]


def win_rate(ours: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[Answer]], tie_width: float, resamples: int) -> dict[str, float]:
    """How often the labeler prefers ours, ties counting half: every answer of ours to a prompt against every one of theirs.

    Symmetric in the two by construction: swapping them gives one minus the rate.
    """
    per_prompt = [
        sum(preference(a.parts["score"], b.parts["score"], tie_width) for a in left for b in right) / (len(left) * len(right))
        for left, right in zip(ours, theirs, strict=True)
    ]
    return interval(per_prompt, resamples)


def preference(ours: float, theirs: float, tie_width: float) -> float:
    """1 where ours is ranked higher, 0 where lower, 1/2 where the labeler ties them."""
    ours_rank, theirs_rank = ranks_of([ours, theirs], tie_width)
    return 0.5 + 0.5 * ((ours_rank < theirs_rank) - (ours_rank > theirs_rank))


def length_matched_win_rate(
    ours: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[Answer]], tie_width: float, resamples: int, slack: float = 0.25
) -> dict[str, float] | None:
    """The win rate over pairs of answers whose lengths differ by at most `slack` of the longer; None where there are no such pairs."""
    per_prompt = []
    for left, right in zip(ours, theirs, strict=True):
        alike = [(a, b) for a in left for b in right if abs(a.tokens - b.tokens) <= slack * max(a.tokens, b.tokens)]
        if alike:
            per_prompt.append(sum(preference(a.parts["score"], b.parts["score"], tie_width) for a, b in alike) / len(alike))
    return interval(per_prompt, resamples) if per_prompt else None


def parts_table(answers: Mapping[str, Sequence[Sequence[Answer]]], resamples: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each model the mean of each rubric part, of the whole rubric, of chrF and of the length, with intervals over prompts."""
    names = [*PARTS, "score", "chrf"]

    def mean(row: Sequence[Answer], name: str) -> float:
        return sum(answer.tokens if name == "tokens" else answer.parts[name] for answer in row) / len(row)

    return {model: {name: interval([mean(row, name) for row in rows], resamples) for name in [*names, "tokens"]} for model, rows in answers.items()}


@dataclass(frozen=True)
class Scoring:
    """How forward passes over answers are made; the same for every model that is compared."""

    temperature: float
    """Log-probabilities are those of the distribution at this temperature."""
    batch_size: int
    model_config: ModelConfig
    team: Processes


@torch.no_grad()
def logprobs_of_answers(
    model: Any,
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
    mine = sorted(how.team.share(flat), key=lambda item: len(item[1]) + len(item[2]))
    found: list[tuple[tuple[int, int], float]] = []
    for start in range(0, len(mine), how.batch_size):
        places, befores, answers = zip(*mine[start : start + how.batch_size], strict=True)
        batch = Batch(befores, answers, tokenizer.pad_token_id, how.team.device)
        with autocast(how.model_config, how.team.device):
            logprobs_R = response_logprobs(model, batch, how.temperature)
        found += zip(places, batch.rows(logprobs_R.double()).sum(1).tolist(), strict=True)
    total = dict(how.team.gather(found))
    return [[total[index, number] for number in range(len(row))] for index, row in enumerate(generations)]


def kl_between(logprobs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> list[float]:
    """An estimate of KL(pi || pi_ref) per prompt: the mean over its answers of log pi(answer) - log pi_ref(answer).

    Both from `logprobs_of_answers` with the same `Scoring`: under bfloat16, log-probabilities of the same model from
    two kinds of pass differ by far more than a small KL.
    """
    pairs = [list(zip(row, other, strict=True)) for row, other in zip(logprobs, reference, strict=True)]
    return [sum(ours - theirs for ours, theirs in row) / len(row) for row in pairs]


@torch.no_grad()
def perplexity(model: Any, chunks: Sequence[list[int]], batch_size: int, pad_id: int, model_config: ModelConfig, team: Processes) -> float:
    """exp of the mean next-token loss over plain text."""
    mine = team.share(sorted(chunks, key=len))
    total, tokens = 0.0, 0
    for start in range(0, len(mine), batch_size):
        with autocast(model_config, team.device):
            loss, count = text_loss(model, list(mine[start : start + batch_size]), pad_id, team.device)
        total, tokens = total + float(loss), tokens + count
    parts = team.gather([(total, tokens)])
    return float(torch.tensor(sum(t for t, _ in parts) / sum(n for _, n in parts)).exp())
