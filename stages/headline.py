"""A stage's headline numbers as one line of text."""

from collections.abc import Mapping
from typing import Any

SHARES = ("complete", "tied_pairs", "ended", "win_rate", "accuracy", "best_baseline")
"""Headline numbers whose names contain one of these words are shares."""
UNITS = {"kl": " nats", "seconds_before_evaluation": " s"}


def summary(headline: Mapping[str, Any]) -> str:
    """A stage's headline numbers in one line, with units; intervals are in parentheses."""
    shown = []
    for name, value in headline.items():
        whole, _, end = name.rpartition("_")
        if end not in ("low", "high") or whole not in headline:
            low, high = headline.get(f"{name}_low"), headline.get(f"{name}_high")
            interval = "" if low is None else f" ({with_unit(name, low)} to {with_unit(name, high)})"
            shown.append(f"{name} {with_unit(name, value)}{interval}")
    return "  ".join(shown)


def with_unit(name: str, value: Any) -> str:
    """Formats a headline number: shares in percent, and no exponents for large numbers. Settings are listed."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {with_unit(key, setting)}" for key, setting in value.items())
    if not isinstance(value, float):
        return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    if name.endswith("above_best_baseline"):
        return f"{100 * value:+z.1f} points"
    if any(share in name for share in SHARES):
        return f"{value:z.1%}"
    return f"{value:,.0f}{UNITS.get(name, '')}" if abs(value) >= 1000 else f"{value:z.4g}{UNITS.get(name, '')}"
