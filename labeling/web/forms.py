"""The ranking form: from its fields to a label. Field names have the place of an answer in the task's record."""

from collections.abc import Mapping
from typing import Any

from labeling.ratings import FLAGS, NULLABLE, QUALITY
from labeling.web.store import Label

MAX_TEXT = 20_000
"""Maximum number of characters of a text that a labeler writes."""
MAX_FIELD = 1 << 18
"""Maximum size of a form field in bytes: `MAX_TEXT` characters take at most 12 bytes each when URL-encoded."""
SKIP_REASONS = ("unclear", "needs expertise", "personal data", "harmful", "other")


class FormError(ValueError):
    """What a labeler has to change, as a sentence."""


def label_of(form: Mapping[str, Any], answers: int, seconds: float) -> Label:
    """The label in a form. Raises FormError for one that cannot be saved.

    A label ranks at least two answers, has a reason for skipping, or a demonstration.
    """
    demonstration, reason = text(form, "demonstration"), text(form, "skipped")
    ranks = [rank_of(text(form, f"rank-{place}"), answers) for place in range(answers)]
    ratings = [rating_of(form, place) for place in range(answers)]
    count = sum(rank is not None for rank in ranks)
    if reason:
        if reason not in SKIP_REASONS:
            raise FormError("Choose a reason for skipping from the list.")
        if count or any(ratings):
            raise FormError("There are ranks or ratings and a reason for skipping: clear one of them.")
        return Label(skipped=reason, demonstration=demonstration, seconds=seconds)
    if count == 1 or not (count or demonstration):
        raise FormError("Rank at least two answers, or skip the task with a reason.")
    given = sorted({rank for rank in ranks if rank is not None})
    dense = [None if rank is None else given.index(rank) + 1 for rank in ranks]
    return Label(dense if count else [], ratings if any(ratings) else [], "", demonstration, seconds)


def form_of(label: Label) -> dict[str, str]:
    """The form that `label_of` reads as this label. Raises ValueError for an unknown field of a rating."""
    form = {"skipped": label.skipped, "demonstration": label.demonstration}
    form |= {f"rank-{place}": "" if rank is None else str(rank) for place, rank in enumerate(label.ranks)}
    for place, rating in enumerate(label.ratings):
        for name, value in rating.items():
            if name == "quality":
                form[f"quality-{place}"] = str(value)
            elif name in FLAGS and (value is None or isinstance(value, bool)):
                form[f"{name}-{place}"] = {None: "", False: "no", True: "yes"}[value]
            else:
                known = f"the flags are true, false or null, and their names are {', '.join(FLAGS)}"
                raise ValueError(f"a rating has {name!r}: {value!r}; {known}")
    return form


def draft_of(form: Mapping[str, Any], answers: int) -> Label:
    """What can be read of a form that `label_of` refuses, to show it again."""

    def read(name: str, highest: int) -> int | None:
        value = str(form.get(name, ""))
        known = len(value) <= 3 and value.isascii() and value.isdigit() and 1 <= int(value) <= highest
        return int(value) if known else None

    ranks = [read(f"rank-{place}", answers) for place in range(answers)]
    ratings: list[dict[str, Any]] = [
        {"quality": read(f"quality-{place}", max(QUALITY))} | flags_of(form, place) for place in range(answers)
    ]
    return Label(ranks, ratings, str(form.get("skipped", "")), str(form.get("demonstration", "")))


def rank_of(value: str, answers: int) -> int | None:
    """A rank from 1 to the number of answers; None for an empty field."""
    if not value:
        return None
    if len(value) > 3 or not value.isascii() or not value.isdigit() or not 1 <= int(value) <= answers:
        raise FormError(f"A rank is a number from 1 to {answers}.")
    return int(value)


def rating_of(form: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Quality and flags of an answer; empty if nothing was filled in.

    With a quality, a flag that was not ticked is false; one of NULLABLE is null unless it was answered. Flags alone are
    refused: only ticked ones would count, and their rates would be too high.
    """
    quality, flags = text(form, f"quality-{place}"), flags_of(form, place)
    if not quality and any(value is not None for value in flags.values()):
        raise FormError("Give a quality to every answer of which you set flags.")
    if not quality:
        return {}
    if quality not in map(str, QUALITY):
        raise FormError("Quality is a number from 1 to 7.")
    return {"quality": int(quality)} | {
        name: value if name in NULLABLE else bool(value) for name, value in flags.items()
    }


def flags_of(form: Mapping[str, Any], place: int) -> dict[str, bool | None]:
    """The flags that were set; None for others."""
    return {name: {"": None, "no": False}.get(text(form, f"{name}-{place}"), True) for name in FLAGS}


def text(form: Mapping[str, Any], name: str) -> str:
    """A field as text, stripped; empty if it is missing. Browsers send line breaks as CR LF."""
    value = form.get(name, "")
    value = value.replace("\r\n", "\n") if isinstance(value, str) else value
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise FormError(f"The text is too long: at most {MAX_TEXT:,} characters.")
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
        raise FormError("The text has characters that cannot be stored.")
    return value.strip()
