"""Rankings as batch elements: one prompt with all its answers is one element (Ouyang et al. 2022, section 3.5).

Answers that were identical token for token, or that nobody compared, still get one forward pass each and no more.
Shapes: K answers of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.records import Ranking
from data.tokenize import encode_completion, encode_prompt


@dataclass(frozen=True)
class Element:
    """A prompt's token ids, its K answers' token ids, and which answer was judged better than which."""

    prompt: list[int]
    answers: list[list[int]]
    better_KK: Tensor

    @property
    def pairs(self) -> int:
        """Strict comparisons."""
        return int(self.better_KK.sum())


def element(tokenizer: Any, ranking: Ranking) -> Element:
    """A ranking as token ids; an answer that was cut off gets no EOS."""
    complete = ranking.complete or [True] * len(ranking.completions)
    count = len(ranking.completions)
    better_KK = torch.zeros((count, count), dtype=torch.bool)
    if ranking.preferences is not None:
        for better, worse in ranking.preferences:
            better_KK[better, worse] = True
    else:
        for i, high in enumerate(ranking.ranks or []):
            for j, low in enumerate(ranking.ranks or []):
                better_KK[i, j] = high is not None and low is not None and high < low
    answers = [encode_completion(tokenizer, text, ends) for text, ends in zip(ranking.completions, complete, strict=True)]
    # An empty answer has no last token to read a score at; EOS alone is what the policy would have said.
    answers = [ids or [tokenizer.eos_token_id] for ids in answers]
    return Element(encode_prompt(tokenizer, ranking), answers, better_KK)


def elements(tokenizer: Any, rankings: Sequence[Ranking], context: int) -> tuple[list[Element], dict[str, int]]:
    """(elements, how many rankings were left out and why): all answers tied, or longer than the model's context.

    Raises ValueError when nothing is left.
    """
    kept, left_out = [], {"all_tied": 0, "too_long": 0}
    for ranking in rankings:
        candidate = element(tokenizer, ranking)
        if not candidate.pairs:
            left_out["all_tied"] += 1
        elif len(candidate.prompt) + max(map(len, candidate.answers)) > context:
            left_out["too_long"] += 1
        else:
            kept.append(candidate)
    if not kept:
        raise ValueError(
            f"no ranking is left to learn from: of {len(rankings)}, {left_out['all_tied']} tie all their answers and {left_out['too_long']} are "
            f"longer than the model's context of {context} tokens"
        )
    return kept, left_out


def micro_batches(batch: Sequence[Element], max_tokens: int) -> list[list[Element]]:
    """The elements in groups of like length, each of at most `max_tokens` computed tokens, padding included (one element at least)."""
    groups: list[list[Element]] = []
    for item in sorted(batch, key=lambda e: (len(e.prompt), max(map(len, e.answers)))):
        if groups and computed_tokens([*groups[-1], item]) <= max_tokens:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def computed_tokens(group: Sequence[Element]) -> int:
    """Tokens that a forward pass over the group computes: each prompt once, each answer once, both padded to the longest."""
    answers = [ids for item in group for ids in item.answers]
    return len(group) * max(len(item.prompt) for item in group) + len(answers) * max(map(len, answers))
