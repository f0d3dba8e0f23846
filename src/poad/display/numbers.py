"""Numbers as text; whatever is unknown or not finite becomes a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

DASH = "–"


def number(value: float | None, form: str = ".3f") -> str:
    """Format a number by a format specification."""
    return DASH if value is None or not math.isfinite(value) else format(value, form)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share between 0 and 1 as a percentage."""
    return number(value, f".{digits}%")


def compact(value: float | None) -> str:
    """Format a number of any magnitude with three digits, or as a whole number from 100 on."""
    return number(value, ",.0f" if value is not None and abs(value) >= 100 else ".3g")


def counted(count: int, noun: str) -> str:
    """Write a number of things: "1 turn", "2,000 turns"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def interval(values: Sequence[float | None], form: str = ".3f") -> str:
    """Format (estimate, low, high) as ``0.94 [0.49, 1.00]``; without bounds, the estimate alone."""
    estimate, low, high = (number(value, form) for value in values)
    return estimate if DASH in (low, high) else f"{estimate} [{low}, {high}]"


def bounds(values: tuple[float, float] | None) -> str:
    """Format the bounds of a success rate as ``94.2% – 96.8%``."""
    return DASH if values is None else " – ".join(map(percent, values))


def p_value(value: float | None) -> str:
    """Format a p-value with three decimals."""
    return "<.001" if value is not None and value < 0.001 else number(value)
