"""The split by user: nobody in two places, and a place that nothing but the user's name decides."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.split import split_of, user_hash

FRACTION = st.floats(0.01, 0.49)


@settings(max_examples=60, deadline=None)
@given(user=st.text(st.characters(codec="utf-8"), min_size=1), test=FRACTION, grown=FRACTION, valid=FRACTION)
def test_a_larger_test_share_takes_users_in_and_lets_none_go(
    user: str, test: float, grown: float, valid: float
) -> None:
    if split_of(user, valid, min(test, grown)) == "test":
        assert split_of(user, valid, max(test, grown)) == "test"


@pytest.mark.parametrize("salt", ["", "another"])
def test_each_split_gets_its_share_of_users(salt: str) -> None:
    count, shares = 20_000, {"train": 0.7, "valid": 0.1, "test": 0.2}
    found = Counter(split_of(f"user {number}", shares["valid"], shares["test"], salt) for number in range(count))
    for name, share in shares.items():
        assert abs(found[name] - count * share) < 4 * math.sqrt(count * share * (1 - share)), (
            "four standard deviations of a binomial"
        )


def test_another_salt_gives_an_independent_split() -> None:
    count = 20_000
    both = sum(
        split_of(f"user {n}", 0.1, 0.2, "a") == split_of(f"user {n}", 0.1, 0.2, "b") == "test" for n in range(count)
    )
    assert abs(both - count * 0.04) < 4 * math.sqrt(count * 0.04 * 0.96)


def test_places_do_not_depend_on_the_process_or_the_version() -> None:
    """Numbers from `printf ':ann' | sha256sum`, its first 16 digits: Python's own hash differs from process to
    process.
    """
    assert user_hash("ann") == int("ecee25e4e2f2c56d", 16)
    assert user_hash("ann", "salt") == int("345ea2756680f846", 16)


def test_the_split_is_where_the_hash_falls_between_the_fractions() -> None:
    """ann's hash is 0.9255 of 2**64, with `salt` 0.2046: test comes first, then valid, then train."""
    assert [split_of("ann", 0.1, test) for test in (0.1, 0.82, 0.83, 0.92, 0.93)] == [
        "train",
        "train",
        "valid",
        "valid",
        "test",
    ]
    assert [split_of("ann", 0.1, test, "salt") for test in (0.1, 0.11, 0.21)] == ["train", "valid", "test"]
