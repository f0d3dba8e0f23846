"""Turns, and the one place that lays their tokens out for a language model.

Everything actor and critic compute is read at a *position*: a prompt and the beginning of an
action. :func:`pack` puts any set of positions into as few rows as possible: a prompt once, behind
it the tree of all beginnings that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from poad.trie import ActionTrie

TokenIds = tuple[int, ...]
Position = tuple[TokenIds, TokenIds]
"""A prompt's token ids and those of an action's beginning: where a next token is predicted."""


@dataclass(frozen=True)
class Action:
    """What the agent wrote, exactly as sampled. n tokens."""

    text: str
    token_ids: TokenIds
    """[n] as sampled, the end-of-action token included; never re-tokenized."""
    choice: tuple[bool, ...]
    """[n] whether another token could have stood here; forced tokens earn no credit."""
    logprob: tuple[float, ...]
    """[n] natural log of the probability it was sampled with; 0 at forced tokens."""
    trie: ActionTrie | None = None
    """The offered actions it was chosen from; none when written freely."""
    nodes: tuple[int, ...] = ()
    """[n] its path in the trie."""


@dataclass(frozen=True)
class Turn:
    """One observation, the action written at it, and what came of it."""

    prompt_ids: TokenIds
    action: Action
    reward: float
    duration: int = 1
    """Primitive steps the action took."""
    terminated: bool = False
    truncated: bool = False
    next_prompt_ids: TokenIds = field(default=(), repr=False)
    """The observation after the action; of the same episode, also where that is its last."""


@dataclass(frozen=True)
class Packed:
    """B rows of L columns, and Q reading places in them.

    A row is a prompt, padded on the left so that all prompts end in the same column, and then the
    nodes of its tree, padded on the right.
    """

    token_ids: Tensor
    """[B, L] int64."""
    mask: Tensor
    """[B, L] bool, True at real tokens."""
    position_ids: Tensor
    """[B, L] int64: how many real tokens precede a token on its own path."""
    attention: Tensor | None
    """[B, 1, L, L] bool, True where a column may look; none when no row branches, where plain
    causal attention is the same."""
    row: Tensor
    """[Q] int64."""
    column: Tensor
    """[Q] int64: the column whose output predicts the token after the position."""

    @property
    def tokens(self) -> int:
        """Columns to compute, padding included."""
        return self.token_ids.numel()

    def to(self, device: torch.device) -> Packed:
        """The same rows on another device."""
        attention = None if self.attention is None else self.attention.to(device)
        rest = (self.token_ids, self.mask, self.position_ids)
        token_ids, mask, position_ids = (t.to(device) for t in rest)
        return Packed(
            token_ids, mask, position_ids, attention, self.row.to(device), self.column.to(device)
        )

    def select(self, rows: Tensor) -> tuple[Packed, Tensor]:
        """Some of the rows without the columns that only the others needed.

        Args:
            rows: [B'] int64, distinct.

        Returns:
            The smaller batch, and [Q'] int64: which readings it kept, in ascending order.
        """
        place = torch.full((len(self.token_ids),), -1)
        place[rows] = torch.arange(len(rows))
        kept = (place[self.row] >= 0).nonzero().squeeze(1)
        used = self.mask[rows].any(0).nonzero()
        columns = slice(int(used[0]), int(used[-1]) + 1)
        attention = self.attention
        if attention is not None:
            attention = attention[rows][:, :, columns, columns]
        return (
            Packed(
                self.token_ids[rows, columns],
                self.mask[rows, columns],
                self.position_ids[rows, columns],
                attention,
                place[self.row[kept]],
                self.column[kept] - columns.start,
            ),
            kept,
        )


@dataclass
class _Tree:
    """A row in the making: a prompt and the nodes behind it."""

    prompt: TokenIds
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    @property
    def branches(self) -> bool:
        return any(parent != node - 1 for node, parent in enumerate(self.parents))


def pack(positions: Iterable[Position], pad_id: int, max_nodes: int = 128) -> Packed:
    """Lay positions out in rows, sharing prompts and common beginnings.

    Args:
        positions: Q positions; prompts must not be empty.
        pad_id: token written into padding; its value never matters.
        max_nodes: a prompt whose tree would be larger goes into several rows (attention inside a
            row costs the square of its length). A single beginning is never cut.

    Returns:
        The rows; reading q belongs to the q-th position.
    """
    positions = list(positions)
    by_prompt: dict[TokenIds, set[TokenIds]] = {}
    for prompt, beginning in positions:
        by_prompt.setdefault(prompt, set()).add(beginning)
    trees: list[_Tree] = []
    place: dict[Position, tuple[int, int]] = {}
    for prompt, beginnings in by_prompt.items():
        _plant(prompt, beginnings, max_nodes, trees, place)

    width = max(len(tree.prompt) for tree in trees)
    length = width + max(len(tree.tokens) for tree in trees)
    token_ids = np.full((len(trees), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(trees), length), dtype=bool)
    depth = np.zeros((len(trees), length), dtype=np.int64)
    for b, tree in enumerate(trees):
        start, end = width - len(tree.prompt), width + len(tree.tokens)
        token_ids[b, start:width] = tree.prompt
        token_ids[b, width:end] = tree.tokens
        mask[b, start:end] = True
        depth[b, start:width] = np.arange(len(tree.prompt))
        for node, parent in enumerate(tree.parents):
            depth[b, width + node] = depth[b, width + parent] + 1
    attention = _tree_attention(trees, mask, width) if any(t.branches for t in trees) else None
    found = np.array([place[position] for position in positions], dtype=np.int64)
    return Packed(
        torch.from_numpy(token_ids),
        torch.from_numpy(mask),
        torch.from_numpy(depth),
        attention,
        torch.from_numpy(found[:, 0].copy()),
        torch.from_numpy(found[:, 1] + width),
    )


def _plant(
    prompt: TokenIds,
    beginnings: set[TokenIds],
    max_nodes: int,
    trees: list[_Tree],
    place: dict[Position, tuple[int, int]],
) -> None:
    """Grow the trees of one prompt; ``place`` learns (row, node) of each position, root = -1."""
    tree = _Tree(prompt)
    trees.append(tree)
    place[prompt, ()] = (len(trees) - 1, -1)
    nodes: dict[TokenIds, int] = {(): -1}  # of the newest tree
    for beginning in sorted(beginnings, reverse=True):  # longest first: its prefixes come for free
        if (prompt, beginning) in place:
            continue
        shared = len(beginning)
        while beginning[:shared] not in nodes:
            shared -= 1
        if tree.tokens and len(tree.tokens) + len(beginning) - shared > max_nodes:
            tree, shared = _Tree(prompt), 0
            nodes = {(): -1}
            trees.append(tree)
        node = nodes[beginning[:shared]]
        for end in range(shared, len(beginning)):
            tree.tokens.append(beginning[end])
            tree.parents.append(node)
            node = len(tree.tokens) - 1
            nodes[beginning[: end + 1]] = node
            place[prompt, beginning[: end + 1]] = (len(trees) - 1, node)


def _tree_attention(trees: Sequence[_Tree], mask: np.ndarray, width: int) -> Tensor:
    """Who sees whom: prompts causally, nodes their prompt and their ancestors. [B, 1, L, L]."""
    batch, length = mask.shape
    sees = np.zeros((batch, length, length), dtype=bool)
    sees[:, :width, :width] = np.tril(np.ones((width, width), dtype=bool))
    for b, tree in enumerate(trees):
        for node, parent in enumerate(tree.parents):
            sees[b, width + node] = sees[b, width + parent]
            sees[b, width + node, width + node] = True
    sees &= mask[:, None, :]
    sees |= np.eye(length, dtype=bool)  # padding sees itself: a row of nothing would be NaN
    return torch.from_numpy(sees[:, None])
