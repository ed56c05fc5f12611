"""The split by user: nobody in two places, and a place that nothing but the user's name decides."""

from data.split import split_of, user_hash


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
