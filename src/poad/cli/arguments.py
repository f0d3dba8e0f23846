"""Parse a command's options and print its help.

A command describes its options as a dataclass, with a docstring below each field. tyro turns the
fields into flags. This module gives tyro the help texts, short placeholders and a reader of values,
and it makes one sentence, with a suggestion, of each error.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from poad.config import parse_value, whole_number, words_of
from poad.errors import ConfigError, did_you_mean, own_name

Options = TypeVar("Options")
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag that takes no value and has no `--no-` twin."""

_PLACEHOLDERS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def parse(
    options: type[Options],
    prog: str,
    arguments: Sequence[str],
    *,
    default: Options | None = None,
    epilog: str = "",
) -> Options:
    """Parse a command's arguments, or print its help and exit.

    Args:
        options: the dataclass that describes the options.
        prog: the command as it is typed, such as ``poad train``.
        arguments: the arguments after the command.
        default: values of the options that are not given.
        epilog: text at the end of the help.

    Raises:
        ConfigError: an option or value cannot be used.
        SystemExit: the help has been printed.
    """
    _check_names(arguments, list(_flags(options)), prog)
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            return tyro.cli(
                options,
                prog=prog,
                description=inspect.getdoc(options),
                args=arguments,
                default=tyro.MISSING_NONPROP if default is None else default,
                registry=_registry(),
            )
    except SystemExit as stop:
        if not stop.code:
            print(_help(printed.getvalue()) + epilog, end="")
            raise
        raise ConfigError(f"{_sentence(errors.getvalue())} See `{prog} --help`.") from None


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Find the value of a flag before the arguments are parsed, or None if it is not given."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def field_docs(cls: type) -> dict[str, str]:
    """Read the docstrings below the fields of a dataclass, by field name.

    A paragraph becomes one line. (tyro reads these docstrings, too, but keeps a line break before
    every indented line, so that its help breaks lines in the middle of a sentence.)
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            paragraphs = re.split(r"\n\s*\n", text.strip())
            docs[ast.unparse(field.target)] = "\n\n".join(" ".join(p.split()) for p in paragraphs)
    return docs


# What tyro is taught.


def _registry() -> ConstructorRegistry:
    """Rules for our dataclasses and for the values whose errors we word ourselves."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def described(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type):
            return None
        docs = field_docs(info.type)
        fields = [
            StructFieldSpec(name, _described(hint, name, docs.get(name, ""), default), default)
            for name, hint, default in _fields(info.type, info.default)
        ]
        return StructConstructorSpec(info.type, tuple(fields))

    @registry.primitive_rule
    def value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type is bool or dataclasses.is_dataclass(info.type):
            return None
        return PrimitiveConstructorSpec(
            nargs=_count(info.type),
            metavar="",
            instance_from_str=lambda given: _read(info.type, given),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _fields(cls: Any, values: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each field; the defaults come from an instance where there is one.

    A field without a default has `tyro.MISSING`.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if isinstance(values, cls):
            default = getattr(values, field.name)
        elif field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = tyro.MISSING
        yield field.name, hints[field.name], default


def _described(hint: Any, name: str, doc: str, default: Any) -> Any:
    """The type of a field with its help text; a group of settings keeps its own."""
    if dataclasses.is_dataclass(default):
        return hint
    placeholder = _placeholder(hint, default)
    if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
        placeholder = name.upper() if default is tyro.MISSING else f"[{name.upper()}]"
    shown = default is not None and default is not False and default not in ((), {}, tyro.MISSING)
    text = repr(default) if isinstance(default, str) and default != default.strip() else default
    if isinstance(default, tuple):
        text = " ".join(map(str, default))
    argument = tyro.conf.arg(
        help=doc,
        metavar=placeholder,
        help_behavior_hint=f"(default: {text})" if shown else "",
    )
    return Annotated[hint, argument]


def _placeholder(hint: Any, default: Any = None) -> str | None:
    """What stands for a value in the help, such as ``INT`` or ``{full,lora}``; none for flags."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _placeholder(args[0], default)
    if origin is Literal:
        return f"{{{','.join(map(str, args))}}}"
    if origin in (types.UnionType, typing.Union):
        # None is worth typing where it is possible and something else is the default.
        none = ["None"] if type(None) in args and default is not None else []
        return "|".join([str(_placeholder(_inner(hint))), *words_of(hint), *none])
    if origin is tuple:
        if args[-1] is not Ellipsis:
            return " ".join(str(_placeholder(arg)) for arg in args)
        return f"{_placeholder(args[0])} ..."
    if origin is dict:
        return "NAME=VALUE ..."
    return _PLACEHOLDERS.get(hint)


# Values.


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
    if inner is not hint and [*words] == ["None"]:
        return None
    if words and words[0] in words_of(hint):
        return words[0]
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is dict:
        return _named_values(words)
    if origin is not tuple:
        try:
            return _read_one(inner, words[0])
        except ValueError as error:
            also = " or ".join(words_of(hint))
            raise ValueError(f"{error} It may be {also}, too." if also else str(error)) from None
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
        values[name] = _yaml_value(name, text)
    return values


def _yaml_value(name: str, text: str) -> Any:
    """Read a YAML value; what would become null or lose a part unasked is an error."""
    try:
        value = parse_value(text)
    except ConfigError as error:
        if "comment" in str(error):
            raise ValueError(f"{error} For example: '{name}=\"#7\"'.") from None
        brackets = f' Texts in brackets need quotes: \'{name}=["[a]", "[b]"]\'.'
        raise ValueError(
            f"{text!r} is not a YAML value. Quote it, and write a list as '[a, b]'."
            f"{brackets if '],' in text else ''}"
        ) from None
    if value is None and text.strip().lower() not in ("null", "~"):
        raise ValueError(f"{name} has no value. Write {name}=null, or '{name}=\"\"' for no text.")
    return value


# Texts.


def _help(text: str) -> str:
    """Wrap the long lines of tyro's help and drop repeated empty lines."""
    width = min(80, shutil.get_terminal_size().columns)
    lines = [line.rstrip() for line in text.splitlines()]
    wrapped = [textwrap.fill(line, width) if line[:1] != " " else line for line in lines]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(wrapped)).rstrip() + "\n"


def _sentence(error: str) -> str:
    """Make a sentence of an error that tyro prints as a title and some ruled-off blocks."""
    lines = [line.strip("│|╭╮╰╯ ") for line in error.strip().splitlines()[1:]]
    below_title = itertools.dropwhile(_is_rule, lines)
    block = itertools.takewhile(lambda line: not _is_rule(line), below_title)
    text = " ".join(" ".join(block).split())
    if match := re.match(r"Missing from poad \S+: (\S+)", text):
        return f"{match[1]} is missing."
    if match := re.match(
        r"Missing value for argument [('\"]*(\S+?)['\",)]*\. Expected (\d+)", text
    ):
        return f"{match[1]} needs {'a value' if match[2] == '1' else f'{match[2]} values'}."
    if match := re.match(r"Unrecognized options: (.*)", text):
        hint = ""
        if {*match[1].lower().split(", ")} <= {"true", "false"}:
            hint = " A switch takes no value: write --ppo.anneal or --ppo.no-anneal, for example."
        return f"There are too many arguments: {match[1]}.{hint}"
    return text.removeprefix("Error parsing ")


def _is_rule(line: str) -> bool:
    return bool(line) and not line.strip("─-")


def _check_names(arguments: Sequence[str], known: Sequence[str], prog: str) -> None:
    """Raise ConfigError for an argument that looks like an option and is none."""
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if argument.startswith("--") and name not in (*known, "--help"):
            # --lr may be any option whose last part is lr.
            last = own_name(re.split(r"--|\.", name)[-1].replace("-", "_")).replace("_", "-")
            same = [flag for flag in known if re.split(r"--|\.", flag)[-1] == last]
            if "." in name and name.rpartition(".")[0] in {f.rpartition(".")[0] for f in known}:
                same = [f for f in same if f.rpartition(".")[0] == name.rpartition(".")[0]]
            near = f"Did you mean {' or '.join(same)}? " if same else did_you_mean(name, known)
            group, _, inner = argument.partition("=")[0].rpartition(".")
            if group in known and group.endswith("-args"):
                near = f"Write {group} {inner}=VALUE. "
            raise ConfigError(f"There is no option {name}. {near}See `{prog} --help`.")
        if not argument.startswith("-") and "=" in argument and f"--{name}" in known:
            raise ConfigError(f"{argument!r}: did you mean --{name}? See `{prog} --help`.")


def _flags(cls: Any, prefix: str = "") -> Iterator[str]:
    """The names of all flags of a dataclass and the groups within it."""
    for name, hint, default in _fields(cls):
        metadata = getattr(hint, "__metadata__", ())
        if dataclasses.is_dataclass(default):
            # `settings` is not part of the names of its flags; the groups within it are.
            yield from _flags(type(default), prefix if metadata else f"{prefix}{name}.")
        elif tyro.conf.Positional not in metadata:
            yield f"--{prefix}{name}".replace("_", "-")
            if hint is bool:
                yield f"--{prefix}no-{name}".replace("_", "-")
