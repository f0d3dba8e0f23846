"""What a world offers, as data: a tuple of actions, a form, or a grammar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from poad.errors import did_you_mean

MAX_LISTED = 4096
"""A form with more actions than this is never listed, so these have no probabilities as a whole."""

Text = TypeVar("Text", str, tuple[int, ...])


@dataclass(frozen=True)
class Form:
    """An offer of actions that are made of parts: one alternative of each part, written together.

    A form takes the place of the tuple in ``info["admissible_actions"]``. It is a sequence of
    actions that knows its length, and which texts it holds, without listing them. The last part
    changes fastest. For example, four actions::

        Form((("small", "large"), (" dough",), (" rye", " wheat")))

    Begin a part with a space rather than end one with it: tokenizers cut texts before spaces, so
    the parts then have the same tokens together as each by itself.

    Raises:
        ValueError: a part is no tuple of strings or is empty; an action is blank; or one text can
            be written in two ways.
    """

    parts: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts, 1):
            good = isinstance(part, tuple) and all(isinstance(text, str) for text in part)
            if not (good and part):
                raise ValueError(
                    f"Part {number} of a form is {part!r}; it must be a tuple of one or more texts."
                )
        if not any(all(text.strip() for text in part) for part in self.parts):
            raise ValueError("A form needs a part whose alternatives all hold words.")
        if can_repeat(self.parts):
            raise ValueError(
                f"Some text can be written in two ways in the form {self}; "
                "an offer must not repeat an action."
            )

    @cached_property
    def size(self) -> int:
        """The number of actions. `len` fails where this exceeds `sys.maxsize`."""
        return prod(map(len, self.parts))

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str):
            return False
        read = {0}  # how many characters the parts so far can have read
        for part in self.parts:
            read = {at + len(each) for at in read for each in part if text.startswith(each, at)}
        return len(text) in read

    def __getitem__(self, index: int) -> str:
        if not -self.size <= index < self.size:
            raise IndexError(f"action {index} of a form with {self.size:,}")
        index %= self.size
        chosen: list[str] = []
        for part in reversed(self.parts):  # the digits of the index, lowest first
            index, digit = divmod(index, len(part))
            chosen.append(part[digit])
        return "".join(reversed(chosen))

    def __iter__(self) -> Iterator[str]:
        """Go through all actions.

        Raises:
            ValueError: there are more than `MAX_LISTED`.
        """
        if self.size > MAX_LISTED:
            raise ValueError(
                f"A form with {self.size:,} actions is not listed; the limit is {MAX_LISTED:,}. "
                "Ask for single actions with form[index] or `text in form`."
            )
        return map("".join, product(*self.parts))

    def __str__(self) -> str:
        """Write the form compactly: ``(small|large) dough( rye| wheat)``."""
        return "".join(
            part[0] if len(part) == 1 else f"({'|'.join(part[:8])}{'|...' * (len(part) > 8)})"
            for part in self.parts
        )

    def __repr__(self) -> str:
        return f"<Form of {self.size:,} actions: {self}>"


class CallForm(NamedTuple):
    """The form in which calls of tools are written: what stands around names and arguments.

    The default is JSON, with a line for each call. Chat templates have others, such as
    ``<tool_call>{"name": "look", "arguments": {}}</tool_call>`` or ``[CALL]look[ARGS]{}``.
    """

    opening: str = '{"name": "'
    middle: str = '", "arguments": '
    between: str = '}\n{"name": "'
    """What stands between the arguments of a call and the name of the next one."""
    closing: str = "}"
    joined: bool = True
    """Whether what a prompt's format writes before any action stands before calls, too."""

    @property
    def quoted(self) -> bool:
        """Whether a tool's name stands in a JSON string."""
        return self.opening.endswith('"')

    def spelled(self, tool: str) -> str:
        """Write a tool's name as it stands in a call."""
        return _in_quotes(tool) if self.quoted else tool

    def read(self, text: str) -> list[str]:
        """Return the calls in a text, in the default form; none if the text has another form."""
        decoder, at = json.JSONDecoder(), len(self.opening)
        calls, form = list[str](), CallForm()
        if not text.startswith(self.opening):
            return []
        while (end := text.find(self.middle + "{", at)) >= 0:  # arguments are an object
            name, begin = text[at:end], end + len(self.middle)
            name = name if self.quoted else _in_quotes(name)
            try:
                _, end = decoder.raw_decode(text, begin)
            except ValueError:
                return []
            calls.append(form.opening + name + form.middle + text[begin:end] + form.closing)
            if text[end:] == self.closing:
                return calls
            if not text.startswith(self.between, end):
                return []
            at = end + len(self.between)
        return []


GrammarKind = Literal["json_schema", "regex", "lark", "tools"]


@dataclass(frozen=True)
class Grammar:
    r"""An offer of all texts that a grammar describes, exponentially many or without end.

    A world writes it as ``info["action_grammar"] = {KIND: SOURCE}`` instead of a list of actions::

        {"json_schema": {"type": "object", "properties": {"table": {"enum": [1, 2]}}}}
        {"regex": "(open|close) the (red|blue) door"}
        {"lark": 'start: "go " PLACE+\nPLACE: "north" | "south"'}
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {...}}}]}

    An action of tools is a call, ``{"name": "look", "arguments": {...}}``, or up to ``calls`` of
    them, each on a line of its own. All JSON is written as `json.dumps` writes it, with one space
    behind every comma and colon and none elsewhere, and properties in the order of the schema.
    Lark grammars are those of llguidance, and begin at ``start``.
    """

    kind: GrammarKind
    source: str
    """The pattern or the Lark grammar; a JSON schema or a list of tools is JSON."""
    calls: int = 1
    """For tools: the most calls in one action."""

    @classmethod
    def of(cls, given: object) -> Grammar:
        """Read what a world gave as ``info["action_grammar"]``.

        Raises:
            ValueError: it is no grammar; says what is expected.
        """
        if isinstance(given, Grammar):
            return given
        kinds = get_args(GrammarKind)
        if not isinstance(given, Mapping) or len(kind := [*given.keys() - {"calls"}]) != 1:
            raise ValueError(
                f"An action grammar is a dictionary with one of the keys {', '.join(kinds)}, not "
                f"{_short(given)}."
            )
        if kind[0] not in kinds:
            raise ValueError(
                f"There is no kind of grammar {kind[0]!r}. {did_you_mean(str(kind[0]), kinds)}"
                f"Known kinds: {', '.join(kinds)}."
            )
        source, calls = given[kind[0]], given.get("calls", 1)
        if not isinstance(calls, int) or isinstance(calls, bool) or calls < 1:
            raise ValueError(f"calls = {calls!r}: it must be a whole number from 1.")
        if kind[0] == "tools":
            source = _plain_tools(source)
        elif "calls" in given:
            raise ValueError("calls is the most calls of tools in an action; only tools have it.")
        if kind[0] in ("json_schema", "tools") and not isinstance(source, str):
            try:
                source = json.dumps(source, ensure_ascii=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"The action grammar's {kind[0]} is no JSON: {error}.") from error
        if not isinstance(source, str) or not source:
            raise ValueError(f"The action grammar's {kind[0]} is {_short(source)}; give a text.")
        return cls(kind[0], source, calls)

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        """The tools, each as a dictionary with a name, a description and parameters."""
        if self.kind != "tools":
            return ()
        return tuple(tool["function"] for tool in json.loads(self.source))

    def rules(
        self, form: CallForm | None = None, literal: Callable[[str], str] = json.dumps
    ) -> dict[str, Any]:
        """Write the grammar as llguidance takes one of several.

        Args:
            form: how calls of tools are written; None means as JSON.
            literal: writes a text as Lark does.

        Raises:
            ValueError: a JSON schema is no dictionary.
        """
        if self.kind == "lark":
            return {"lark_grammar": self.source}
        if self.kind == "regex":
            from llguidance import regex_to_lark

            return {"lark_grammar": f"start: TEXT\nTEXT: /{regex_to_lark(self.source)}/"}
        if self.kind == "json_schema":
            return {"json_schema": _with_layout(json.loads(self.source))}
        form = form or CallForm()
        more = f" ({literal(form.between)} call){{0,{self.calls - 1}}}" if self.calls > 1 else ""
        closing = literal(form.closing) if form.closing else ""
        rules = [f"start: {literal(form.opening)} call{more} {closing}"]
        calls = []
        for number, tool in enumerate(self.tools):
            calls.append(f"{literal(form.spelled(tool['name']) + form.middle)} arguments{number}")
            schema = json.dumps(_with_layout(arguments_of(tool)))
            rules.append(f"arguments{number}: %json {schema}")
        return {"lark_grammar": "\n".join([*rules, f"call: {' | '.join(calls)}"])}

    def __str__(self) -> str:
        """Write the grammar compactly."""
        if self.kind == "tools":
            return f"a call of {', '.join(tool['name'] for tool in self.tools)}"
        return f"{self.kind} {self.source if len(self.source) <= 200 else self.source[:200] + ' …'}"


def _in_quotes(text: str) -> str:
    """Write a text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _plain_tools(given: object) -> list[dict[str, Any]]:
    """Bring tools into the shape that chat templates take.

    Raises:
        ValueError: says which tool is none, and why.
    """
    if isinstance(given, Mapping | str) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"The action grammar's tools are {_short(given)}; give a list of tools.")
    tools: list[dict[str, Any]] = []
    for number, tool in enumerate(given, 1):
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if inner is None or not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"Tool {number} is {_short(tool)}; it must be a dictionary with a name, a "
                "description and parameters, which are a JSON schema."
            )
        parameters = inner.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise ValueError(
                f"The parameters of the tool {name!r} are {_short(parameters)}; they must be a "
                "JSON schema, as a dictionary."
            )
        if any(name == known["function"]["name"] for known in tools):
            raise ValueError(f"There are two tools of the name {name!r}.")
        known = {"name": name, "description": str(inner.get("description") or "")}
        tools.append({"type": "function", "function": {**known, "parameters": dict(parameters)}})
    return tools


def _with_layout(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON schema is a dictionary, not {schema!r}.")
    return schema | {
        # As `json.dumps` writes it, so that whitespace is no choice.
        "x-guidance": {
            "whitespace_flexible": False,
            "item_separator": ", ",
            "key_separator": ": ",
        }
    }


def arguments_of(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments, which allows none but those it names."""
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    return closed | tool["parameters"]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text):,} characters)"


Offer = tuple[str, ...] | Form | Grammar
"""The actions that a world offers."""


def can_repeat(parts: Sequence[Sequence[Text]]) -> bool:
    """Check whether two ways of taking an alternative of each part write the same."""
    ahead: set[Text] = set()  # by what one of two different ways can be ahead of the other
    for part in parts:
        # Two ways may differ here for the first time, or go on after they differed before.
        ahead = {rest for i, one in enumerate(part) for rest in _rest(one, part[:i])} | {
            rest for lead in ahead for one in part for rest in _rest(lead + one, part)
        }
    return any(not lead for lead in ahead)


def _rest(text: Text, others: Sequence[Text]) -> Iterator[Text]:
    """By what a text and each of some others differ in length, where one begins the other."""
    for other in others:
        short, long = sorted((text, other), key=len)
        if long[: len(short)] == short:
            yield long[len(short) :]
