"""JSON schemas of functions, from their signatures and docstrings, and calls checked by them."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from poad.errors import ConfigError

_TYPES: Final[Mapping[Any, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
    list: "array",
    dict: "object",
}
"""The types of JSON schema, by the Python types that `json.loads` makes."""


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe a method as a tool, in the form that chat models and their servers use.

    Args:
        function: an unbound method; its first parameter is not one of the tool.

    Returns:
        ``{"type": "function", "function": {"name", "description", "parameters"}}``, where the
        parameters are a JSON schema. Descriptions come from the docstring: its text, and its
        section of arguments in the style of Google or Sphinx.

    Raises:
        ConfigError: a parameter has no name of its own (`*args`), or a type that JSON cannot say.
    """
    text, told = _docstring(function)
    try:
        hints = get_type_hints(function)
    except Exception:  # names that exist for type checkers alone
        hints = {}
    properties: dict[str, Any] = {}
    required = []
    _, *parameters = inspect.signature(function).parameters.values()
    for each in parameters:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise ConfigError(
                f"The tool {function.__name__} has the parameter {each}, which has no name for an "
                "agent to use. Name each parameter of a tool."
            )
        place = f"The parameter {each.name!r} of the tool {function.__name__}"
        properties[each.name] = _schema(hints.get(each.name, Any), place)
        if each.name in told:
            properties[each.name]["description"] = told[each.name]
        if each.default is each.empty:
            required.append(each.name)
        elif each.default is None or isinstance(each.default, str | int | float | bool):
            properties[each.name]["default"] = each.default
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    body = {"name": function.__name__, "description": text, "parameters": schema}
    return {"type": "function", "function": body}


def _schema(hint: Any, place: str) -> dict[str, Any]:
    """Write a type as a JSON schema."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    if origin is Annotated:
        return _schema(args[0], place)
    if origin is Literal and all(type(value) in _TYPES for value in args):
        kinds = {_TYPES[type(value)] for value in args}
        return {**({"type": kinds.pop()} if len(kinds) == 1 else {}), "enum": list(args)}
    if origin in (UnionType, Union):
        return {"anyOf": [_schema(each, place) for each in args]}
    if origin is list:
        return {"type": "array", "items": _schema(args[0], place)}
    if origin is dict and args[0] is str:
        return {"type": "object", "additionalProperties": _schema(args[1], place)}
    raise ConfigError(
        f"{place} has the type {hint}, which JSON cannot say. Use str, int, float, bool, list, "
        "dict, Literal, or a union of these."
    )


def wrong_with(value: object, schema: Mapping[str, Any], name: str) -> str | None:
    """Say what is wrong with a JSON value; None if it keeps a schema that `tool_schema` wrote."""
    if "anyOf" in schema:
        faults = [wrong_with(value, each, name) for each in schema["anyOf"]]
        return None if None in faults else faults[0]
    if "enum" in schema:
        known = ", ".join(json.dumps(each) for each in schema["enum"])
        same = any(value == each and type(value) is type(each) for each in schema["enum"])
        return None if same else f"{name} is {json.dumps(value)}; it must be one of {known}"
    kind = schema.get("type")
    if kind is not None and not _is_of(value, kind):
        return f"{name} is {json.dumps(value)}; it must be of the type {kind}"
    if isinstance(value, list) and "items" in schema:
        inner = (wrong_with(each, schema["items"], f"{name}[{i}]") for i, each in enumerate(value))
        return next(filter(None, inner), None)
    if isinstance(value, dict):
        return next(filter(None, _wrong_entries(value, schema, name)), None)
    return None


def _wrong_entries(
    value: Mapping[str, Any], schema: Mapping[str, Any], name: str
) -> Iterator[str | None]:
    """Say what is wrong with the entries of an object."""
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    takes = f"{name} takes {', '.join(known) or 'nothing'}"
    for needed in schema.get("required", ()):
        if needed not in value:
            yield f"{needed!r} is missing; {takes}"
    for key, each in value.items():
        if key in known:
            yield wrong_with(each, known[key], repr(key))
        elif others is False:
            yield f"there is no {key!r}; {takes}"
        elif isinstance(others, Mapping):
            yield wrong_with(each, others, f"{name}[{key!r}]")


def _is_of(value: object, kind: str) -> bool:
    """Tell whether a JSON value is of a type of JSON schema, where True is no number."""
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return _TYPES.get(type(value)) == kind


_HEAD = re.compile(r"(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?):")
_GOOGLE = re.compile(r"(\w+)(?:\s*\([^)]*\))?:\s*(.*)")
_SPHINX = re.compile(r":param(?:\s+\S+)?\s+(\w+):\s*(.*)")


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and what it says of each argument."""
    text: list[str] = []
    told: dict[str, str] = {}
    section, name, indent = "", "", 0
    for line in (inspect.getdoc(function) or "").splitlines():
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if _HEAD.fullmatch(stripped) and depth == 0:
            section, name = stripped, ""
        elif found := _SPHINX.match(line):
            section, name, indent = "Args:", found[1], 0
            told[name] = found[2]
        elif line.startswith(":"):  # :returns: and the like
            section, name = stripped, ""
        elif not section:
            text.append(stripped)
        elif section in ("Args:", "Arguments:", "Parameters:") and stripped:
            found = _GOOGLE.match(stripped)
            if found and (not name or depth <= indent):
                name, indent = found[1], depth
                told[name] = found[2]
            elif name:
                told[name] = f"{told[name]} {stripped}".strip()
    return " ".join(filter(None, text)), told
