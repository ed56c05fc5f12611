"""Rankings as training examples: a prompt with all its answers is one batch element (Ouyang et al. 2022, 3.5).

Each answer gets one forward pass, those that are identical token for token or were never compared included.
Shapes: K answers of a prompt.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.answers import identities, judged_pairs, with_answers
from data.records import Demonstration, Ranking
from data.tokenize import encode_completion, encode_prompt
from modeling import batch
from modeling.seeds import derive_seed


@dataclass(frozen=True)
class RankingExample:
    """The token ids of a prompt and its K answers, and the judgments between them."""

    prompt: list[int]
    answers: list[list[int]]
    preference_mask_KK: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    """True at [i, j] where answer i was judged better than answer j; may be empty where no judgment is read."""
    ties: tuple[tuple[int, int], ...] = ()
    """Pairs (i, j), i < j, that were judged equal."""
    ranks: tuple[int | None, ...] | None = None
    """The labeler's ranks, 1 best, null for an answer that was not ranked; None if the judgments form no order."""
    ranking: Ranking | None = None
    """The record that it was made from."""

    @property
    def pairs(self) -> int:
        """Number of strict comparisons."""
        return int(self.preference_mask_KK.sum())


IDLE = [RankingExample([0], [[0]], torch.zeros(1, 1, dtype=torch.bool))]
"""A micro-batch of weight zero, see `Sharding.even`."""


def answer_ids(tokenizer: Any, completion: str, ended: bool, answer_suffix: Sequence[int] | None = None) -> list[int]:
    """The tokens of an answer for a reward model, whose score is read at the last one.

    Args:
        ended: whether the answer ended by itself; EOS is then appended.
        answer_suffix: what a downloaded reward model expects after every answer instead (see
            `modeling.models.answer_suffix_of`).
    """
    ids = encode_completion(tokenizer, completion, ends=ended and answer_suffix is None)
    # An empty answer may have no token to read a score at; a policy that answers nothing samples EOS alone.
    return [*ids, *(answer_suffix or [])] or [tokenizer.eos_token_id]


def fitted(ids: list[int], room: int, answer_suffix: Sequence[int] | None = None) -> list[int]:
    """The tokens of an answer (`answer_ids`), cut off at the end of its text if that has more than `room` tokens."""
    suffix = answer_suffix or []
    return ids if len(ids) <= room + len(suffix) else [*ids[:room], *suffix]


def ranking_example(tokenizer: Any, ranking: Ranking, answer_suffix: Sequence[int] | None = None) -> RankingExample:
    """A ranking as token ids, without judgments between identical answers; `answer_ids` documents `answer_suffix`."""
    complete = ranking.complete or [True] * len(ranking.completions)
    answers = [
        answer_ids(tokenizer, text, ended, answer_suffix)
        for text, ended in zip(ranking.completions, complete, strict=True)
    ]
    same_text = identities(ranking)
    preference_mask_KK = torch.zeros((len(answers), len(answers)), dtype=torch.bool)
    ties = set()
    for one, other, tied in judged_pairs(ranking):
        if answers[one] == answers[other] or same_text[one] == same_text[other]:
            continue
        if tied:
            ties.add((min(one, other), max(one, other)))
        else:
            preference_mask_KK[one, other] = True
    ranks = None if ranking.ranks is None else tuple(ranking.ranks)
    return RankingExample(
        encode_prompt(tokenizer, ranking), answers, preference_mask_KK, tuple(sorted(ties)), ranks, ranking
    )


def some_answers(ranking: Ranking, count: int | None, seed: int) -> Ranking:
    """The ranking of `count` of its answers, chosen at random, in their order; all of them without a count, or if it
    has no more. If not all answers were compared, or the choice has no strict pair, answers of strict pairs are chosen
    first.
    """
    if count is None or len(ranking.completions) <= count:
        return ranking
    draw, kept = random.Random(derive_seed(seed, "answers", ranking.prompt_id)), set[int]()
    others = draw.sample(range(len(ranking.completions)), len(ranking.completions))
    texts = identities(ranking)
    strict = [{one, other} for one, other, tied in judged_pairs(ranking) if not tied and texts[one] != texts[other]]
    all_ranked = ranking.ranks is not None and None not in ranking.ranks
    if not all_ranked or not any(pair <= set(others[:count]) for pair in strict):
        for pair in draw.sample(strict, len(strict)):
            if len(kept | pair) <= count:
                kept |= pair
    kept.update([index for index in others if index not in kept][: count - len(kept)])
    return with_answers(ranking, sorted(kept))


def ranking_examples(
    tokenizer: Any,
    rankings: Sequence[Ranking],
    context: int,
    answer_suffix: Sequence[int] | None = None,
    split: str = "train",
) -> tuple[list[RankingExample], dict[str, int]]:
    """(examples, number of rankings left out by reason: all answers tie, all are identical, or they do not fit the
    context).

    An answer that is too long is dropped from its ranking, and the others are kept if a strict comparison remains.
    Raises ValueError when no ranking is left.
    """
    kept, left_out = [], {"all_tied": 0, "identical_answers": 0, "too_long": 0, "long_answers": 0}
    for ranking in rankings:
        candidate = ranking_example(tokenizer, ranking, answer_suffix)
        if not candidate.pairs:
            left_out["all_tied" if all(tied for *_, tied in judged_pairs(ranking)) else "identical_answers"] += 1
            continue
        fitting = [
            place for place, answer in enumerate(candidate.answers) if len(candidate.prompt) + len(answer) <= context
        ]
        if len(fitting) < len(candidate.answers):
            candidate = _with_answers(candidate, fitting)
            if not candidate.pairs:
                left_out["too_long"] += 1
                continue
            left_out["long_answers"] += len(ranking.completions) - len(fitting)
        kept.append(candidate)
    if not kept:
        raise ValueError(
            f"no {split} ranking is left: of {len(rankings)}, {left_out['all_tied']} tie all their answers, "
            f"{left_out['identical_answers']} compare identical answers and {left_out['too_long']} are longer than "
            f"the model's context of {context} tokens"
        )
    return kept, left_out


def example_sets(
    tokenizer: Any,
    rankings: Mapping[str, Sequence[Ranking]],
    context: int,
    answer_suffix: Sequence[int] | None = None,
) -> tuple[dict[str, list[RankingExample]], dict[str, dict[str, int]]]:
    """`ranking_examples` of each split."""
    made = {
        split: ranking_examples(tokenizer, found, context, answer_suffix, split) for split, found in rankings.items()
    }
    return {split: kept for split, (kept, _) in made.items()}, {split: counts for split, (_, counts) in made.items()}


def _with_answers(item: RankingExample, kept: Sequence[int]) -> RankingExample:
    """The example restricted to the answers at these indices."""
    assert item.ranking is not None
    place = {old: new for new, old in enumerate(kept)}
    ties = tuple((place[one], place[other]) for one, other in item.ties if one in place and other in place)
    ranks = None if item.ranks is None else tuple(item.ranks[index] for index in kept)
    answers = [item.answers[index] for index in kept]
    return RankingExample(
        item.prompt, answers, item.preference_mask_KK[kept][:, kept], ties, ranks, with_answers(item.ranking, kept)
    )


def demonstrations(
    tokenizer: Any, shown: Sequence[Demonstration], context: int, answer_suffix: Sequence[int] | None = None
) -> list[RankingExample]:
    """The demonstrations that fit the context, each as a prompt with one answer and no comparison.

    Raises ValueError when none fits.
    """
    alone = torch.zeros(1, 1, dtype=torch.bool)
    made = [
        RankingExample(
            encode_prompt(tokenizer, one), [answer_ids(tokenizer, one.completion, True, answer_suffix)], alone
        )
        for one in shown
    ]
    fitting = [item for item in made if len(item.prompt) + len(item.answers[0]) <= context]
    if not fitting:
        raise ValueError(
            f"none of the {len(made)} demonstrations for the reward model's bias fits its context of {context} tokens: "
            "lower data.max_prompt_tokens or data.max_answer_tokens, or choose another reward.base"
        )
    return fitting


def as_pairs(items: Sequence[RankingExample]) -> list[RankingExample]:
    """Each strict comparison as an example of its own, for shuffled pairs, as opposed to all of a prompt's
    comparisons at once (3.5).
    """
    first_beats_second = torch.tensor([[False, True], [False, False]])
    return [
        RankingExample(item.prompt, [item.answers[better], item.answers[worse]], first_beats_second)
        for item in items
        for better, worse in item.preference_mask_KK.nonzero().tolist()
    ]


def micro_batches(items: Sequence[RankingExample], max_tokens: int, shared: bool = True) -> list[list[RankingExample]]:
    """The examples in groups of similar length, each of at most `max_tokens` tokens (at least one example).

    Args:
        shared: whether a prompt is encoded once for all its answers, so that its tokens count once.
    """
    ordered = sorted(items, key=lambda item: (len(item.prompt), max(map(len, item.answers))))
    sizes = [len(item.prompt) * (1 if shared else len(item.answers)) + sum(map(len, item.answers)) for item in ordered]
    return [[ordered[row] for row in rows] for rows in batch.micro_batches(range(len(ordered)), sizes, max_tokens)]
