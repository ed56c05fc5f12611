"""UltraFeedback as Zephyr was trained on it: one chosen and one rejected answer of the four, as message lists.

Chosen has the highest `overall_score`, rejected is one of the other three at random. Two that have the same score tie,
and so count for nothing in the loss. `ultrafeedback` is the better source of rankings: all four answers, by ratings
without that score's known fault. The chosen answer is the demonstration. Each prompt is a user of its own. Pairs whose
conversations differ before the last reply are left out.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from data.sources.adapter import Adapter, Row, identifier, single
from data.sources.common import answered

LABELER = {"labeler": "llm", "labeler_id": "gpt-4"}


def _pairs(row: Row) -> Iterator[tuple[dict[str, Any], str, str]]:
    """(the prompt's fields, chosen answer, rejected answer), unless the row is to be left out."""
    prompt, chosen = answered(row, "chosen")
    other_prompt, rejected = answered(row, "rejected")
    if prompt == other_prompt:
        record = {"prompt": prompt} | ({"prompt_id": identifier(row, "prompt_id")} if "prompt_id" in row else {})
        yield record, chosen, rejected


def _score(row: Row, key: str) -> float:
    score = row.get(key)
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"{key!r} must be a number, found {score!r}")
    return score


def _prompts(row: Row) -> Iterable[dict[str, Any]]:
    return (record for record, _, _ in _pairs(row))


def _demonstrations(row: Row) -> Iterable[dict[str, Any]]:
    return (record | {"completion": chosen} for record, chosen, _ in _pairs(row) if chosen.strip())


def _rankings(row: Row) -> Iterable[dict[str, Any]]:
    tied = _score(row, "score_chosen") == _score(row, "score_rejected")
    for record, chosen, rejected in _pairs(row):
        yield record | {"completions": [chosen, rejected], "ranks": [1, 1 if tied else 2]} | LABELER


ADAPTER = Adapter(
    name="ultrafeedback_binarized",
    about="UltraFeedback as chosen and rejected messages, by GPT-4's overall score (MIT)",
    convert={"demonstrations": single(_demonstrations), "prompts": single(_prompts), "rankings": single(_rankings)},
    hub="HuggingFaceH4/ultrafeedback_binarized",
    split="train_prefs",
)
