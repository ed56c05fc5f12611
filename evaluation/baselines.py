"""Null baselines, which a good judge does not prefer to SFT, and best-of-n as a compared model."""

import random
from collections.abc import Sequence
from typing import Any

from data.records import Demonstration
from data.tokenize import encode_completion
from evaluation.compare import Answer, Answers
from modeling.seeds import derive_seed


def answers_to_others(answers: Answers, seed: int) -> Answers | None:
    """`random`: for each prompt the answers to another one; None if there is only one prompt.

    Prompts are put in a random cyclic order, and each gets the answers to the next one.
    """
    order = random.Random(derive_seed(seed, "random answers")).sample(range(len(answers)), len(answers))
    if len(order) < 2:
        return None
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [answers[following[index]] for index in range(len(answers))]


def longest(answers: Answers) -> Answers | None:
    """`longest`: the longest answer to each prompt; None if no prompt has several."""
    if all(len(row) < 2 for row in answers):
        return None
    return [[max(row, key=lambda answer: answer.tokens)] if row else [] for row in answers]


def echo(prompts: Sequence[Demonstration], tokenizer: Any) -> Answers:
    """`echo`: the prompt's own text as its answer."""
    return [[Answer(prompt.text, True, len(encode_completion(tokenizer, prompt.text)))] for prompt in prompts]


def best(candidates: Answers, scores: Sequence[Sequence[float]]) -> Answers:
    """`best_of_n`: the candidate with the highest score; the first of several."""
    return [[row[max(range(len(row)), key=own.__getitem__)]] for row, own in zip(candidates, scores, strict=True)]


def spread(rows: Answers, places: Sequence[int], prompts: int) -> list[Sequence[Answer]]:
    """Answers to the prompts at `places`, as a list over all `prompts`; the other prompts have none."""
    found: list[Sequence[Answer]] = [[] for _ in range(prompts)]
    for place, row in zip(places, rows, strict=True):
        found[place] = row
    return found
