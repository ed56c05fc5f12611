"""Restricted number types for configuration fields. A field's type gives its range; `check_numbers` enforces it.

They annotate int and float. To mypy the restricted types of jsonargparse.typing are `Any`, and their values are
instances of subclasses, which would get into pickled optimizer states that torch refuses to load.
"""

import dataclasses
import math
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """The range of numbers that a field allows; None is no bound."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        reaches = (self.at_least is None or value >= self.at_least) and (self.above is None or value > self.above)
        return (
            reaches and (self.at_most is None or value <= self.at_most) and (self.below is None or value < self.below)
        )

    def __repr__(self) -> str:
        """The text for error messages and --help: `at least 0 and below 1`."""
        bounds = [(name, bound) for name, bound in dataclasses.asdict(self).items() if bound is not None]
        return " and ".join(f"{name.replace('_', ' ')} {bound:.12g}" for name, bound in bounds)


PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
"""NumPy takes no other, and transformers' Trainer seeds it."""
AtLeastTwo = Annotated[int, Range(at_least=2)]
AtLeastThree = Annotated[int, Range(at_least=3)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(at_least=0)]
OpenUnitInterval = Annotated[float, Range(above=0, below=1)]
ClosedUnitInterval = Annotated[float, Range(at_least=0, at_most=1)]
FractionBelowOne = Annotated[float, Range(at_least=0, below=1)]
FractionAboveZero = Annotated[float, Range(above=0, at_most=1)]


def number_type(kind: Any) -> tuple[type, Range] | None:
    """(int or float, the range) of a field's type, which may be a union with None; None if it is not a number."""
    for member in (kind, *get_args(kind)):
        if member in (int, float):
            return member, Range()
        if get_origin(member) is Annotated:
            base, allowed = get_args(member)
            return base, allowed
    return None


def check_numbers(config: Any, name: str = "") -> None:
    """Raises ValueError for a number that its field's type does not allow.

    `config` is a dataclass and `name` its dotted name. Nested sections, lists and mappings are checked too.
    """
    for item in dataclasses.fields(config):
        _check(f"{name}.{item.name}" if name else item.name, getattr(config, item.name), item.type)


def _check(name: str, value: Any, kind: Any) -> None:
    if kind is Any:
        return
    if dataclasses.is_dataclass(value):
        check_numbers(value, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check(f"{name}.{key}", inner, get_args(kind)[1])
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(f"{name}[{index}]", inner, get_args(kind)[0])
    elif (number := number_type(kind)) is not None:
        optional = NoneType in get_args(kind)
        if (value is not None or not optional) and (allowed := _broken_rule(value, *number)):
            raise ValueError(f"{name}={value!r} must be {allowed}{', or null' if optional else ''}")


def _broken_rule(value: Any, base: type, allowed: Range) -> str:
    """What the value must be, if it is not; empty if it is allowed."""
    bounds = str(allowed)
    if isinstance(value, bool) or not isinstance(value, int if base is int else (int, float)):
        kind = "a whole number" if base is int else "a number"
    elif isinstance(value, float) and not math.isfinite(value):
        kind = "a finite number"
    else:
        return "" if value in allowed else bounds
    return f"{kind}, {bounds}" if bounds else kind
