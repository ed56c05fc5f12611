"""Near-duplicates by long common prefix, at any scale (Ouyang et al. 2022, appendix A.2).

Two prompts are near-duplicates when their common prefix is at least a fraction f of the longer one. With ceil(f n) the
*threshold* of a text of length n, that is the same as: the first ceil(f n) bytes of the longer one stand at the start
of the shorter one too. So every text needs comparing by hashes of its prefixes from its threshold to its end alone, and
of those only by the ones that equal somebody's threshold hash. Time and memory grow with the number of texts: no pair
is ever looked at, and no text is kept.

Hashes are 64-bit sums of a weight for each place times a number for each byte (multilinear hashing). Two different
prefixes among a million texts of 200 bytes collide with a probability of about 1e-6, and then a prompt is dropped that
had no twin.

Shapes: N texts; lengths in bytes of UTF-8, after `comparable`.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Texts = Callable[[], Iterable[pa.StringArray]]
"""Starts reading the same texts from the beginning; each chunk some of them, in order."""
Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]

CHUNK_BYTES = 2**21
"""Hashed at a time; each byte takes about 50 while it is."""
IGNORED = re.compile(r"""(?:[\s.,;:!?'"¡¿“”‘’„«»…–—。，、！？；：·\u200b-\u200d\u2060\ufeff]|-{2,})+""")


def comparable(text: str) -> str:
    """The text without what does not make it another prompt: case, spaces, marks between words, and how accents are
    encoded.

    Symbols and brackets stay: 2 + 2 is not 2 * 2, and f(x) is not f x.
    """
    return IGNORED.sub(" ", unicodedata.normalize("NFC", text.lower())).strip()


def distinct(texts: Texts, fraction: float) -> Mask:
    """True for each of the N texts that is no near-duplicate of an earlier true one. Reads the texts twice."""
    thresholds = threshold_hashes(texts, fraction)
    known = np.unique(thresholds)
    keep = np.ones(len(thresholds), dtype=bool)
    kept_thresholds: set[int] = set()
    kept_prefixes: set[int] = set()
    row = 0
    for count, rows, hashes in _known_prefixes(texts, fraction, known):
        own = thresholds[row : row + count].tolist()
        starts = np.searchsorted(rows, np.arange(count + 1)).tolist()
        prefixes = hashes.tolist()
        for index, threshold in enumerate(own):
            mine = prefixes[starts[index] : starts[index + 1]]
            # The earlier twin is the longer of the two, or it is not: whichever is longer, its threshold is the other's
            # prefix.
            if threshold in kept_prefixes or not kept_thresholds.isdisjoint(mine):
                keep[row + index] = False
            else:
                kept_thresholds.add(threshold)
                kept_prefixes.update(mine)
        row += count
    return keep


def alike(texts: Texts, candidates: Mask, others: Mask, fraction: float) -> Mask:
    """True for each candidate that is a near-duplicate of one of the others; both are masks over the N texts. Reads the
    texts twice.
    """
    thresholds = threshold_hashes(texts, fraction)
    candidates_known, others_known = np.unique(thresholds[candidates]), np.unique(thresholds[others])
    found = np.zeros(len(thresholds), dtype=bool)
    reached: list[Hashes] = []
    row = 0
    for count, rows, hashes in _known_prefixes(texts, fraction, np.union1d(candidates_known, others_known)):
        of_candidate = candidates[row + rows]
        found[row + rows[of_candidate & _among(hashes, others_known)]] = True
        reached.append(np.unique(hashes[others[row + rows]]))
        row += count
    if reached:
        found |= candidates & _among(thresholds, np.unique(np.concatenate(reached)))
    return found


def threshold_hashes(texts: Texts, fraction: float) -> Hashes:
    """The hash of the first ceil(fraction x length) bytes of each of the N texts."""
    parts = [np.empty(0, dtype=np.uint64)]
    for data, offsets in _chunks(texts):
        sums = _running_sums(data, offsets)
        lengths = np.diff(offsets)
        parts.append(sums[offsets[:-1] + _threshold(lengths, fraction)] - sums[offsets[:-1]])
    return np.concatenate(parts)


def _known_prefixes(texts: Texts, fraction: float, known: Hashes) -> Iterator[tuple[int, NDArray[np.int64], Hashes]]:
    """By chunk: how many texts it holds, and (row in the chunk, hash) of each prefix, from threshold to end, whose hash
    is known.
    """
    for data, offsets in _chunks(texts):
        sums = _running_sums(data, offsets)
        starts, lengths = offsets[:-1], np.diff(offsets)
        first = _threshold(lengths, fraction)
        counts = lengths - first + 1
        rows = np.repeat(np.arange(len(lengths)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        hashes = sums[(starts + first)[rows] + within] - sums[starts][rows]
        hit = _among(hashes, known)
        yield len(lengths), rows[hit], hashes[hit]


def _threshold(lengths: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    return np.ceil(fraction * lengths).astype(np.int64)


def _among(hashes: Hashes, known: Hashes) -> Mask:
    if not len(known):
        return np.zeros(len(hashes), dtype=bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found: Mask = known[places] == hashes
    return found


def _running_sums(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Hashes:
    """Sums over all bytes so far, one more than there are bytes: the difference of two within a text is the hash of
    what lies between.
    """
    places = np.arange(len(data)) - np.repeat(offsets[:-1], np.diff(offsets))
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(BYTE_NUMBERS[data] * _mixed(places.astype(np.uint64)), out=sums[1:])
    return sums


def _mixed(x: Hashes) -> Hashes:
    """The splitmix64 generator's x-th number (Steele et al. 2014), made odd: a fixed random weight for each place."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x ^ (x >> np.uint64(31))) | np.uint64(1)


BYTE_NUMBERS: Hashes = _mixed(np.arange(2**32, 2**32 + 256, dtype=np.uint64))


def _chunks(texts: Texts) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """(bytes, offsets from 0, one more than there are texts) in pieces of about CHUNK_BYTES, never cutting a text."""
    for array in texts():
        if not len(array):
            continue
        _, offset_buffer, data_buffer = array.buffers()
        offsets = np.frombuffer(offset_buffer, dtype=np.int32)[array.offset : array.offset + len(array) + 1].astype(
            np.int64
        )
        data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.empty(0, dtype=np.uint8)
        start = 0
        while start < len(array):
            end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + CHUNK_BYTES, side="right")) - 1)
            yield data[offsets[start] : offsets[end]], offsets[start : end + 1] - offsets[start]
            start = end
