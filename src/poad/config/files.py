"""YAML files of settings: read, merge, check and write."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

import yaml
from yaml.composer import ComposerError

from poad.config.presets import PRESETS
from poad.config.ranges import words_of
from poad.config.settings import Config
from poad.errors import ConfigError, beginning, did_you_mean, own_name

_RENAMED = {"mirrors": "trackers"}
"""Former names of settings, with their present ones."""
_INT, _FLOAT, _VALUE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "value"))
_INT_TEXT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)$")
_FLOAT_TEXT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)
_LARGEST_EXPONENT = 100
_MOST_SHOWN = 200
"""Characters of a value that an error shows."""
_LINE_ENDS = "\x85\u2028\u2029"
"""Characters that YAML takes for line ends unless they are escaped."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-4 is a number, 12:30 and 010 are text, and no key repeats."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen and key.value != "<<":
                raise ComposerError(
                    None, None, f"the key {key.value!r} appears twice", key.start_mark
                )
            seen.add(name)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this loader or another YAML reader would take for something else."""


def _represent_set(dumper: yaml.SafeDumper, value: set[Any]) -> yaml.MappingNode:
    """Write a set in the same order in every process."""
    return dumper.represent_mapping("tag:yaml.org,2002:set", dict.fromkeys(sorted(value, key=repr)))


_Dumper.add_representer(set, _represent_set)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in (_INT, _FLOAT, _VALUE)]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, _INT_TEXT, list("-+0123456789"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT, _FLOAT_TEXT, list("-+0123456789."))


# Reading.


def load(
    path: str | Path, base: Config | None = None, *, complete: Callable[[], str] | None = None
) -> Config:
    """Read a YAML file of settings.

    Args:
        path: the file.
        base: the settings that the file leaves out. Default: those of the preset that the file
            names under ``preset``, or ``Config()``.
        complete: refuse a file that leaves out any setting, as one that was cut off does, or that
            has others, as one of another version does, with the advice that this returns.

    Raises:
        ConfigError: the file is missing or not YAML, or `from_dict` rejects its content.
    """
    data = read_yaml(path)
    if complete is not None and (told := _differences(data)):
        raise ConfigError(f"{path} {told} {complete()}")
    named = data.get("preset")
    if "preset" in data:
        data = {key: value for key, value in data.items() if key != "preset"}
    if base is None and named is not None:
        base = preset(str(named), str(path))
    return from_dict(data, base, str(path))


def preset(name: str, where: str = "preset") -> Config:
    """Return the settings of a preset: a configuration to start from.

    Args:
        name: a key of `PRESETS`.
        where: what errors call the source.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"{where}: there is no preset {name!r}. {did_you_mean(name, PRESETS)}"
            f"The presets are {', '.join(PRESETS)}."
        )
    return from_dict(nested(PRESETS[name].settings))


def _differences(data: Mapping[str, Any]) -> str:
    """Say which settings the data lacks and which are unknown; empty if it has them all."""
    known = to_dict(Config())
    given = {name: value for name, value in data.items() if name not in ("env_args", "preset")}
    missing, unknown = [*_left_out(known, data)], [*_left_out(given, known)]
    lacks = f"is incomplete: it lacks {', '.join(missing)}" if missing else ""
    names = [name for group, inner in known.items() for name in (group, *_dotted(group, inner))]
    has = f"has settings that this poad does not know: {', '.join(map(repr, unknown))}"
    hint = did_you_mean(unknown[0], names).rstrip() if len(unknown) == 1 and not missing else ""
    told = " and ".join(filter(None, (lacks, has if unknown else "")))
    return f"{told}. {hint}".rstrip() if told else ""


def _dotted(group: str, inner: Any) -> list[str]:
    return [f"{group}.{name}" for name in inner] if isinstance(inner, dict) else []


def _left_out(settings: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names of the settings that are not in the data."""
    for key, value in settings.items():
        if key not in data:
            yield key
        elif isinstance(value, dict) and isinstance(inner := data[key], Mapping):
            yield from (f"{key}.{name}" for name in _left_out(value, inner))


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """Read a YAML mapping without checking its keys.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from error
    data = _parse(text, f"{path}")
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(data).__name__}.")
    return data


def parse_value(text: str) -> Any:
    """Read a value as a configuration file would: 1e-3 is a number, [a, b] is a list.

    Raises:
        ConfigError: the text is not YAML, or YAML takes a part of it for a comment.
    """
    value = _parse(text, repr(text))
    end = 0
    for token in yaml.scan(text):  # the scanner drops comments between tokens
        if "#" in text[end : token.start_mark.index]:
            comment = text[end : token.start_mark.index].strip()
            raise ConfigError(f"YAML takes {comment!r} for a comment and would drop it. Quote it.")
        end = max(end, token.end_mark.index)
    return value


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-02-31
        said = str(error).replace('in "<unicode string>", ', "")
        raise ConfigError(f"{where} is not valid YAML: {said}") from error


def from_dict(data: Mapping[str, Any], base: Config | None = None, where: str = "config") -> Config:
    """Build a configuration from nested mappings, as YAML gives them.

    Args:
        data: settings by name, groups as mappings.
        base: the settings that `data` leaves out (default: ``Config()``).
        where: what errors call the source.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range.
    """
    return merge(base if base is not None else Config(), data, where)


def merge(base: Any, data: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Change the fields of a frozen dataclass that `data` names, including nested ones.

    Args:
        base: the dataclass.
        data: new values by field name.
        where: what errors call the source.
        prefix: text before the names in errors.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type.
    """
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(f"{where}: {_unknown_key(base, str(key), name, list(hints))}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {name} is a group of settings, not {value!r}.")
            changes[key] = merge(current, value, where, f"{name}.")
        else:
            changes[key] = _convert(hints[key], value, name, where)
    return dataclasses.replace(base, **changes)


def _unknown_key(base: Any, key: str, name: str, known: list[str]) -> str:
    if _RENAMED.get(key) in known:
        return f"{key} was renamed to {_RENAMED[key]}."
    group, dot, inner = key.partition(".")
    if dot and inner in getattr(getattr(base, group, None), "__dataclass_fields__", ()):
        return f"unknown key {name!r}. Write it nested, as '{group}: {{{inner}: ...}}'."
    groups = [each for each in known if dataclasses.is_dataclass(getattr(base, each))]
    ours = own_name(inner if dot else key)
    inside = [each for each in groups if ours in typing.get_type_hints(type(getattr(base, each)))]
    hint = did_you_mean(key, known)
    if inside and ours not in known:
        hint = f"Did you mean {' or '.join(f'{each}.{ours}' for each in inside)}? "
    return f"unknown key {name!r}. {hint}Known here: {', '.join(known)}."


def _convert(hint: Any, value: Any, name: str, where: str) -> Any:
    """Convert a value to the annotated type, or explain which type is expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        options = ", ".join(map(str, args))
        message = f"{where}: {name} = {value!r} is not one of: {options}. "
        raise ConfigError((message + did_you_mean(value, args, 1)).rstrip())
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        # A number or a word, such as float | Literal["auto"]: a word is tried as such first.
        words = words_of(hint)
        if value in words:
            return value
        inner = next(a for a in args if a is not type(None) and typing.get_origin(a) is not Literal)
        try:
            return _convert(inner, value, name, where)
        except ConfigError as error:
            also = f" Or write {' or '.join(words)}." if words else ""
            raise ConfigError(f"{error}{also}") from None
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: {name} = {value!r} needs {len(args)} entries.")
        return tuple(_convert(args[0], item, name, where) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    try:
        if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
        if hint is int and isinstance(value, int | float | str) and not isinstance(value, bool):
            return whole_number(value)
    except (ValueError, OverflowError):
        pass
    if isinstance(hint, type) and type(value) is hint:
        return value
    if hint is str and type(value) is date:  # YAML's own reading of 2024-07-26
        return value.isoformat()
    wanted = {tuple: "a list, such as [a, b]", dict: "a mapping, such as {a: 1}"}.get(
        origin, getattr(hint, "__name__", str(hint))
    )
    quote = " Put quotes around it." if hint is str and isinstance(value, int | float) else ""
    raise ConfigError(f"{where}: {name} = {value!r} has the wrong type; expected {wanted}.{quote}")


def whole_number(value: int | float | str) -> int:
    """Read an integer in any notation: 20000, 20_000, 2e4 or 20000.0.

    Raises:
        ValueError: the number has a fraction, is far too large, or is not a number.
    """
    if isinstance(value, int):
        return value
    try:
        number = Decimal(str(value).strip())
        if number.adjusted() <= _LARGEST_EXPONENT and number == number.to_integral_value():
            return int(number)
    except InvalidOperation:
        pass
    raise ValueError(f"expected a whole number, not {value!r}")


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings by dotted name to nested groups."""
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        group = nested
        *outer, last = name.split(".")
        for key in outer:
            group = group.setdefault(key, {})
        group[last] = value
    return nested


# Writing.


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to dicts, lists and scalars. A world's arguments stay as they are."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(config)


def dump(config: Config) -> str:
    """Write a configuration as YAML text that `load` reads back unchanged.

    Raises:
        ConfigError: YAML would lose or change a value. A tuple among a world's arguments, for
            example, would come back as a list, and a NumPy number cannot be written at all.
    """
    plain = to_dict(config)
    # Only a world's arguments are of arbitrary types, and reading all the rest would take 10 ms.
    _check_kept("env_args", config.env_args)
    again = to_dict(from_dict(plain))
    for key, value in plain.items():
        if again[key] != value and key != "env_args":
            raise ConfigError(f"{key} = {value!r} holds values of the wrong type.")
    try:
        return _write(plain)
    except yaml.YAMLError as error:
        raise ConfigError(f"A setting is not of Python's own types: {error}") from error


def write_value(value: Any) -> str:
    """Write a value as `parse_value` reads it.

    Raises:
        ConfigError: YAML would lose or change it.
    """
    _check_kept("a value", value)
    text = _write(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _write(value: Any, **style: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    if any(mark in text for mark in _LINE_ENDS):
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **style)
    return text


def _check_kept(name: str, value: Any) -> None:
    """Raise ConfigError unless YAML keeps a value exactly."""
    try:
        if _refers_to_itself(value):
            raise ConfigError(f"{name} refers to itself, which no file can hold.")
        changed = _changed_part(name, value)
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply for a file.") from None
    if changed:
        raise ConfigError(
            f"{changed}. A configuration file holds text, numbers, true, false, null, dates, lists "
            "and dicts, of Python's own types."
        )


def _refers_to_itself(value: Any, above: frozenset[int] = frozenset()) -> bool:
    """Tell whether a value lies inside itself, or in what is ``above`` it, by identity."""
    if not isinstance(value, dict | list | tuple):
        return False
    if id(value) in above:
        return True
    inner = value.values() if isinstance(value, dict) else value
    return any(_refers_to_itself(each, above | {id(value)}) for each in inner)


def _changed_part(name: str, value: Any) -> str | None:
    """Describe the smallest part of a value that YAML loses or changes; None if there is none."""
    try:
        back = _parse(_write(value), name)
        if _same(back, value):
            return None
        given, read = _shown(value), _shown(back)
        what = f"{_named(name)} = {given} would be read back from a configuration file as {read}"
    except (yaml.YAMLError, RecursionError, ConfigError):
        what = f"{_named(name)} = {_shown(value)} cannot be written to a configuration file"
    inner: list[tuple[str, Any]] = []
    if type(value) is dict:
        inner = [(f"{name}.{key}", item) for key, item in value.items()]
    elif type(value) is list:
        inner = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    return next(filter(None, (_changed_part(*part) for part in inner)), what)


def _shown(value: Any) -> str:
    return beginning(repr(value), _MOST_SHOWN)


def _named(name: str) -> str:
    return beginning(name, _MOST_SHOWN)


def _same(a: Any, b: Any) -> bool:
    """Compare values as Python does, but tell 1, 1.0 and True apart, and let NaN equal NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return _same(list(a), list(b)) and _same(list(a.values()), list(b.values()))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, set):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    return repr(a) == repr(b)
