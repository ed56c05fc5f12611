"""A language model as labeler, which compares every two answers to a prompt."""

from collections.abc import Sequence
from itertools import combinations

from data.records import Demonstration, Prompt, Ranking, Samples
from evaluation.compare import Answer
from evaluation.judges.llm import LLMJudge


def rank_by_llm(samples: Sequence[Samples], judge: LLMJudge) -> list[Ranking]:
    """Rankings as preferences, which may be cyclic. Pairs and prompts without a verdict are left out."""
    pairs = [(row, first, second) for row in samples for first, second in combinations(range(len(row.completions)), 2)]
    verdicts = judge.preferences(
        [Demonstration(**vars(Prompt.of(row)), completion=row.reference or "") for row, _, _ in pairs],
        [[answer(row, first)] for row, first, _ in pairs],
        [[answer(row, second)] for row, _, second in pairs],
    )
    preferences: dict[str, list[list[int]]] = {}
    ties: dict[str, list[list[int]]] = {}
    for (row, first, second), ((verdict,),) in zip(pairs, verdicts, strict=True):
        if verdict is not None:
            found = ties if verdict == 0.5 else preferences
            better = [first, second] if verdict >= 0.5 else [second, first]
            found.setdefault(row.prompt_id, []).append(better)
    return [
        Ranking(
            **vars(Prompt.of(row)), completions=row.completions, complete=row.complete,
            preferences=preferences.get(row.prompt_id, []), ties=ties.get(row.prompt_id, []),
            labeler="llm", labeler_id=judge.client.config.model or "",
        )
        for row in samples
        if row.prompt_id in preferences or row.prompt_id in ties
    ]  # fmt: skip


def answer(row: Samples, place: int) -> Answer:
    """An answer as the judge takes it; the judge ignores the number of tokens."""
    return Answer(row.completions[place], row.complete[place], 0)
