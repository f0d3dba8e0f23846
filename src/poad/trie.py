"""The offered actions of one state as a token tree.

Walking the tree from its root, a node with several children is a choice and a node with one child
is forced. The trie policy samples along this walk, so its cost follows the chosen path and not the
number of offered actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

ROOT = -1
"""The node before the first token: the end of the prompt."""


@dataclass(frozen=True, eq=False)
class ActionTrie:
    """K token sequences merged where they agree; M nodes, one token each.

    Compared and hashed by identity: build one per distinct offer and reuse it.
    """

    tokens: tuple[int, ...]
    """[M] the token of each node; parents come before their children."""
    parents: tuple[int, ...]
    """[M] the node before it, or ``ROOT``."""
    leaves: tuple[int, ...]
    """[K] the last node of each action, in the order the actions were given."""
    texts: tuple[str, ...]
    """[K] the actions as text."""
    children: tuple[tuple[int, ...], ...]
    """[M + 1] the nodes that continue node i, at index i + 1; those of the root at index 0."""

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], texts: Sequence[str]) -> ActionTrie:
        """Merge token sequences into a trie.

        Args:
            sequences: K non-empty token sequences, none repeated, none the beginning of another
                (an end-of-action token after each rules the latter out).
            texts: the K actions as text.

        Raises:
            ValueError: no sequence, an empty one, a repeated one, or one that begins another.
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
                known = next((c for c in children[node + 1] if tokens[c] == token), None)
                if known is None:
                    known = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    children.append([])
                    children[node + 1].append(known)
                node = known
            leaves.append(node)
        trie = cls(
            tuple(tokens),
            tuple(parents),
            tuple(leaves),
            tuple(texts),
            tuple(map(tuple, children)),
        )
        trie._refuse_ambiguity()
        return trie

    def path(self, leaf: int) -> tuple[int, ...]:
        """The nodes from the first token to ``leaf``."""
        nodes = []
        while leaf != ROOT:
            nodes.append(leaf)
            leaf = self.parents[leaf]
        return tuple(reversed(nodes))

    def token_path(self, node: int) -> tuple[int, ...]:
        """The tokens from the root to ``node``, its own included; none at the root."""
        return tuple(self.tokens[n] for n in self.path(node))

    @cached_property
    def choices(self) -> tuple[tuple[int, ...], int]:
        """The nodes with several continuations, and how many tokens lead to any of them."""
        nodes = tuple(n for n in range(ROOT, len(self.tokens)) if len(self.children[n + 1]) > 1)
        return nodes, len({step for node in nodes for step in self.path(node)})

    def is_choice(self, node: int) -> bool:
        """Whether another token could have stood in this node's place."""
        return len(self.children[self.parents[node] + 1]) > 1

    def _refuse_ambiguity(self) -> None:
        first: dict[int, str] = {}
        for leaf, name in zip(self.leaves, self.texts, strict=True):
            if leaf == ROOT:
                raise ValueError(f"Action {name!r} has no tokens.")
            if leaf in first:
                raise ValueError(
                    f"Actions {first[leaf]!r} and {name!r} have the same tokens: "
                    "the agent could not say which it means."
                )
            first[leaf] = name
        for leaf, name in first.items():
            if self.children[leaf + 1]:
                raise ValueError(
                    f"Action {name!r} is the beginning of another action; "
                    "append an end-of-action token to every action."
                )
