"""Numbers and intervals as text."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Cell = str | tuple[str, str] | tuple[str, str, str]
"""A cell of a table; a second text is shown smaller, in the tone `better` or `worse` if a third names one."""
Format = Callable[[Any], Any]
Interval = Mapping[str, float]
"""mean, low, high, n (data/intervals.py)."""


def number(value: Any) -> str:
    """About three significant digits; a dash if it is not a number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    digits = 0 if isinstance(value, int) else sum(abs(value) < limit for limit in (1, 10, 100))
    return f"{value:z,.{digits}f}"


def plain(value: float) -> str:
    """An integer without decimals, otherwise one decimal."""
    return f"{value:,.{0 if float(value).is_integer() else 1}f}"


def percent(value: Any) -> str:
    """A share in percent."""
    return f"{100 * value:z.1f}%" if isinstance(value, int | float) and math.isfinite(value) else "–"


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign, without one if it rounds to zero."""
    text = f"{value:+z.{digits}f}"
    return text.removeprefix("+") if float(text) == 0 else text


def share(part: float, whole: float) -> str:
    """A part of the whole in percent; a dash if the whole is 0."""
    return percent(part / whole) if whole else "–"


def change(before: Any, after: Any) -> str:
    """The change in percent of the first."""
    known = number(before) != "–" and number(after) != "–" and before
    return f"{signed(100 * (after / before - 1), 1)}%" if known else "–"


def counted(count: int, what: str) -> str:
    """`1 user`, `2 users`."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def spaced(name: str) -> str:
    """A key of a JSON file in words."""
    return name.replace("_", " ")


def between(found: Interval, form: Format = percent) -> str:
    """The ends of an interval."""
    return f"{form(found['low'])} to {form(found['high'])}"


def with_interval(found: Interval, form: Format = percent) -> str:
    """A mean, and its interval in parentheses."""
    return f"{form(found['mean'])} ({between(found, form)})"


def measured(found: Any, form: Format) -> Cell:
    """A number, or a mean with its interval."""
    return (form(found["mean"]), between(found, form)) if isinstance(found, Mapping) else form(found)


def in_points(difference: Any) -> str:
    """A difference of two shares in percentage points; a dash if it is not a number."""
    known = isinstance(difference, int | float) and math.isfinite(difference)
    return signed(100 * difference, 1) if known else "–"


def points(found: Interval) -> tuple[str, str]:
    """The difference of two shares in percentage points, and its interval."""
    mean, low, high = (in_points(found[key]) for key in ("mean", "low", "high"))
    return f"{mean} points", f"{low} to {high}"


def duration(seconds: float) -> str:
    """Wall time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def dig(tree: Any, path: str) -> Any:
    """The value at a dotted path in nested mappings, or None."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
