"""Ranges as annotations: `lr: Annotated[float, Above(0)]`, and the walker that checks them.

NaN and infinities are never in range.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Between:
    """The value lies in [low, high]."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"must lie between {self.low:g} and {self.high:g}."


@dataclass(frozen=True)
class Above:
    """The value is greater than a bound."""

    bound: float

    def __contains__(self, value: float) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"must be above {self.bound:g}."


@dataclass(frozen=True)
class AtLeast:
    """The value is at least a bound."""

    bound: float

    def __contains__(self, value: float) -> bool:
        return value >= self.bound

    def __str__(self) -> str:
        return f"must be at least {self.bound:g}." if self.bound else "must not be negative."


def words_of(hint: Any) -> list[str]:
    """List the words that may stand in place of a number, as in ``float | Literal["auto"]``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return words_of(arguments[0])
    if origin not in (types.UnionType, typing.Union):
        return []
    return [
        word
        for each in arguments
        if typing.get_origin(each) is typing.Literal
        for word in typing.get_args(each)
    ]


def out_of_range(value: Any, hint: Any = None, name: str = "") -> Iterator[str]:
    """Find the values that their annotations rule out.

    Args:
        value: a dataclass, which is searched with everything in it, or the value of a field.
        hint: the annotation of `value`; not needed for a dataclass.
        name: the dotted name of `value`.

    Yields:
        One sentence per value, such as "ppo.lr = -1: must be above 0." None is always in range.
    """
    if value is None:
        return
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and arguments[0] is float and isinstance(value, str):
        return  # a word that stands for a number
    if dataclasses.is_dataclass(value):
        for field_name, field_hint in _hints(type(value)).items():
            dotted = f"{name}.{field_name}" if name else field_name
            yield from out_of_range(getattr(value, field_name), field_hint, dotted)
    elif origin is Annotated:
        for marker in arguments[1:]:
            if not isinstance(marker, Between | Above | AtLeast):
                continue
            if value in (math.inf, -math.inf):
                yield f"{name} = {value}: {marker} It must be finite, too."
            elif value not in marker:
                yield f"{name} = {value}: {marker}"
        yield from out_of_range(value, arguments[0], name)
    elif origin in (types.UnionType, typing.Union):
        for argument in arguments:
            yield from out_of_range(value, argument, name)
    elif origin is tuple and arguments[-1] is Ellipsis:
        for item in value:
            yield from out_of_range(item, arguments[0], name)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The annotations of a dataclass, markers included."""
    return typing.get_type_hints(kind, include_extras=True)
