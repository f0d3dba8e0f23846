"""Grammars as token trees: which tokens may come next, by llguidance.

A grammar describes too many actions to list them, so its tree grows where it is walked. At a node
with few admissible tokens these are its children, and only such spellings remain that the tokenizer
itself would choose, so that each text has one. Text that the grammar forces is spelled the same way
and is no choice. Where many tokens are admissible, as inside an open string, the agent writes as it
does freely: any spelling counts, and the tree keeps a mask of the tokens instead of children.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from poad.errors import ModelError
from poad.lm.cursor import FEW, Cursor, GrammarReader
from poad.trie import MAX_LISTED, ROOT, CallForm, Grammar, TokenTree

_MARGIN: Final = 16
"""Tokens by which the way to the end may grow between two searches for it."""


class GrammarTree(TokenTree):
    """The actions of a grammar as a token tree that grows where it is walked.

    Args:
        grammar: the offer.
        reader: the tokenizer.
        prefix: the text between a prompt and an action. It belongs to the action.
        form: how calls of tools are written; None means as JSON.
        spare: the most choices of an action. Behind them, the way to the end is forced, so that
            every action is complete. It is also forced where an action has twice so many tokens
            more than a short one.

    Raises:
        ValueError: the grammar cannot be read, describes no text, or admits an empty action.
    """

    def __init__(
        self,
        grammar: Grammar,
        reader: GrammarReader,
        prefix: str,
        spare: int,
        form: CallForm | None = None,
    ) -> None:
        self._grammar, self._reader, self._form = grammar, reader, form or CallForm()
        if grammar.tools and not self._form.joined:
            prefix = ""
        self._prefix = prefix.encode()
        self._cursor = Cursor(grammar, reader, prefix, form)
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._options: dict[int, tuple[int, ...]] = {}
        self._masks: dict[int, bytes] = {}
        self._children: dict[int, dict[int, int]] = {}  # of nodes with a mask, by token
        self._leaves: tuple[int, ...] | None = None
        self._open = {ROOT: 0}  # how many tokens up to a node may be spelled in any way
        shortest = len(self._cursor.ending())
        self._needs = {ROOT: shortest}  # how many tokens lead to the end from where it was looked
        self._made: list[int] = []  # how many choices lead to each node
        self.spare = spare
        """The most choices of an action."""
        self._last = max(shortest, *_shortest_calls(grammar, reader, prefix, form)) + 2 * spare
        self.longest = self._last + _MARGIN
        """The number of tokens of the longest action, unless one of its tokens opens a part that
        cannot be closed with `_MARGIN` more."""

    @property
    def grown(self) -> int:
        """The size of the tree, counted in nodes."""
        return len(self._tokens) + sum(map(len, self._masks.values())) // 40

    @property
    def offer(self) -> Grammar:
        """The actions as the world offers them."""
        return self._grammar

    def options(self, node: int) -> tuple[int, ...]:
        """The children of a node; none if it is a leaf.

        Raises:
            ValueError: they are not listed, since there are too many; see `allowed`.
        """
        self._expand(node)
        if node in self._masks:
            raise ValueError("The tokens after this node are too many to be listed.")
        return self._options[node]

    def allowed(self, node: int) -> bytes | None:
        """The admissible tokens after a node where they are many, one bit each, lowest first."""
        self._expand(node)
        return self._masks.get(node)

    def child(self, node: int, token: int) -> int:
        """The node of a token after another node.

        Raises:
            ValueError: the token is not admissible there.
        """
        mask = self.allowed(node)
        if mask is None:
            return super().child(node, token)
        known = self._children[node]
        if token not in known:
            if not (token // 8 < len(mask) and mask[token // 8] >> token % 8 & 1):
                tokens = [*self.token_path(node), token]
                raise ValueError(f"No offered action begins with the tokens {tokens}.")
            known[token] = self._grow(node, token, choice=True)
            self._open[known[token]] = len(self.path(known[token]))
        return known[token]

    def token(self, node: int) -> int:
        """The token of a node."""
        return self._tokens[node]

    def parent(self, node: int) -> int:
        """The node before another one, or `ROOT`."""
        return self._parents[node]

    def text(self, leaf: int) -> str:
        """The action that ends in a leaf.

        Raises:
            ModelError: the tokenizer changes what stands around calls of tools.
        """
        spelled = self._reader.tokenizer.decode_bytes(list(self.token_path(leaf)[:-1]))
        text = spelled.removeprefix(self._prefix).decode(errors="replace")
        if not self._grammar.tools:
            return text
        calls = self._form.read(text)
        if not calls:
            raise ModelError(
                f"The call {text!r} cannot be read back: the tokenizer does not spell what the "
                "chat template writes around calls. prompt.format = plain needs no template."
            )
        return "\n".join(calls)

    def all_leaves(self) -> Sequence[int]:
        """The last node of each action.

        Raises:
            ValueError: there are more than `MAX_LISTED`.
        """
        if self._leaves is None:
            self._leaves = self._find_leaves()
        if not self._leaves:
            raise ValueError(f"A grammar of more than {MAX_LISTED:,} actions is not listed.")
        return self._leaves

    def _find_leaves(self) -> tuple[int, ...]:
        """Search the tree; nothing is found if there are open texts or too many actions."""
        leaves, waiting = list[int](), [ROOT]
        while waiting:
            node = waiting.pop()
            if self.allowed(node) is not None or len(leaves) == MAX_LISTED:
                return ()
            options = self.options(node)
            waiting.extend(reversed(options))
            leaves += [] if options else [node]
        return tuple(leaves)

    def _expand(self, node: int) -> None:
        """Find what may follow a node, once."""
        if node in self._options or node in self._masks:
            return
        if node != ROOT and self._tokens[node] == self._reader.end:
            self._options[node] = ()
            return
        path = list(self.token_path(node))
        self._cursor.go_to(path)
        if forced := self._cursor.forced():
            self._chain(node, forced)
            return
        tokens, mask = self._cursor.admissible()
        if len(tokens) > 1 and (ending := self._last_call(node, len(path))):
            self._chain(node, ending)
        elif len(tokens) > FEW:
            self._masks[node], self._children[node] = mask, {}
        else:
            before = path[self._above(self._open, node) :]
            kept = [token for token in tokens if self._cursor.is_spelling(before, token)]
            # If the search looked too short a way ahead, none is left. Then each spelling counts.
            choice = len(kept or tokens) > 1
            self._options[node] = tuple(self._grow(node, t, choice) for t in kept or tokens)

    def _last_call(self, node: int, length: int) -> list[int]:
        """Return the tokens to the end if an action of so many tokens must now come to it."""
        done = node != ROOT and self._made[node] >= self.spare
        if not done and length + self._above(self._needs, node) + _MARGIN < self._last:
            return []
        ending = self._cursor.ending()
        self._needs[node] = len(ending)
        return ending if done or length + len(ending) >= self._last else []

    def _above(self, known: Mapping[int, int], node: int) -> int:
        """Return what is known of a node, or else of the nearest one above it."""
        while node not in known:
            node = self._parents[node]
        return known[node]

    def _chain(self, node: int, tokens: Sequence[int]) -> None:
        """Add tokens without an alternative behind a node."""
        for token in tokens:
            child = self._grow(node, token)
            self._options[node] = (child,)
            node = child

    def _grow(self, node: int, token: int, choice: bool = False) -> int:
        known = self._reader.vocabulary
        if known is not None and token >= known:
            raise ModelError(
                f"The action grammar ({self._grammar}) needs the token {token:,}, but the model "
                f"knows {known:,} tokens only. Use the model's own tokenizer."
            )
        self._tokens.append(token)
        self._parents.append(node)
        self._made.append((0 if node == ROOT else self._made[node]) + choice)
        return len(self._tokens) - 1


def _shortest_calls(
    grammar: Grammar, reader: GrammarReader, prefix: str, form: CallForm | None
) -> Iterator[int]:
    """Yield the length of a short call of each tool; 0 for other grammars."""
    yield 0
    for tool in json.loads(grammar.source) if grammar.kind == "tools" else ():
        alone = Grammar.of({"tools": [tool]})
        yield len(Cursor(alone, reader, prefix, form).ending())
