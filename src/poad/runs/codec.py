"""Records as JSON: frozen dataclasses to plain values and back.

A record is written with one key per field, in the order of its fields. A field that has a default
is left out while it equals that default. NaN and infinities become null, and null reads as NaN
where a field is a ``float``. A field that is stored exactly keeps what JSON cannot hold as YAML.
Reading is strict: a missing, unknown or wrong key is an error that
names the file and the key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import date
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from poad.config import parse_value, write_value
from poad.errors import ConfigError, RunError

T = TypeVar("T")
Reader = Callable[[Any], Any]
_YAML = "yaml"
"""The only key of a JSON object that holds another value as YAML."""


def stored(
    key: str = "", *, flat: bool = False, null: float = math.nan, exact: bool = False
) -> dict[str, Any]:
    """Field metadata for :func:`dataclasses.field` that changes how a field is stored.

    Args:
        key: the key in the file; default: the name of the field.
        flat: store the fields of this nested record among those of the outer one.
        null: the number that null stands for in this field.
        exact: store a value of any types as `exact` does.
    """
    return {"key": key, "flat": flat, "null": null, "exact": exact}


def plain(value: Any) -> Any:
    """Convert ``value`` to strict JSON.

    NaN and infinities become null. Arrays, sets and bytes become lists, dates become text, as do
    keys.

    Raises:
        TypeError: JSON cannot hold the value.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return [*value]
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    raise TypeError(f"JSON cannot hold a {type(value).__name__}: {value!r}")


def exact(value: Any) -> Any:
    """Convert a value that YAML can hold to JSON, so that `from_exact` returns the same value.

    What JSON would change, such as an infinity or a whole number as a key, becomes an object with
    the single key ``yaml`` and the text that a configuration file would have.

    Raises:
        ConfigError: YAML would change the value, too.
    """
    if type(value) is dict and [*value] != [_YAML] and all(type(key) is str for key in value):
        return {key: exact(item) for key, item in value.items()}
    if type(value) is list:
        return [exact(item) for item in value]
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    return {_YAML: write_value(value)}


def from_exact(value: Any) -> Any:
    """Return the value that `exact` converted.

    Raises:
        ConfigError: a text is no YAML.
    """
    if isinstance(value, list):
        return [from_exact(item) for item in value]
    if not isinstance(value, dict):
        return value
    if [*value] == [_YAML] and isinstance(value[_YAML], str):
        return parse_value(value[_YAML])
    return {key: from_exact(item) for key, item in value.items()}


def encode(record: Any) -> dict[str, Any]:
    """Convert a record to a dictionary of strict JSON values."""
    values: dict[str, Any] = {}
    for spec in fields(record):
        value = getattr(record, spec.name)
        if spec.default is not MISSING and value == spec.default:
            continue
        if spec.metadata.get("flat"):
            values |= encode(value)
        else:
            values[_key(spec)] = exact(value) if spec.metadata.get("exact") else plain(value)
    return values


def decode(kind: type[T], value: object, where: str) -> T:
    """Read a record from JSON values.

    Args:
        kind: the dataclass to read.
        value: as ``json.loads`` returns it.
        where: the file, and the line where it has many; the error message begins with it.

    Raises:
        RunError: the value does not describe such a record.
    """
    try:
        return _reader(kind)(value)
    except _Mismatch as error:
        path = "".join(f"{key}: " for key in reversed(error.path))
        raise RunError(
            f"{where}: {path}{error}. Was it edited by hand, or written by another version of poad?"
        ) from None


class _Mismatch(Exception):
    """A value that does not fit its field."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path: list[str] = []
        """The keys that lead to the value, innermost first."""


def _key(spec: Field[Any]) -> str:
    return spec.metadata.get("key") or spec.name


@cache
def _reader(kind: Any) -> Reader:
    """Build the function that reads one type; each is built once."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if is_dataclass(kind):
        return _record_reader(kind)
    if kind is float:
        return _read_float
    if kind in (bool, int, str):
        return partial(_read_exactly, kind)
    if origin in (Union, UnionType):
        (some,) = (argument for argument in arguments if argument is not NoneType)
        read = _reader(some)
        return lambda value: None if value is None else read(value)
    if origin is Literal:
        return partial(_read_literal, arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return partial(_read_sequence, _reader(arguments[0]))
    if origin is tuple:
        return partial(_read_tuple, tuple(map(_reader, arguments)))
    if origin is dict:
        return partial(_read_dictionary, _reader(arguments[1]))
    raise TypeError(f"records cannot hold a {kind}")


def _record_reader(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    readers: dict[str, Reader] = {}
    flat_keys: dict[str, tuple[str, ...]] = {}
    known: set[str] = set()
    for spec in fields(kind):
        hint = hints[spec.name]
        readers[spec.name] = _reader(hint)
        if hint is float:
            readers[spec.name] = partial(_read_float, null=spec.metadata.get("null", math.nan))
        if spec.metadata.get("exact"):
            readers[spec.name] = partial(_read_exact, readers[spec.name])
        if spec.metadata.get("flat"):
            (nested,) = (each for each in (hint, *get_args(hint)) if is_dataclass(each))
            flat_keys[spec.name] = tuple(map(_key, fields(nested)))
        known.update(flat_keys.get(spec.name, (_key(spec),)))

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Mismatch(f"expected an object, found {_shown(value)}")
        for key in value:
            if key not in known:
                raise _Mismatch(f"the key {key!r} is unknown")
        found: dict[str, Any] = {}
        for spec in fields(kind):
            key = _key(spec)
            if spec.name in flat_keys:
                inner = {key: value[key] for key in flat_keys[spec.name] if key in value}
                if inner or spec.default is MISSING:
                    found[spec.name] = readers[spec.name](inner)
            elif key in value:
                found[spec.name] = _read_inside(key, readers[spec.name], value[key])
            elif spec.default is MISSING:
                raise _Mismatch(f"the key {key!r} is missing")
        return kind(**found)

    return read


def _read_inside(key: object, read: Reader, value: Any) -> Any:
    try:
        return read(value)
    except _Mismatch as error:
        error.path.append(str(key))
        raise


def _read_float(value: Any, null: float = math.nan) -> float:
    if value is None:
        return null
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Mismatch(f"expected a number, found {_shown(value)}")
    return value  # a whole number stays an int, so that it is written back as it was


def _read_exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _Mismatch(f"expected {kind.__name__}, found {_shown(value)}")
    return value


def _read_exact(read: Reader, value: Any) -> Any:
    try:
        return from_exact(read(value))
    except ConfigError as error:
        raise _Mismatch(f"expected YAML, found {_shown(value)}") from error


def _read_literal(choices: tuple[Any, ...], value: Any) -> Any:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise _Mismatch(f"expected one of {known}, found {_shown(value)}")
    return value


def _read_sequence(read: Reader, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _Mismatch(f"expected a list, found {_shown(value)}")
    return tuple(_read_inside(i, read, item) for i, item in enumerate(value))


def _read_tuple(readers: tuple[Reader, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) != len(readers):
        raise _Mismatch(f"expected a list of {len(readers)}, found {_shown(value)}")
    pairs = zip(readers, value, strict=True)
    return tuple(_read_inside(i, read, item) for i, (read, item) in enumerate(pairs))


def _read_dictionary(read: Reader, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Mismatch(f"expected an object, found {_shown(value)}")
    return {key: _read_inside(key, read, item) for key, item in value.items()}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
