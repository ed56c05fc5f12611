"""Why records were removed, and a few of them as examples, so that a rule that removes the wrong ones is noticed.

Texts are shortened, and personal data in them is masked. Of records removed for personal data only the kinds that were
found are shown.
"""

from collections import Counter
from collections.abc import Callable
from itertools import takewhile

import numpy as np

from data.annotate import full_text
from data.build import Built
from data.config import DataConfig
from data.few_shot import whole_text
from data.near_duplicates import near
from data.personal_data import Finding
from data.presidio import detector
from data.records import FewShot, Prompt
from data.table import Mask, Table

SHOWN = 240
"""Characters of a text."""
LONGEST = 100_000
"""Characters of two texts that are searched for the place where they differ."""
Find = Callable[[str], list[Finding]]


def meaning(rule: str, config: DataConfig) -> str:
    """The meaning of a rule, without a full stop."""
    return {
        "near_duplicate": f"shares its first {config.near_duplicate_fraction:.0%} with an earlier prompt; case, "
        "spaces and punctuation aside",
        "repeated": "the same as an earlier one",
        "over_cap": f"beyond the first {config.max_prompts_per_group} prompts of its {config.group_by}",
        "other_language": f"in another language than {', '.join(config.languages)}"
        if config.languages
        else "in a language not in data.languages, which is empty",
        "prompt_too_long": f"prompt of more than {config.max_prompt_tokens:,} tokens",
        "answer_too_long": f"an answer of more than {config.max_answer_tokens:,} tokens",
        "personal_data": "personal data in a training row",
        "identical_answers": "no answer is ranked above a different one, only above one with the same text",
        "evaluation_prompt": "near-duplicate of an evaluation prompt of another split (training against validation and "
        "test, validation against test)",
        "over_mixture_share": "thinned to the sources' weights",
    }[rule]


def finder(config: DataConfig) -> Find:
    """The detector that masks personal data in what is shown: the run's, or the rules if the run has none."""
    return detector("rules" if config.personal_data == "off" else config.personal_data)


def examples(built: Built, config: DataConfig, find: Find) -> list[dict[str, str]]:
    """Examples of each rule that removed any record: `kind`, `rule`, `text`, a `note` and the near-duplicate `twin`."""
    found = []
    for kind, table in (("prompts", built.pool), ("rankings", built.rankings)):
        for rule in table.rules:
            for number in table.examples(rule):
                places = twin_places(built, table, rule, number)
                twin = find_twin(places, table.key(number), config.near_duplicate_fraction)
                found.append({"kind": kind, "rule": rule} | example(table, rule, number, twin, find))
    return found


def example(table: Table, rule: str, number: int, twin: Prompt | None, find: Find) -> dict[str, str]:
    """The text of a removed record with a note and, if it was removed for a near-duplicate, that one's text."""
    (record,) = table.read([number])
    if rule == "personal_data":
        kinds = Counter(finding.entity for finding in find(full_text(record)))
        named = ", ".join(f"{kind} × {count}" if count > 1 else kind for kind, count in kinds.items())
        return {"text": named or "not found again in the joined text", "note": "", "twin": ""}
    notes = table.notes.loc[number]
    note = {
        "prompt_too_long": f"{notes['prompt_tokens']:,} tokens",
        "answer_too_long": f"{notes['answer_tokens']:,} tokens of answer",
        "other_language": str(notes["language"]),
    }.get(rule, "")
    if twin is None:
        return {"text": shown(_text(record), find), "note": note, "twin": ""}
    text, other = shown_beside(_text(record), _text(twin), find)
    return {"text": text, "note": note, "twin": other}


def twin_places(built: Built, table: Table, rule: str, number: int) -> list[tuple[Table, Mask]]:
    """Where the near-duplicate may be for which a record was removed; empty for other rules."""
    if rule == "near_duplicate":
        before = np.arange(table.count) < number
        # The near-duplicate may have been removed later, by another rule.
        return [(table, before & table.kept()), (table, before)]
    if rule == "evaluation_prompt":
        return [(other, other.kept("valid") | other.kept("test")) for other in (built.pool, built.rankings)]
    return []


def find_twin(places: list[tuple[Table, Mask]], key: str, fraction: float) -> Prompt | None:
    """The first record there that is a near-duplicate of the key; None if there is none."""
    for table, allowed in places:
        keys = zip(np.flatnonzero(allowed), table.keys(allowed), strict=True)
        if (number := next((number for number, other in keys if near(key, other, fraction)), None)) is not None:
            return next(table.read([int(number)]))
    return None


def shown(text: str, find: Find) -> str:
    """The beginning of a text, with personal data replaced by their kind."""
    # Masked before it is cut, because half a number is not recognized.
    return cut(masked(text[: 4 * SHOWN], find), 0)


def shown_beside(text: str, other: str, find: Find) -> tuple[str, str]:
    """Two texts with a common beginning, both cut so that the place where they differ is visible."""
    one, two = masked(text[:LONGEST], find), masked(other[:LONGEST], find)
    parting = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
    return cut(one, parting), cut(two, parting)


def cut(text: str, place: int) -> str:
    """The beginning of a text and, if that place is beyond it, the text around it."""
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


def _text(record: Prompt) -> str:
    return whole_text(record) if isinstance(record, FewShot) else record.text
