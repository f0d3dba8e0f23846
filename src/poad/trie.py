"""Offered actions as a token tree: listed one by one, as a form, or described by a grammar.

An action is a path from the root to a leaf. A node with several children is a choice; after a node
with one child the next token is forced. The policy samples along this path, so its cost depends on
the length of the path and not on the number of offered actions. A `Form` offers more actions than
anyone could list, and its tree grows only where it is walked.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from poad.errors import did_you_mean

ROOT = -1
"""The node before the first token. It stands for the end of the prompt."""
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
        if _can_repeat(self.parts):
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


class Border(NamedTuple):
    """What a chat template writes around calls of tools, and between two of them."""

    opening: str = ""
    between: str = "\n"
    closing: str = ""


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
        self, border: Border | None = None, literal: Callable[[str], str] = json.dumps
    ) -> dict[str, Any]:
        """Write the grammar as llguidance takes one of several.

        Args:
            border: what stands around calls of tools.
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
        schema = json.dumps(_with_layout({"anyOf": [_call(tool) for tool in self.tools]}))
        opening, between, closing = (literal(text) if text else "" for text in border or Border())
        more = f" ({between} call){{0,{self.calls - 1}}}" if self.calls > 1 else ""
        start = f"{opening} call{more} {closing}"
        return {"lark_grammar": f"start: {start}\ncall: %json {schema}"}

    def __str__(self) -> str:
        """Write the grammar compactly."""
        if self.kind == "tools":
            return f"a call of {', '.join(tool['name'] for tool in self.tools)}"
        return f"{self.kind} {self.source if len(self.source) <= 200 else self.source[:200] + ' …'}"


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


def _call(tool: dict[str, Any]) -> dict[str, Any]:
    """Describe the calls of a tool; it takes no arguments but those it names."""
    properties = {"name": {"const": tool["name"]}, "arguments": arguments_of(tool)}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text):,} characters)"


Offer = tuple[str, ...] | Form | Grammar
"""The actions that a world offers."""


class TokenTree(ABC):
    """The offered actions as a tree of numbered nodes with one token each.

    Parents have smaller numbers than their children. Trees are compared and hashed by identity:
    build one per distinct offer and reuse it.
    """

    @property
    @abstractmethod
    def offer(self) -> Offer:
        """The actions as the world offers them."""

    @abstractmethod
    def options(self, node: int) -> tuple[int, ...]:
        """The children of a node; none if it is a leaf."""

    @abstractmethod
    def token(self, node: int) -> int:
        """The token of a node."""

    @abstractmethod
    def parent(self, node: int) -> int:
        """The node before another one, or `ROOT`."""

    @abstractmethod
    def text(self, leaf: int) -> str:
        """The action that ends in a leaf."""

    @abstractmethod
    def all_leaves(self) -> Sequence[int]:
        """The last node of each action, in the order of the offer.

        Raises:
            ValueError: a form or a grammar has more than `MAX_LISTED` actions.
        """

    def allowed(self, node: int) -> bytes | None:
        """The admissible tokens after a node where they are many, one bit each, lowest first.

        None where `options` lists them. Where it does not, `child` makes the node of one of them.
        """
        return None

    def child(self, node: int, token: int) -> int:
        """The node of a token after another node.

        Raises:
            ValueError: the token is not admissible there.
        """
        found = next((n for n in self.options(node) if self.token(n) == token), None)
        if found is None:
            raise ValueError(
                f"No offered action begins with the tokens {[*self.token_path(node), token]}."
            )
        return found

    @property
    def choices(self) -> tuple[tuple[int, ...], int] | None:
        """The nodes with several children, and the number of tokens on the paths to all of them.

        None if the tree is too large to be searched.
        """
        return None

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the first token to `node`, including it."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parent(node)
        return tuple(reversed(nodes))

    def token_path(self, node: int) -> tuple[int, ...]:
        """The tokens from the root to `node`, including its own; empty for the root."""
        return tuple(self.token(n) for n in self.path(node))

    def is_choice(self, node: int) -> bool:
        """True if the node's token has an alternative."""
        parent = self.parent(node)
        return self.allowed(parent) is not None or len(self.options(parent)) > 1

    def walk(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The nodes that some tokens lead through from the root.

        Raises:
            ValueError: no action begins with these tokens.
        """
        nodes: list[int] = []
        for token in tokens:
            nodes.append(self.child(nodes[-1] if nodes else ROOT, token))
        return tuple(nodes)


@dataclass(frozen=True, eq=False)
class ActionTrie(TokenTree):
    """K token sequences merged into a tree of M nodes, with one token each."""

    tokens: tuple[int, ...]
    """[M] the token of each node. Parents come before their children."""
    parents: tuple[int, ...]
    """[M] the parent of each node, or `ROOT`."""
    leaves: tuple[int, ...]
    """[K] the last node of each action, in the order of the actions."""
    texts: tuple[str, ...]
    """[K] the actions as text."""
    children: tuple[tuple[int, ...], ...]
    """[M + 1] the children of node i at index i + 1. Those of the root are at index 0."""

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], texts: Sequence[str]) -> ActionTrie:
        """Merge token sequences into a trie.

        Args:
            sequences: K distinct, non-empty token sequences. None may be a prefix of another,
                which an end-of-action token after each of them ensures.
            texts: the K actions as text.

        Raises:
            ValueError: there is no sequence, or one is empty, repeated, or a prefix of another.
        """
        if not sequences:
            raise ValueError("An action trie needs at least one action.")
        tokens: list[int] = []
        parents: list[int] = []
        children: list[list[int]] = [[]]
        leaves: list[int] = []
        for sequence in sequences:
            node = ROOT
            for token in sequence:
                child = next((c for c in children[node + 1] if tokens[c] == token), None)
                if child is None:
                    child = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    children.append([])
                    children[node + 1].append(child)
                node = child
            leaves.append(node)
        trie = cls(
            tuple(tokens),
            tuple(parents),
            tuple(leaves),
            tuple(texts),
            tuple(map(tuple, children)),
        )
        trie._check_unambiguous()
        return trie

    @property
    def offer(self) -> tuple[str, ...]:
        """The actions as the world offers them."""
        return self.texts

    def options(self, node: int) -> tuple[int, ...]:
        """The children of a node; none if it is a leaf."""
        return self.children[node + 1]  # the root is -1, so its entry is 0

    def token(self, node: int) -> int:
        """The token of a node."""
        return self.tokens[node]

    def parent(self, node: int) -> int:
        """The node before another one, or `ROOT`."""
        return self.parents[node]

    def text(self, leaf: int) -> str:
        """The action that ends in a leaf."""
        return self.texts[self.leaves.index(leaf)]

    def all_leaves(self) -> tuple[int, ...]:
        """The last node of each action, in the order of the offer."""
        return self.leaves

    @property
    def choices(self) -> tuple[tuple[int, ...], int]:
        """The nodes with several children, and the number of tokens on the paths to all of them."""
        return self._choices

    @cached_property
    def _choices(self) -> tuple[tuple[int, ...], int]:
        nodes = tuple(n for n in range(ROOT, len(self.tokens)) if len(self.children[n + 1]) > 1)
        return nodes, len({step for node in nodes for step in self.path(node)})

    def _check_unambiguous(self) -> None:
        first: dict[int, str] = {}
        for leaf, name in zip(self.leaves, self.texts, strict=True):
            if leaf == ROOT:
                raise ValueError(f"Action {name!r} has no tokens.")
            if leaf in first:
                raise ValueError(
                    f"Actions {first[leaf]!r} and {name!r} have the same tokens, "
                    "so the agent cannot tell them apart. Rename one of them."
                )
            first[leaf] = name
        for leaf, name in first.items():
            if self.children[leaf + 1]:
                raise ValueError(
                    f"Action {name!r} is a prefix of another action; "
                    "append an end-of-action token to every action."
                )


class FormTree(TokenTree):
    """The actions of a form as a tree whose nodes appear as it is walked.

    Each part has its tokens by itself, whatever comes before it. An action's tokens are those of
    its parts, and the end-of-action token. Where alternatives of a part begin with the same tokens,
    these are one node.

    Args:
        form: the offer.
        spelled: the tokens of each alternative of each part.
        end: the end-of-action token.

    Raises:
        ValueError: two actions have the same tokens.
    """

    def __init__(self, form: Form, spelled: Sequence[Sequence[tuple[int, ...]]], end: int) -> None:
        if _can_repeat(spelled):
            raise ValueError(
                f"Two actions of the form {form} have the same tokens, so the agent cannot tell "
                "them apart. Rename some of its words."
            )
        self._form = form
        self._spelled = (*map(tuple, spelled), ((end,),))
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._options: dict[int, tuple[int, ...]] = {}
        self._places: dict[int, list[_Place]] = {ROOT: self._enter(0)}
        self._leaves: tuple[int, ...] = ()

    @property
    def grown(self) -> int:
        """The number of nodes that have appeared."""
        return len(self._tokens)

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest action."""
        return sum(max(map(len, part)) for part in self._spelled)

    @property
    def offer(self) -> Form:
        """The actions as the world offers them."""
        return self._form

    def options(self, node: int) -> tuple[int, ...]:
        """The children of a node; none if it is a leaf. They appear when they are asked for."""
        if node not in self._options:
            after: dict[int, list[_Place]] = {}
            for part, alternative, read in self._places.pop(node):
                tokens = self._spelled[part][alternative]
                on = [(part, alternative, read + 1)]
                after.setdefault(tokens[read], []).extend(
                    on if read + 1 < len(tokens) else self._enter(part + 1)
                )
            first = len(self._tokens)
            self._options[node] = tuple(range(first, first + len(after)))
            self._places.update(enumerate(after.values(), first))
            self._tokens += after
            self._parents += [node] * len(after)
        return self._options[node]

    def token(self, node: int) -> int:
        """The token of a node."""
        return self._tokens[node]

    def parent(self, node: int) -> int:
        """The node before another one, or `ROOT`."""
        return self._parents[node]

    def text(self, leaf: int) -> str:
        """The action that ends in a leaf."""
        tokens = self.token_path(leaf)
        # From a number of tokens to the text that the parts so far can have written with them.
        written = {0: ""}
        for part, spelled in zip(self._form.parts, self._spelled, strict=False):
            written = {
                at + len(ids): before + text
                for at, before in written.items()
                for text, ids in zip(part, spelled, strict=True)
                if tokens[at : at + len(ids)] == ids
            }
        return written[len(tokens) - 1]  # all but the end-of-action token

    def all_leaves(self) -> tuple[int, ...]:
        """The last node of each action, in the order of the offer.

        Raises:
            ValueError: there are more than `MAX_LISTED`.
        """
        if not self._leaves:
            iter(self._form)  # refuses a form that is too large
            self._leaves = tuple(self.walk(sum(way, ()))[-1] for way in product(*self._spelled))
        return self._leaves

    def _enter(self, part: int) -> list[_Place]:
        """The places where a part can begin; those of the next part too, where it can be empty."""
        places: list[_Place] = []
        if part == len(self._spelled):
            return places
        for alternative, tokens in enumerate(self._spelled[part]):
            places += [(part, alternative, 0)] if tokens else self._enter(part + 1)
        return places


_Place = tuple[int, int, int]
"""A part, one of its alternatives, and the number of its tokens that have been read."""


def _can_repeat(parts: Sequence[Sequence[Text]]) -> bool:
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
