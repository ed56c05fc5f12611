"""The split by user: nobody in two places, and a place that nothing but the user's name decides."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Prompt
from data.split import split_by_user, split_of, user_position

USERS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), max_size=40)
FRACTION = st.floats(0.01, 0.49)


def prompts_of(users: list[str]) -> list[Prompt]:
    return [Prompt(prompt=f"prompt {number}", user_id=user) for number, user in enumerate(users)]


@settings(max_examples=60, deadline=None)
@given(users=USERS, valid=FRACTION, test=FRACTION, salt=st.text(st.characters(codec="utf-8"), max_size=3))
def test_no_user_is_in_two_splits_and_no_record_is_lost_or_reordered(users: list[str], valid: float, test: float, salt: str) -> None:
    records = prompts_of(users)
    splits = split_by_user(records, valid, test, salt)
    homes = {name: {record.user_id for record in rows} for name, rows in splits.items()}
    assert not homes["train"] & homes["valid"]
    assert not homes["train"] & homes["test"]
    assert not homes["valid"] & homes["test"]
    assert sorted(record.prompt for rows in splits.values() for record in rows) == sorted(record.prompt for record in records)
    for rows in splits.values():
        assert rows == [record for record in records if record in rows]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), users=USERS, more=USERS, valid=FRACTION, test=FRACTION)
def test_a_user_stays_where_he_is_when_data_is_added_or_reordered(
    data: st.DataObject, users: list[str], more: list[str], valid: float, test: float
) -> None:
    def homes(names: list[str]) -> dict[str, str]:
        return {record.user_id: name for name, rows in split_by_user(prompts_of(names), valid, test).items() for record in rows}

    before = homes(users)
    after = homes(data.draw(st.permutations(users + more)))
    assert {user: after[user] for user in before} == before


@settings(max_examples=60, deadline=None)
@given(user=st.text(st.characters(codec="utf-8"), min_size=1), test=FRACTION, grown=FRACTION, valid=FRACTION)
def test_a_larger_test_share_takes_users_in_and_lets_none_go(user: str, test: float, grown: float, valid: float) -> None:
    if split_of(user, valid, min(test, grown)) == "test":
        assert split_of(user, valid, max(test, grown)) == "test"


@pytest.mark.parametrize("salt", ["", "another"])
def test_each_split_gets_its_share_of_users(salt: str) -> None:
    count, shares = 20_000, {"train": 0.7, "valid": 0.1, "test": 0.2}
    found = Counter(split_of(f"user {number}", shares["valid"], shares["test"], salt) for number in range(count))
    for name, share in shares.items():
        assert abs(found[name] - count * share) < 4 * math.sqrt(count * share * (1 - share)), "four standard deviations of a binomial"


def test_another_salt_gives_an_independent_split() -> None:
    count = 20_000
    both = sum(split_of(f"user {n}", 0.1, 0.2, "a") == split_of(f"user {n}", 0.1, 0.2, "b") == "test" for n in range(count))
    assert abs(both - count * 0.04) < 4 * math.sqrt(count * 0.04 * 0.96)


def test_places_do_not_depend_on_the_process_or_the_version() -> None:
    """Numbers from `printf ':ann' | sha256sum`, its first 16 digits over 2**64: Python's own hash differs from process to process."""
    assert user_position("ann") == int("ecee25e4e2f2c56d", 16) / 2**64
    assert user_position("ann", "salt") == int("345ea2756680f846", 16) / 2**64
