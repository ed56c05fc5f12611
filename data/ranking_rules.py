"""Curation of rankings: drops unusable answers, and rankings in which no strict pair is left."""

import numpy as np
import pandas as pd

from data.annotate import Annotator, full_text
from data.answers import has_strict_pair, identical_pairs, with_answers
from data.records import Ranking
from data.sets import packed
from data.table import Table


def refuse_undecided(table: Table) -> None:
    """Raises ValueError if no ranking of a source puts an answer above a different one."""
    for place, name in enumerate(table.sources):
        mine = table.notes[table.notes["dataset"] == place]
        if mine["decided"].any() or not len(mine):
            continue
        what, advice = "are ties or rank no answers", "check which column holds the ranks, or remove this source"
        if (mine["identical"] > 0).all():
            what, advice = "compare identical answers", "check which columns hold the better and the worse answer"
        of_source = f"data.rankings: all {len(mine):,} rankings of {name!r} {what}"
        raise ValueError(f"{of_source}, which gives a reward model no signal: {advice}")


def drop_answers(table: Table, annotator: Annotator) -> dict[str, int]:
    """Drops answers that are too long or, in training rows, contain personal data; then rankings without a strict pair.

    Returns the number of answers dropped from rankings that stay, by rule.
    """
    limit, notes = annotator.config.max_answer_tokens, table.notes
    shorter: dict[int, Ranking] = {}
    unusable: dict[str, list[int]] = {"answer_too_long": [], "personal_data": []}
    dropped = dict.fromkeys(unusable, 0)
    suspects = np.flatnonzero(table.kept() & ((notes["answer_tokens"] > limit) | notes["personal"]).to_numpy())
    for number, ranking in zip(suspects.tolist(), table.read(suspects), strict=True):
        tokens = annotator.answer_tokens(ranking.completions)
        short = [place for place, count in enumerate(tokens) if count <= limit]
        fit = _without_personal_data(ranking, short, annotator) if notes["personal"][number] else short
        reasons = [rule for rule, kept in zip(unusable, (short, fit), strict=True) if not _usable(ranking, kept)]
        if reasons:
            unusable[reasons[0]].append(number)
            continue
        shorter[number] = with_answers(ranking, fit)
        notes.loc[number, "identical"] = identical_pairs(shorter[number])
        dropped["answer_too_long"] += len(tokens) - len(short)
        dropped["personal_data"] += len(short) - len(fit)
    for rule, numbers in unusable.items():
        table.remove(rule, pd.Series(True, index=numbers, dtype=bool))
    table.remove("identical_answers", ~notes["decided"] & (notes["identical"] > 0))
    if shorter:
        table.replace({number: packed(ranking) for number, ranking in shorter.items()})
    return dropped


def _without_personal_data(ranking: Ranking, places: list[int], annotator: Annotator) -> list[int]:
    """The indices in `places` of answers without personal data; none if the prompt itself contains some."""
    personal = annotator.personal
    if personal is None:
        return places
    fit = [] if personal(ranking.text) else [place for place in places if not personal(ranking.completions[place])]
    # A match that spans two texts cannot be attributed to one of them.
    return fit if len(fit) < len(places) or not fit or not personal(full_text(with_answers(ranking, fit))) else []


def _usable(ranking: Ranking, places: list[int]) -> bool:
    return len(places) == len(ranking.completions) or (
        len(places) > 1 and has_strict_pair(with_answers(ranking, places))
    )
