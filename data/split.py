"""Train, validation and test split by a hash of the user id, so that no user is in two (Ouyang et al. 2022, section
3.2) and a user stays in a split when data are reordered or added.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from data.records import SPLITS


def hash64(text: str) -> int:
    """64 bits that depend on nothing but the text: not on the process, the machine or the version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def user_hash(user_id: str, salt: str = "") -> int:
    """What a user's split comes from; another salt gives an independent split."""
    return hash64(f"{salt}:{user_id}")


def split_of(user_id: str, valid_fraction: float, test_fraction: float, salt: str = "") -> str:
    """`test`, `valid` or `train`. Growing a fraction moves users between neighbours only."""
    (place,) = splits_of(np.array([user_hash(user_id, salt)], dtype=np.uint64), valid_fraction, test_fraction)
    return SPLITS[int(place)]


def splits_of(hashes: NDArray[np.uint64], valid_fraction: float, test_fraction: float) -> NDArray[np.int8]:
    """Places in SPLITS of N users by their hashes: as a fraction of 2^64 the hash is a position in [0, 1]."""
    positions = hashes / 2.0**64
    train, valid, test = (SPLITS.index(name) for name in ("train", "valid", "test"))
    return np.select(
        [positions < test_fraction, positions < test_fraction + valid_fraction], [test, valid], train
    ).astype(np.int8)
