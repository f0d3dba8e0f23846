"""Offered actions as a token tree.

An action is a path from the root to a leaf. A node with several children is a choice; after a node
with one child the next token is forced. The policy samples along this path, so its cost depends on
the length of the path and not on the number of offered actions. The tree of a `Form` grows only
where it is walked, as does that of a `Grammar` (`poad.lm.grammar`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from poad.trie.offers import Form, Offer, can_repeat

ROOT = -1
"""The node before the first token. It stands for the end of the prompt."""


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
        if can_repeat(spelled):
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
