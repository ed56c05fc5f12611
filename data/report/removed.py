"""Why rows left, in words, and a few of them to look at, so that a rule that takes the wrong ones is noticed.

Texts are shown shortened and with personal data masked, whichever rule removed them; of rows that left for their
personal data only the kinds that were found are shown.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.build import Built
from data.config import DataConfig
from data.few_shot import whole_text
from data.measure import full_text
from data.part import TRAIN, Mask, Part
from data.personal_data import Finding, detector
from data.records import FewShot, Prompt, Ranking
from data.sets import record_of
from data.spool import Spool

SHOWN = 240
"""Characters of a text."""
LONGEST = 100_000
"""Characters in which two texts are looked through for where they part."""
MOST_CANDIDATES = 10_000
"""Rows that are compared in the search for one twin; more share the beginning of very short texts only."""
Find = Callable[[str], list[Finding]]


@dataclass(frozen=True)
class Example:
    """A row that a rule removed."""

    text: str
    note: str = ""
    """The number that decided, say."""
    twin: str = ""
    """The row that it is a near-duplicate of."""


def meaning(rule: str, config: DataConfig) -> str:
    """What a rule does, in a sentence without a full stop."""
    group = "user" if config.group_by == "user" else "organisation"
    return {
        "near_duplicate": f"shares its first {config.near_duplicate_fraction:.0%} with an earlier prompt; case, "
        "spaces and punctuation aside",
        "repeated": "the same as an earlier one",
        "over_cap": f"beyond the first {config.max_prompts_per_group} prompts of its {group}",
        "other_language": f"in another language than {', '.join(config.languages)}"
        if config.languages
        else "in a language not wanted (all are)",
        "prompt_too_long": f"prompt of more than {config.max_prompt_tokens:,} tokens",
        "answer_too_long": f"an answer of more than {config.max_answer_tokens:,} tokens",
        "personal_data": "personal data in a training row",
        "identical_answers": "no answer is ranked above a different one, only above one with the same text",
        "evaluation_prompt": "training row whose prompt is also one for validation or test",
        "over_mixture_share": "thinned to the sources' weights",
    }.get(rule, rule.replace("_", " "))


def finder(config: DataConfig) -> Find:
    """What masks personal data in what is shown: the run's own engine, and the rules where the run looks for none."""
    return detector("rules" if config.personal_data == "off" else config.personal_data)


def examples(built: Built, config: DataConfig) -> dict[tuple[str, str], list[Example]]:
    """By kind and rule, of the rules that removed any."""
    find = finder(config)
    found = {}
    for kind, part in (("prompts", built.pool), ("rankings", built.rankings)):
        for rule, numbers in part.ledger.examples.items():
            if numbers:
                found[kind, rule] = [_example(built, part, rule, number, config, find) for number in numbers]
    return found


def shown(text: str, find: Find) -> str:
    """The beginning of a text, personal data replaced by their kind."""
    # Masked before it is cut: half a number is not told for one.
    return cut(masked(text[: 4 * SHOWN], find), 0)


def shown_beside(text: str, other: str, find: Find) -> tuple[str, str]:
    """Two texts that begin alike, both cut so that where they part is in sight."""
    one, two = masked(text[:LONGEST], find), masked(other[:LONGEST], find)
    parting = next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    return cut(one, parting), cut(two, parting)


def cut(text: str, place: int) -> str:
    """The beginning of a text and, where that place lies beyond it, what is around it."""
    if len(text) <= SHOWN:
        return text
    if place < SHOWN * 3 // 4:
        return text[:SHOWN].rstrip() + " …"
    start, end = place - SHOWN // 4, place + SHOWN // 4
    return f"{text[: SHOWN // 2].rstrip()} … {text[start:end].strip()}{' …' if end < len(text) else ''}"


def masked(text: str, find: Find) -> str:
    """The text with every finding replaced by its kind."""
    for finding in sorted(find(text), key=lambda finding: -finding.start):
        text = f"{text[: finding.start]}[{finding.entity}]{text[finding.end :]}"
    return text


def twin(part: Part, key: str, fraction: float, allowed: Mask) -> int | None:
    """The first allowed row whose text is a near-duplicate of the key, by the rule of data/near_duplicates.py to the
    letter.
    """
    whole = key.encode()
    # What is cut may be the middle of a character, which is then left out: the prefix only finds candidates.
    prefix = whole[: math.ceil(fraction * len(whole))].decode(errors="ignore")
    for number in itertools.islice(part.spool.starting_with("key", prefix), MOST_CANDIDATES):
        if allowed[number] and near(whole, _key(part.spool, number).encode(), fraction):
            return number
    return None


def near(one: bytes, other: bytes, fraction: float) -> bool:
    """Whether the common prefix is at least that fraction of the longer one."""
    threshold = math.ceil(fraction * max(len(one), len(other)))
    return one[:threshold] == other[:threshold]


def _example(built: Built, part: Part, rule: str, number: int, config: DataConfig, find: Find) -> Example:
    (row,) = part.spool.rows([number])
    record: Prompt = record_of(row, Ranking if part is built.rankings else Prompt)
    if rule == "personal_data":
        kinds = Counter(finding.entity for finding in find(full_text(record)))
        return Example(
            ", ".join(f"{kind} × {count}" if count > 1 else kind for kind, count in kinds.items())
            or "found by another engine"
        )
    measures = part.measures
    note = {
        "prompt_too_long": f"{measures.prompt_tokens[number]:,} tokens",
        "answer_too_long": f"{measures.answer_tokens[number]:,} tokens of answer",
        "other_language": str(measures.language[number]),
    }.get(rule, "")
    other = _twin_text(built, part, rule, number, row["key"], config.near_duplicate_fraction)
    text, other = shown_beside(_text(record), other, find) if other else (shown(_text(record), find), "")
    return Example(text, note, other)


def _text(record: Prompt) -> str:
    return whole_text(record) if isinstance(record, FewShot) else record.text


def _twin_text(built: Built, part: Part, rule: str, number: int, key: str, fraction: float) -> str:
    """The text of the near-duplicate that a row left for; empty for other rules, and where there is none any more."""
    places: list[tuple[Part, Mask]] = []
    if rule == "near_duplicate":
        before = np.arange(part.count) < number
        # The twin itself may have left since, by another rule.
        places = [(part, before & part.kept()), (part, before)]
    elif rule == "evaluation_prompt":
        places = [(other, other.kept() & (other.split != TRAIN)) for other in (built.pool, built.rankings)]
    for other, allowed in places:
        if allowed.any() and (found := twin(other, key, fraction, allowed)) is not None:
            (row,) = other.spool.rows([found])
            return _text(record_of(row, Ranking if other is built.rankings else Prompt))
    return ""


def _key(spool: Spool, number: int) -> str:
    (row,) = spool.rows([number])
    return str(row["key"])
