"""Calls as text: the grammar that an agent is offered, and how its text is read.

A `Toolbox` holds the tools of an episode under the names that the agent knows them by. With masks,
these are random strings, and everything else stays the same.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from poad.envs.tooldesk.desk import ANY, TOOLS, Call, Parameter, Tool, Value, values
from poad.envs.tooldesk.tasks import Task

CONSONANTS: Final = "bdfgklmnprstvz"
VOWELS: Final = "aeiou"
OPEN: Final = frozenset({"customer", "order", "ticket", "name", "item", "city", "value"})
"""Kinds of arguments that may be any string where arguments are open."""
WRAPPINGS: Final = (("```json", "```"), ("```", "```"), ("<tool_call>", "</tool_call>"))
"""What chat models put around a call. The end may be missing."""


class Malformed(ValueError):
    """A text is no call. The message is a sentence for the agent."""


class Shown(NamedTuple):
    """A tool as the agent sees it."""

    tool: Tool
    name: str
    parameters: tuple[str, ...]
    """The names of its parameters."""
    choices: tuple[tuple[Value, ...], ...]
    """The values of each parameter. Empty if it takes any string."""


class Toolbox:
    """The tools of an episode.

    Args:
        task: the task, whose desk has the values of arguments.
        distractors: the largest number of tools that the task does not take. Those that end the
            episode are always there.
        masked: name tools and parameters by random strings, and shuffle the tools.
        opened: let ids, names, items, cities and answers be any strings.
        rng: draws the distractors, the masks and the order.
    """

    def __init__(
        self, task: Task, distractors: int, masked: bool, opened: bool, rng: np.random.Generator
    ) -> None:
        kept = task.tools | {"answer", "decline"}
        others = [name for name in TOOLS if name not in kept]
        kept |= {others[i] for i in rng.permutation(len(others))[:distractors].tolist()}
        tools = [tool for name, tool in TOOLS.items() if name in kept - {task.without}]
        masks = _masks(rng)
        if masked:
            tools = [tools[i] for i in rng.permutation(len(tools)).tolist()]
        self.shown = {
            tool.name: Shown(
                tool,
                next(masks) if masked else tool.name,
                tuple(next(masks) if masked else _name(task, each) for each in tool.parameters),
                tuple(_choices(task, each, opened) for each in tool.parameters),
            )
            for tool in tools
        }
        """The tools by their own names, in the order in which the agent sees them."""
        self.grammar: dict[str, Any] = {"tools": [_schema(each) for each in self.shown.values()]}
        """The value of `info["action_grammar"]`."""
        self._by_name = {each.name: each for each in self.shown.values()}

    def write(self, call: Call) -> str:
        """Write a call of a tool that is there, as the agent would."""
        shown = self.shown[call.tool]
        arguments = dict(zip(shown.parameters, call.arguments, strict=True))
        return json.dumps({"name": shown.name, "arguments": arguments}, ensure_ascii=False)

    def read(self, text: str) -> Call:
        """Read the text of a call.

        Any JSON of a call will do: with other spaces, with the keys in another order, in a code
        fence or in `<tool_call>` tags, under the key "function", with the arguments as a string of
        JSON or under the key "parameters", and with a number or a truth value written as a string.

        Raises:
            Malformed: the text is no call of a tool that is there.
        """
        found = _load(text)
        inner = found.get("function")
        found = inner if isinstance(inner, dict) else found
        name = found.get("name")
        shown = self._by_name.get(name) if isinstance(name, str) else None
        if shown is None:
            raise Malformed(f"There is no tool {name!r}.")
        given = found.get("arguments", found.get("parameters"))
        given = _load(given) if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise Malformed(f"The arguments of {shown.name} must be an object.")
        if extra := [each for each in given if each not in shown.parameters]:
            raise Malformed(f"{shown.name} takes no argument {extra[0]!r}.")
        pairs = zip(shown.parameters, shown.choices, strict=True)
        arguments = tuple(_argument(shown.name, given, *pair) for pair in pairs)
        return Call(shown.tool.name, arguments)


def _masks(rng: np.random.Generator) -> Iterator[str]:
    """Yield distinct random strings of two syllables each, so that a mask is few tokens."""
    syllables = [a + b for a in CONSONANTS for b in VOWELS]
    for number in rng.permutation(len(syllables) ** 2).tolist():
        first, second = divmod(number, len(syllables))
        yield syllables[first] + syllables[second]


def _name(task: Task, parameter: Parameter) -> str:
    """Name a parameter. That of the answer is named after what the request asks for."""
    return task.kind if parameter.kind == "value" else parameter.name


def _choices(task: Task, parameter: Parameter, opened: bool) -> tuple[Value, ...]:
    if opened and parameter.kind in OPEN:
        return ()
    found = values(task.desk, task.kind if parameter.kind == "value" else parameter.kind)
    return (ANY, *found) if parameter.filters else found


def _schema(shown: Shown) -> dict[str, Any]:
    """Describe a tool in the shape of function-calling interfaces."""
    pairs = zip(shown.parameters, shown.tool.parameters, shown.choices, strict=True)
    properties = {
        name: {**_type(choices), "description": _sentence(parameter.means)}
        for name, parameter, choices in pairs
    }
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {
        "name": shown.name,
        "description": _sentence(shown.tool.does),
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def _type(choices: tuple[Value, ...]) -> dict[str, Any]:
    if choices and isinstance(choices[0], bool):
        return {"type": "boolean"}
    if choices and isinstance(choices[0], int):
        return {"type": "integer", "minimum": min(choices), "maximum": max(choices)}
    return {"type": "string", "enum": list(choices)} if choices else {"type": "string"}


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _load(text: str) -> dict[str, Any]:
    """Load an object from JSON, which may be wrapped as chat models do."""
    text = text.strip()
    for before, after in WRAPPINGS:
        if text.startswith(before):
            text = text.removeprefix(before).removesuffix(after)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("That is no JSON.") from None
    if not isinstance(found, dict):
        raise Malformed("A call must be an object with a name and arguments.")
    return found


def _argument(tool: str, given: Mapping[str, Any], name: str, choices: tuple[Value, ...]) -> Value:
    """Find the value of an argument."""
    if name not in given:
        raise Malformed(f"{tool} needs the argument {name!r}.")
    value = given[name]
    if not choices:
        if not isinstance(value, str):
            raise Malformed(f"{name} of {tool} must be a string.")
        return value
    texts = {_text(choice): choice for choice in choices}
    if isinstance(value, str | int) and _text(value) in texts:
        return texts[_text(value)]
    known = ", ".join(texts)
    raise Malformed(f"{name} of {tool} must be one of: {known}.")


def _text(value: Value) -> str:
    """Write a value as JSON does, but a string as it is."""
    return value if isinstance(value, str) else json.dumps(value)
