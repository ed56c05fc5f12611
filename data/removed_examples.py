"""Why records were removed, and a few of them as examples, so that a rule that removes the wrong ones is noticed.

Texts are shortened, and personal data in them is masked, whichever rule removed them. Of records removed for personal
data only the kinds that were found are shown.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from data.annotate import full_text
from data.build import Built
from data.config import DataConfig
from data.few_shot import whole_text
from data.personal_data import Finding
from data.presidio import detector
from data.records import SPLITS, FewShot, Prompt
from data.table import Mask, Table

SHOWN = 240
"""Characters of a text."""
LONGEST = 100_000
"""Characters of two texts that are searched for the place where they differ."""
MOST_CANDIDATES = 10_000
"""Records that are compared in the search for a near-duplicate; only very short texts have more candidates."""
TRAIN = SPLITS.index("train")
Find = Callable[[str], list[Finding]]


def meaning(rule: str, config: DataConfig) -> str:
    """The meaning of a rule, without a full stop."""
    group = "user" if config.group_by == "user" else "organisation"
    return {
        "near_duplicate": f"shares its first {config.near_duplicate_fraction:.0%} with an earlier prompt; case, "
        "spaces and punctuation aside",
        "repeated": "the same as an earlier one",
        "over_cap": f"beyond the first {config.max_prompts_per_group} prompts of its {group}",
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
    }.get(rule, rule.replace("_", " "))


def finder(config: DataConfig) -> Find:
    """The detector that masks personal data in what is shown: the run's, or the rules if the run has none."""
    return detector("rules" if config.personal_data == "off" else config.personal_data)


def examples(built: Built, config: DataConfig, find: Find) -> list[dict[str, str]]:
    """Examples of each rule that removed any record: `kind`, `rule`, `text`, a `note` and the near-duplicate `twin`."""
    found = []
    for kind, table in (("prompts", built.pool), ("rankings", built.rankings)):
        for rule in table.rules:
            for number in table.examples(rule):
                example = Removed(built, table, rule, number).example(config.near_duplicate_fraction, find)
                found.append({"kind": kind, "rule": rule} | example)
    return found


@dataclass(frozen=True)
class Removed:
    """A record that a rule removed."""

    built: Built
    table: Table
    rule: str
    number: int

    def example(self, fraction: float, find: Find) -> dict[str, str]:
        """Its text with a note and, if it was removed for a near-duplicate, that one's text."""
        (record,) = self.table.read([self.number])
        if self.rule == "personal_data":
            kinds = Counter(finding.entity for finding in find(full_text(record)))
            named = ", ".join(f"{kind} × {count}" if count > 1 else kind for kind, count in kinds.items())
            return {"text": named or "not found again in the joined text", "note": "", "twin": ""}
        notes = self.table.notes.loc[self.number]
        note = {
            "prompt_too_long": f"{notes['prompt_tokens']:,} tokens",
            "answer_too_long": f"{notes['answer_tokens']:,} tokens of answer",
            "other_language": str(notes["language"]),
        }.get(self.rule, "")
        twin = self.twin(fraction)
        if twin is None:
            return {"text": shown(_text(record), find), "note": note, "twin": ""}
        text, other = shown_beside(_text(record), _text(twin), find)
        return {"text": text, "note": note, "twin": other}

    def twin(self, fraction: float) -> Prompt | None:
        """The near-duplicate for which the record was removed; None for other rules, or if none is left."""
        places: list[tuple[Table, Mask]] = []
        if self.rule == "near_duplicate":
            before = np.arange(self.table.count) < self.number
            # The near-duplicate may have been removed later, by another rule.
            places = [(self.table, before & self.table.kept()), (self.table, before)]
        elif self.rule == "evaluation_prompt":
            tables = (self.built.pool, self.built.rankings)
            places = [(other, other.kept() & (other.notes["split"] != TRAIN).to_numpy()) for other in tables]
        for other, allowed in places:
            if allowed.any() and (found := twin(other, self.table.key(self.number), fraction, allowed)) is not None:
                return next(other.read([found]))
        return None


def shown(text: str, find: Find) -> str:
    """The beginning of a text, with personal data replaced by their kind."""
    # Masked before it is cut, because half a number is not recognised.
    return cut(masked(text[: 4 * SHOWN], find), 0)


def shown_beside(text: str, other: str, find: Find) -> tuple[str, str]:
    """Two texts with a common beginning, both cut so that the place where they differ is visible."""
    one, two = masked(text[:LONGEST], find), masked(other[:LONGEST], find)
    parting = next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
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


def twin(table: Table, key: str, fraction: float, allowed: Mask) -> int | None:
    """The first allowed record that is a near-duplicate of the key, by exactly the rule of data/near_duplicates.py."""
    whole = key.encode()
    # The cut may be inside a character, which is then ignored: the prefix only finds candidates.
    prefix = whole[: math.ceil(fraction * len(whole))].decode(errors="ignore")
    for number in itertools.islice(_starting_with(table, prefix), MOST_CANDIDATES):
        if allowed[number] and near(whole, table.key(number).encode(), fraction):
            return number
    return None


def _starting_with(table: Table, prefix: str) -> Iterator[int]:
    start = 0
    for keys in table.keys(np.ones(table.count, dtype=bool)):
        hits = np.flatnonzero(pc.starts_with(keys, pattern=prefix).to_numpy(zero_copy_only=False))
        yield from (start + int(hit) for hit in hits)
        start += len(keys)


def near(one: bytes, other: bytes, fraction: float) -> bool:
    """Whether the common prefix is at least that fraction of the longer one."""
    threshold = math.ceil(fraction * max(len(one), len(other)))
    return one[:threshold] == other[:threshold]


def _text(record: Prompt) -> str:
    return whole_text(record) if isinstance(record, FewShot) else record.text
