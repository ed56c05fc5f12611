"""Train, validation and test split by user, so that no user is in two (Ouyang et al. 2022, section 3.2).

The place of a user is a hash of the user id: it stays the same under reruns, under another order and when data is added.
"""

import hashlib
from collections.abc import Iterable

from data.records import RecordT


def user_position(user_id: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on nothing but the user id and the salt."""
    digest = hashlib.sha256(f"{salt}:{user_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(user_id: str, valid_fraction: float, test_fraction: float, salt: str = "") -> str:
    """`test`, `valid` or `train`. Growing a fraction moves users between neighbours only."""
    position = user_position(user_id, salt)
    if position < test_fraction:
        return "test"
    return "valid" if position < test_fraction + valid_fraction else "train"


def split_by_user(records: Iterable[RecordT], valid_fraction: float, test_fraction: float, salt: str = "") -> dict[str, list[RecordT]]:
    """Records by split, in their given order."""
    splits: dict[str, list[RecordT]] = {"train": [], "valid": [], "test": []}
    for record in records:
        splits[split_of(record.user_id, valid_fraction, test_fraction, salt)].append(record)
    return splits
