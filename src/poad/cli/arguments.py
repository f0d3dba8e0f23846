"""Parse a command's options and print its help.

A command describes its options as a dataclass, with a docstring below each field. A field becomes a
flag, or a positional argument where it is marked so. A field that holds settings contributes a flag
for each of them, such as ``--ppo.lr``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from poad.config import parse_value, whole_number
from poad.errors import ConfigError, did_you_mean

Options = TypeVar("Options")
T = TypeVar("T")
Positional = Annotated[T, "positional"]
"""Marks an argument that is given without a flag."""

_PLACEHOLDERS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", dict: "NAME=VALUE"}


def parse(
    options: type[Options],
    prog: str,
    arguments: Sequence[str],
    *,
    default: Options | None = None,
    epilog: str = "",
) -> Options:
    """Parse a command's arguments, or print its help and exit."""
    described = list(_arguments(options, default))
    _check_names(arguments, [flag for each in described for flag in each.flags], prog)
    given = vars(_parser(options, prog, described, epilog).parse_args(arguments))
    return _build(options, default, given)


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Find the value of a flag before the arguments are parsed, or None if it is not given."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


# From dataclasses to arguments.


class _Argument(NamedTuple):
    """A flag or a positional argument (without flags)."""

    group: str
    """The group of settings it belongs to; empty for the command's own options."""
    name: str
    """Its dotted name, such as ``ppo.lr``."""
    flags: tuple[str, ...]
    hint: Any
    default: Any
    """``dataclasses.MISSING`` if it must be given."""
    help: str


def _arguments(cls: Any, values: Any, group: str = "", depth: int = 0) -> Iterator[_Argument]:
    """Describe the fields of a dataclass and of the groups within it."""
    docs = _field_docs(cls)
    for name, hint, default in _fields(cls, values):
        dotted = f"{group}.{name}" if group else name
        if dataclasses.is_dataclass(default):
            # `settings` is not part of the names of its flags; the groups within it are.
            yield from _arguments(type(default), default, dotted if depth else "", depth + 1)
            continue
        flag = f"--{dotted}".replace("_", "-")
        flags = (flag,)
        if "positional" in getattr(hint, "__metadata__", ()):
            flags = ()
        elif hint is bool and depth:  # a file may have switched it on
            flags = (flag, f"--{group}.no-{name}".replace("--.", "--").replace("_", "-"))
        yield _Argument(group, dotted, flags, hint, default, docs.get(name, ""))


def _fields(cls: Any, values: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each field; an instance gives its values as defaults."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        default = field.default
        if values is not None:
            default = getattr(values, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield field.name, hints[field.name], default


def _field_docs(cls: type) -> dict[str, str]:
    """Read the docstrings below the fields of a dataclass, by field name."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(below.value).split())
        for field, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        message = message.removeprefix("argument ").rstrip()
        end = "" if message.endswith((".", "?")) else "."
        raise ConfigError(f"{message}{end} See `{self.prog} --help`.")


def _parser(cls: Any, prog: str, described: Sequence[_Argument], epilog: str) -> _Parser:
    width = min(80, shutil.get_terminal_size().columns) - 2
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    positional = [
        each.name.upper() if each.default is dataclasses.MISSING else f"[{each.name.upper()}]"
        for each in described
        if not each.flags
    ]
    parser = _Parser(
        prog,
        usage=" ".join([prog, *positional, "[options]"]),
        description="\n\n".join(textwrap.fill(" ".join(p.split()), width) for p in paragraphs),
        epilog=epilog,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=width),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {"": parser}
    for each in described:
        if each.group not in groups:
            groups[each.group] = parser.add_argument_group(each.group)
        _add(groups[each.group], each)
    return parser


def _add(group: Any, argument: _Argument) -> None:
    name, flags, hint = argument.name, argument.flags, argument.hint
    required = argument.default is dataclasses.MISSING
    looks: dict[str, Any] = {"help": _help(argument).replace("%", "%%")}
    if hint is bool:
        group.add_argument(*flags, dest=name, nargs=0, action=_Switch, **looks)
        return
    looks["action"] = functools.partial(_Value, hint)
    if flags:
        looks |= {"metavar": _placeholder(hint, argument.default), "required": required}
        group.add_argument(*flags, dest=name, nargs=_count(hint), **looks)
    else:
        group.add_argument(name, metavar=name.upper(), nargs=1 if required else "?", **looks)


def _help(argument: _Argument) -> str:
    default = argument.default
    if default is None or default is False or default in ((), {}, dataclasses.MISSING):
        return argument.help
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    elif isinstance(default, str) and default != default.strip():
        default = repr(default)
    return f"{argument.help} (default: {default})"


def _placeholder(hint: Any, default: Any = None) -> str:
    """Return what stands for a value in the help, such as ``INT`` or ``{full,lora}``."""
    inner = _inner(hint)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is Literal:
        text = f"{{{','.join(map(str, args))}}}"
    elif origin is tuple:
        text = _placeholder(args[0])
    else:
        text = _PLACEHOLDERS[origin or inner]
    # None is worth typing where something else is the default.
    return f"{text}|None" if _is_optional(hint) and default is not None else text


class _Switch(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, option == self.option_strings[0])


class _Value(argparse.Action):
    def __init__(self, hint: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self._hint = hint

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        words = values if isinstance(values, list) else [values]
        try:
            setattr(namespace, self.dest, _read(self._hint, words))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _build(cls: Any, values: Any, given: dict[str, Any], group: str = "", depth: int = 0) -> Any:
    """Make the dataclass from the arguments that were given; the rest keeps its defaults."""
    made: dict[str, Any] = {}
    for name, _, default in _fields(cls, values):
        dotted = f"{group}.{name}" if group else name
        if dataclasses.is_dataclass(default):
            made[name] = _build(type(default), default, given, dotted if depth else "", depth + 1)
        else:
            made[name] = given.get(dotted, default)
    return cls(**made)


# Values.


def _is_optional(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _is_optional(typing.get_args(hint)[0])
    return type(None) in typing.get_args(hint)


def _inner(hint: Any) -> Any:
    """A type without its annotations and without None."""
    if typing.get_origin(hint) is Annotated:
        return _inner(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _inner(next(each for each in typing.get_args(hint) if each is not type(None)))
    return hint


def _count(hint: Any) -> int | Literal["*"]:
    """The number of words that a value takes on the command line."""
    hint = _inner(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict or (origin is tuple and args[-1] is Ellipsis):
        return "*"
    return len(args) if origin is tuple else 1


def _read(hint: Any, words: Sequence[str]) -> Any:
    """Read a value of the given type; ValueError in a sentence if that is not possible."""
    inner = _inner(hint)
    if _is_optional(hint) and [*words] == ["None"]:
        return None
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is dict:
        return _named_values(words)
    if origin is not tuple:
        return _read_one(inner, words[0])
    if args[-1] is not Ellipsis:
        return tuple(_read(each, [word]) for each, word in zip(args, words, strict=True))
    size = _count(args[0])
    assert isinstance(size, int)
    if len(words) % size:
        raise ValueError(f"the values come in groups of {size}, and there are {len(words)}.")
    return tuple(_read(args[0], words[i : i + size]) for i in range(0, len(words), size))


def _read_one(hint: Any, word: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in typing.get_args(hint)}
        if word not in choices:
            near = did_you_mean(word, choices)
            raise ValueError(f"{word!r} is not one of {', '.join(choices)}. {near}")
        return choices[word]
    if hint is Path:
        return Path(word).expanduser()
    try:
        return whole_number(word) if hint is int else hint(word)
    except (ValueError, OverflowError):
        kind = "a whole number" if hint is int else "a number"
        raise ValueError(f"{word!r} is not {kind}.") from None


def _named_values(words: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` words; each value is YAML."""
    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise ValueError(f"expected name=value, not {word!r}.")
        try:
            values[name] = parse_value(text)
        except ConfigError:
            raise ValueError(
                f"{text!r} is not a YAML value. Quote it, and write a list as '[a, b]'."
            ) from None
    return values


# Names.


def _check_names(arguments: Sequence[str], known: Sequence[str], prog: str) -> None:
    """Raise ConfigError for an argument that looks like an option and is none."""
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if argument.startswith("--") and name not in (*known, "--help"):
            # --lr may be any option whose last part is lr.
            same = [flag for flag in known if re.split(r"--|\.", flag)[-1] == name.strip("-")]
            near = f"Did you mean {' or '.join(same)}? " if same else did_you_mean(name, known)
            raise ConfigError(f"There is no option {name}. {near}See `{prog} --help`.")
        if not argument.startswith("-") and "=" in argument and f"--{name}" in known:
            raise ConfigError(f"{argument!r}: did you mean --{name}? See `{prog} --help`.")
