"""The offered actions of one state as a token tree.

An action is a path from the root to a leaf. A node with several children is a choice; after a node
with one child the next token is forced. The trie policy samples along this path, so its cost
depends on the length of the path and not on the number of offered actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

ROOT = -1
"""The node before the first token. It stands for the end of the prompt."""


@dataclass(frozen=True, eq=False)
class ActionTrie:
    """K token sequences merged into a tree of M nodes, with one token each.

    Tries are compared and hashed by identity: build one per distinct offer and reuse it.
    """

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

    def path(self, leaf: int) -> tuple[int, ...]:
        """The nodes from the first token to `leaf`."""
        nodes = []
        while leaf != ROOT:
            nodes.append(leaf)
            leaf = self.parents[leaf]
        return tuple(reversed(nodes))

    def token_path(self, node: int) -> tuple[int, ...]:
        """The tokens from the root to `node`, including its own; empty for the root."""
        return tuple(self.tokens[n] for n in self.path(node))

    @cached_property
    def choices(self) -> tuple[tuple[int, ...], int]:
        """The nodes with several children, and the number of tokens on the paths to all of them."""
        nodes = tuple(n for n in range(ROOT, len(self.tokens)) if len(self.children[n + 1]) > 1)
        return nodes, len({step for node in nodes for step in self.path(node)})

    def is_choice(self, node: int) -> bool:
        """True if the node's token has an alternative."""
        return len(self.children[self.parents[node] + 1]) > 1

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
