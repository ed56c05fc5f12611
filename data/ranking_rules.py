"""Curation of rankings by answer: drops unusable answers, and rankings in which no strict pair is left."""

import numpy as np

from data.answers import has_strict_pair, identical_pairs, with_answers
from data.config import DataConfig
from data.measure import Measurer, full_text
from data.part import Part
from data.records import Ranking
from data.sets import packed, record_of
from data.spool import Spool


def refuse_identical(part: Part) -> None:
    """Raises ValueError when all rankings of a source compare identical answers, most often from two equal columns."""
    for place, name in enumerate(part.datasets):
        rows = part.dataset == place
        if not part.informative[rows].any():
            raise ValueError(
                f"data.rankings: all {int(rows.sum()):,} rankings of {name!r} compare identical answers, "
                "which gives a reward model no signal: check which columns hold the better and the worse answer"
            )


def drop_answers(part: Part, config: DataConfig, measurer: Measurer) -> None:
    """Drops answers that are too long or, in training rows, hold personal data; then rankings without a strict pair."""
    shorter: dict[int, Ranking] = {}
    stays = {rule: np.ones(part.count, dtype=bool) for rule in ("answer_too_long", "personal_data")}
    part.dropped = dict.fromkeys(stays, 0)
    suspects = np.flatnonzero(
        part.kept() & ((part.measures.answer_tokens > config.max_answer_tokens) | part.measures.personal)
    )
    for number, row in zip(suspects.tolist(), part.spool.rows(suspects), strict=True):
        ranking = record_of(row, Ranking)
        tokens = measurer.answer_tokens(ranking.completions)
        short = [place for place, count in enumerate(tokens) if count <= config.max_answer_tokens]
        fit = _without_personal_data(ranking, short, measurer) if part.measures.personal[number] else short
        left_out = {"answer_too_long": len(tokens) - len(short), "personal_data": len(short) - len(fit)}
        unusable = [
            rule for rule, kept in (("answer_too_long", short), ("personal_data", fit)) if not _usable(ranking, kept)
        ]
        if unusable:
            stays[unusable[0]][number] = False
            continue
        shorter[number] = with_answers(ranking, fit)
        part.identical[number] = identical_pairs(shorter[number])
        for rule, count in left_out.items():
            part.dropped[rule] += count
    for rule, mask in stays.items():
        part.ledger.apply(rule, mask)
    part.ledger.apply("identical_answers", part.informative)
    if shorter:
        part.spool = _rewritten(part.spool, shorter)


def _without_personal_data(ranking: Ranking, places: list[int], measurer: Measurer) -> list[int]:
    """The indices in `kept` of answers without personal data; none if the prompt itself has some."""
    personal = measurer.personal
    if personal is None:
        return places
    fit = [] if personal(ranking.text) else [place for place in places if not personal(ranking.completions[place])]
    # A match across the border of two texts cannot be attributed to one of them.
    return fit if len(fit) < len(places) or not fit or not personal(full_text(with_answers(ranking, fit))) else []


def _usable(ranking: Ranking, places: list[int]) -> bool:
    return len(places) == len(ranking.completions) or (
        len(places) > 1 and has_strict_pair(with_answers(ranking, places))
    )


def _rewritten(spool: Spool, shorter: dict[int, Ranking]) -> Spool:
    """The spool with these rankings in place of the rows with these numbers."""
    found = Spool(spool.path.with_name(f"shorter_{spool.path.name}"), spool.schema)
    number = 0
    for batch in spool.batches():
        for row in batch.to_pylist():
            found.append(packed(shorter[number], row["key"]) if number in shorter else row)
            number += 1
    found.close()
    return found
