"""UltraFeedback (Cui et al. 2023): four models' answers to an instruction, rated by GPT-4.

Ranked by the mean of the four ratings from 1 to 5 (instruction following, truthfulness, honesty, helpfulness), equal
means tie. Not by `overall_score`, which is parsed from a critique and gives some of the worst answers a 10 where the
critic wrote 1. An answer that lacks a rating (published as "N/A") has no rank: a mean over fewer aspects is not
comparable.

Left out: rows with fewer than two ranked answers. Each answer was written under a system prompt of its own that the
judge did not see, so it is not part of the prompt. The best answer is the demonstration: a model's, not a person's.
Each instruction is a user of its own. A run that reports TruthfulQA should know that its questions are among the
prompts.
"""

from collections.abc import Iterable
from typing import Any

from data.sources.adapter import Adapter, Row, need, single
from data.sources.common import dense_ranks

ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
RATINGS = ("1", "2", "3", "4", "5")
LABELER = {"labeler": "llm", "labeler_id": "gpt-4"}


def _answers(row: Row) -> list[tuple[str, int | None]]:
    """(text, rank) of each answer."""
    answers = need(row, "completions", list)
    if not all(isinstance(answer, dict) for answer in answers):
        raise ValueError("each of 'completions' must be an object with 'response' and 'annotations'")
    ranks = dense_ranks([_score(answer) for answer in answers])
    return [(need(answer, "response", str).strip(), rank) for answer, rank in zip(answers, ranks, strict=True)]


def _score(answer: Row) -> float | None:
    """The sum of the ratings, which orders as their mean does; None where one is missing."""
    annotations = (
        {}
        if answer.get("annotations") is None
        else need(answer, "annotations", dict, "an object with a rating for each aspect")
    )
    ratings = [_rating(annotations.get(aspect), aspect) for aspect in ASPECTS]
    return None if None in ratings else sum(rating for rating in ratings if rating is not None)


def _rating(annotation: object, aspect: str) -> int | None:
    rating = annotation.get("Rating") if isinstance(annotation, dict) else None
    if rating is not None and not isinstance(rating, str):
        raise ValueError(f"'Rating' of {aspect!r} must be a string, '1' to '5' or 'N/A', found {type(rating).__name__}")
    return int(rating) if rating in RATINGS else None


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    yield {"prompt": need(row, "instruction", str)}


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    ranked = [(rank, text) for text, rank in _answers(row) if rank is not None and text]
    if ranked:
        yield {"prompt": need(row, "instruction", str), "completion": min(ranked, key=lambda answer: answer[0])[1]}


def _rankings(row: Row) -> Iterable[dict[str, Any]]:
    answers = _answers(row)
    if sum(rank is not None for _, rank in answers) > 1:
        texts, ranks = zip(*answers, strict=True)
        yield {"prompt": need(row, "instruction", str), "completions": list(texts), "ranks": list(ranks)} | LABELER


ADAPTER = Adapter(
    name="ultrafeedback",
    keys=(("instruction", "completions"),),
    about="UltraFeedback, four models' answers rated by GPT-4 (MIT)",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts), "rankings": single(_rankings)},
    hub="openbmb/UltraFeedback",
)
