"""The paper's rules for prompts, one pure function each, that keep or drop and never change a record (section 3.2, appendix A.2)."""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from data.records import Prompt, RecordT

NOT_A_WORD = re.compile(r"\W+")


def cap_per_user(records: Sequence[RecordT], limit: int) -> list[RecordT]:
    """At most `limit` prompts of a user, the first ones (section 3.2: 200)."""
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for record in records:
        seen[record.user_id] += 1
        if seen[record.user_id] <= limit:
            kept.append(record)
    return kept


def drop_near_duplicates(records: Sequence[RecordT], shared_fraction: float) -> list[RecordT]:
    """Drops a prompt whose common prefix with an earlier one kept is `shared_fraction` of the longer (section 3.2; the fraction is ours).

    Case, punctuation and spaces do not count. Kept prompts are held sorted: those that share a long prefix with the next one surround its place.
    """
    kept, keys = [], list[str]()
    for record in records:
        key = NOT_A_WORD.sub(" ", record.text.lower()).strip()
        place = bisect_left(keys, key)
        before, after = (keys[i] for i in range(place - 1, -1, -1)), (keys[i] for i in range(place, len(keys)))
        if not _any_alike(key, before, shared_fraction) and not _any_alike(key, after, shared_fraction):
            keys.insert(place, key)
            kept.append(record)
    return kept


def drop_long(records: Sequence[RecordT], count_tokens: Callable[[Prompt], int], limit: int) -> list[RecordT]:
    """Drops prompts over `limit` tokens of the policy; a prompt is never cut silently (appendix C: 1,000 for prompts)."""
    return [record for record in records if count_tokens(record) <= limit]


def _any_alike(key: str, others: Iterable[str], shared_fraction: float) -> bool:
    """Whether one of the others, given in falling order of their common prefix with the key, is its near-duplicate."""
    for other in others:
        common = _common_prefix(key, other)
        if common < shared_fraction * len(key):
            return False
        if common >= shared_fraction * len(other):
            return True
    return False


def _common_prefix(left: str, right: str) -> int:
    length = min(len(left), len(right))
    for index in range(length):
        if left[index] != right[index]:
            return index
    return length
