"""Near-duplicates by long common prefix, without comparing pairs (Ouyang et al. 2022, appendix A.2).

Two texts are near-duplicates if their common prefix is at least a fraction f of the longer one. The *threshold* of a
text of n bytes is ceil(f n). The prefix of the longer text up to its threshold is then one of the shorter text's
prefixes between its threshold and its end, so hashes of these prefixes are all that is compared, and only those that
are the threshold prefix of some text are kept.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Texts = Callable[[], Iterable[str]]
"""Starts reading the same texts from the beginning."""
Mask = NDArray[np.bool_]
IGNORED = re.compile(r"""(?:[\s.,;:!?'"¡¿“”‘’„«»…–—。，、！？；：·\u200b-\u200d\u2060\ufeff]|-{2,})+""")


def comparable(text: str) -> str:
    """The text without case, spaces, punctuation between words, and different encodings of accents.

    Symbols and brackets stay: 2 + 2 is not 2 * 2, and f(x) is not f x.
    """
    return IGNORED.sub(" ", unicodedata.normalize("NFC", text.lower())).strip()


def near(one: str, other: str, fraction: float) -> bool:
    """Whether two texts are near-duplicates."""
    left, right = one.encode(), other.encode()
    threshold = math.ceil(fraction * max(len(left), len(right)))
    return left[:threshold] == right[:threshold]


def distinct(texts: Texts, fraction: float) -> Mask:
    """True for each text that is no near-duplicate of an earlier true one. Reads the texts twice."""
    known = {next(prefix_hashes(text, fraction)) for text in texts()}
    thresholds, prefixes, keep = set[bytes](), set[bytes](), list[bool]()
    for text in texts():
        hashes = list(prefix_hashes(text, fraction))
        # Whichever of two near-duplicates is longer, its threshold prefix is a prefix of the other.
        is_new = hashes[0] not in prefixes and thresholds.isdisjoint(hashes)
        if is_new:
            thresholds.add(hashes[0])
            prefixes |= known.intersection(hashes)
        keep.append(is_new)
    return np.array(keep, dtype=bool)


def alike(texts: Texts, candidates: Mask, others: Mask, fraction: float) -> Mask:
    """True for each candidate that is a near-duplicate of one of the others. Reads the texts twice."""
    thresholds = [next(prefix_hashes(text, fraction)) for text in texts()]
    of_candidates = {thresholds[row] for row in np.flatnonzero(candidates)}
    of_others = {thresholds[row] for row in np.flatnonzero(others)}
    prefixes = set[bytes]()
    found = np.zeros(len(thresholds), dtype=bool)
    for row, text in enumerate(texts()):
        hashes = list(prefix_hashes(text, fraction))
        found[row] = candidates[row] and not of_others.isdisjoint(hashes)
        if others[row]:
            prefixes |= of_candidates.intersection(hashes)
    return found | (candidates & np.array([threshold in prefixes for threshold in thresholds], dtype=bool))


def prefix_hashes(text: str, fraction: float) -> Iterator[bytes]:
    """64-bit hashes of the text's prefixes, from its threshold to its end."""
    data = text.encode()
    threshold = math.ceil(fraction * len(data))
    running = hashlib.blake2b(data[:threshold], digest_size=8)
    yield running.digest()
    for place in range(threshold, len(data)):
        running.update(data[place : place + 1])
        yield running.digest()
