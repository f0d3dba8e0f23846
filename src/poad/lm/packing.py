"""Packing: any set of positions laid out in a few rows, and divided into minibatches.

Everything that actor and critic compute is read at a *position*: a prompt and the beginning of an
action. :func:`pack` lays positions out in rows for one forward pass. Token sequences that begin
alike become one tree, so that their common prefix is computed once. :class:`Bundles` divides
positions into units of work that share as little as possible with one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poad.turns import Position, TokenIds

# --- rows for one forward pass ----------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """B rows of L columns, and the Q places in them where hidden states are read.

    A row is a tree of token sequences: a prefix that several of them share stands in it once. The
    sequences ``a b c d`` and ``a b e`` make this row, and are read in columns 3 and 4::

        column        0  1   2    3     4
        token         a  b   c    d     e
        position id   0  1   2    3     2
        attends to    a  ab  abc  abcd  abe

    Rows are padded on the right.
    """

    token_ids: Tensor
    """[B, L] int64."""
    mask: Tensor
    """[B, L] bool, True at real tokens."""
    position_ids: Tensor
    """[B, L] int64: the number of tokens before each token in its own sequence."""
    attention: Tensor | None
    """[B, 1, L, L] bool, True where the token of a column (third axis) may attend to the token of
    another (fourth axis). None if no row branches: plain causal attention is then the same."""
    row: Tensor
    """[Q] int64: the row of each reading."""
    column: Tensor
    """[Q] int64: the column of each reading, whose output predicts the token after the position."""

    @property
    def tokens(self) -> int:
        """Number of columns to compute over all rows, padding included."""
        return self.token_ids.numel()

    def without_branches(self, pad_id: int) -> Packed:
        """Lay the same readings out in rows without branches, for kernels that take no mask."""
        if self.attention is None:
            return self
        # The columns that a reading attends to are its own sequence, in order.
        sequences = [
            tuple(self.token_ids[b, self.attention[b, 0, c]].tolist())
            for b, c in zip(self.row.tolist(), self.column.tolist(), strict=True)
        ]
        return pack([(sequence, ()) for sequence in sequences], pad_id, branching=False)

    def to(self, device: torch.device) -> Packed:
        """Copy the rows to another device."""
        return Packed(
            self.token_ids.to(device),
            self.mask.to(device),
            self.position_ids.to(device),
            None if self.attention is None else self.attention.to(device),
            self.row.to(device),
            self.column.to(device),
        )


def pack(
    positions: Sequence[Position], pad_id: int, row_tokens: int = 240, branching: bool = True
) -> Packed:
    """Lay positions out in rows, so that common prefixes are computed once.

    Once sorted, sequences that begin alike are neighbours. Each sequence joins the row of its
    predecessor, unless the two have too little in common or the row is already long.

    Args:
        positions: Q positions; prompts must not be empty.
        pad_id: the token in the padding; its value never matters.
        row_tokens: the length to which rows may grow. A row may always grow to twice the length of
            a sequence that would join it.
        branching: whether rows may be trees. If not, a sequence joins a row only if it continues
            the sequence before it.

    Returns:
        The rows. Reading q belongs to position q.
    """
    sequences = [(*prompt, *beginning) for prompt, beginning in positions]
    trees, ends = _build_trees(sequences, row_tokens, branching)
    shape = len(trees), max(len(tree.tokens) for tree in trees)  # [B, L]
    token_ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=bool)
    depth = np.zeros(shape, dtype=np.int64)
    for b, tree in enumerate(trees):
        token_ids[b, : len(tree.tokens)] = tree.tokens
        mask[b, : len(tree.tokens)] = True
        for chain in tree.chains:
            # Depths count on along a chain. They differ from columns behind every branch.
            length = chain.stop - chain.start
            depth[b, chain.start : chain.stop] = np.arange(chain.depth, chain.depth + length)
    readings = np.array([ends[sequence] for sequence in sequences], dtype=np.int64)  # [Q, 2]
    return Packed(
        torch.from_numpy(token_ids),
        torch.from_numpy(mask),
        torch.from_numpy(depth),
        _tree_attention(trees, shape[1]) if any(tree.branches for tree in trees) else None,
        torch.from_numpy(readings[:, 0].copy()),
        torch.from_numpy(readings[:, 1].copy()),
    )


def packed_tokens(positions: Sequence[Position], row_tokens: int = 240) -> int:
    """Count the tokens that :func:`pack` would compute for some positions, without padding."""
    sequences = [(*prompt, *beginning) for prompt, beginning in positions]
    return sum(len(tree.tokens) for tree in _build_trees(sequences, row_tokens, branching=True)[0])


class _Chain(NamedTuple):
    """A stretch of a tree without a branch, in consecutive columns."""

    start: int
    """Its first column."""
    stop: int
    """The column behind its last."""
    parent: int
    """The column of the token before it, -1 if there is none."""
    depth: int
    """The number of tokens before it in its sequence."""


@dataclass
class _Tree:
    """One row while it is being built."""

    tokens: list[int] = field(default_factory=list)
    chains: list[_Chain] = field(default_factory=list)
    newest: TokenIds = ()
    """The sequence that was added last."""
    path: list[int] = field(default_factory=list)
    """The columns of the newest sequence, one for each of its tokens."""

    @property
    def branches(self) -> bool:
        """True if a chain starts anywhere but directly behind its parent."""
        return any(chain.parent != chain.start - 1 for chain in self.chains)

    def fits(self, sequence: TokenIds, row_tokens: int, branching: bool) -> bool:
        """Tell whether a sequence should join this row.

        It should share a quarter of its tokens with the newest sequence, because the attention of a
        row costs the square of its length, and there must be room for the rest.
        """
        shared = common_prefix_length(self.newest, sequence)
        continues = shared == len(self.newest)
        if not branching or (continues and shared == len(self.tokens)):
            return continues  # a row without branches needs no mask and may grow to any length
        room = max(row_tokens, 2 * len(sequence)) - len(self.tokens)
        return 4 * shared >= len(sequence) and len(sequence) - shared <= room

    def grow(self, sequence: TokenIds) -> int:
        """Add a sequence that sorts behind the newest; return the column of its last token."""
        shared = common_prefix_length(self.newest, sequence)
        # Only the tokens behind the shared prefix take new columns.
        start, stop = len(self.tokens), len(self.tokens) + len(sequence) - shared
        if start < stop:
            parent = self.path[shared - 1] if shared else -1
            self.chains.append(_Chain(start, stop, parent, shared))
        self.tokens += sequence[shared:]
        self.path[shared:] = range(start, stop)
        self.newest = sequence
        return self.path[-1]


def _build_trees(
    sequences: Sequence[TokenIds], row_tokens: int, branching: bool
) -> tuple[list[_Tree], dict[TokenIds, tuple[int, int]]]:
    """Build the rows; map each sequence to the (row, column) of its last token."""
    trees: list[_Tree] = []
    ends: dict[TokenIds, tuple[int, int]] = {}
    # In sorted order a tree need only look at its newest sequence: no older one has a longer
    # prefix in common with the next.
    for sequence in sorted(set(sequences)):
        if not trees or not trees[-1].fits(sequence, row_tokens, branching):
            trees.append(_Tree())
        ends[sequence] = len(trees) - 1, trees[-1].grow(sequence)
    return trees, ends


def _tree_attention(trees: Sequence[_Tree], length: int) -> Tensor:
    """[B, 1, L, L] bool: every token attends to its ancestors and itself."""
    sees = np.zeros((len(trees), length, length), dtype=bool)
    # Padding attends to itself: the softmax over an empty row would be NaN.
    sees |= np.eye(length, dtype=bool)
    causal = np.tri(length, dtype=bool)
    for b, tree in enumerate(trees):
        for start, stop, parent, _ in tree.chains:
            # Parents stand before their children, so the parent's row of the mask is complete. It
            # is all of the past that the chain shares; within the chain attention is causal.
            if parent >= 0:
                sees[b, start:stop] = sees[b, parent]
            sees[b, start:stop, start:stop] = causal[: stop - start, : stop - start]
    return torch.from_numpy(sees[:, None])


# --- minibatches ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundles:
    """Q positions divided into S bundles. The positions of a bundle have a prompt in common."""

    assignment: Tensor
    """[Q] int64: the bundle of each position."""
    cost: Tensor
    """[S] int64: the number of tokens to compute for each bundle on its own."""

    @classmethod
    def divide(
        cls,
        positions: Sequence[Position],
        max_unshared_tokens: int | None = 128,
        branching: bool = True,
    ) -> Bundles:
        """Make a bundle for each prompt, in the order of the prompts.

        A prompt that continues another one, as in an episode that grows, belongs to the bundle of
        the other, so that their common prefix is computed once. A large bundle is split where a
        branch begins, because its branches share only the prefix.

        Args:
            positions: any number.
            max_unshared_tokens: split a bundle before a branch if otherwise more tokens than this
                would lie behind the prefix they share. None makes one bundle for each prompt.
            branching: whether rows may be trees. If not, every branch is computed whole.
        """
        prompts = dict.fromkeys(prompt for prompt, _ in positions)
        if max_unshared_tokens is None:
            roots = {prompt: prompt for prompt in prompts}
        else:
            roots = _shortest_prefixes(prompts)
        members: dict[TokenIds, list[int]] = {}
        for q, (prompt, _) in enumerate(positions):
            members.setdefault(roots[prompt], []).append(q)
        assignment = torch.zeros(len(positions), dtype=torch.int64)
        cost: list[int] = []
        for root, indices in members.items():
            cost.append(len(root))  # computed whole, however little of it is read
            previous = root
            # In sorted order, as in `pack`, no older sequence has more in common with the next.
            for sequence, q in sorted(((*positions[q][0], *positions[q][1]), q) for q in indices):
                shared = common_prefix_length(previous, sequence)
                continues = shared == len(previous)
                # A sequence adds what lies behind the prefix it shares with the one before. In rows
                # without branches, only a continuation shares anything.
                added = len(sequence) - (shared if branching or continues else 0)
                # The bundle has this many tokens besides the shared prefix. A new bundle computes
                # the prefix again, which pays off only if they are many.
                unshared = cost[-1] - shared
                if (
                    max_unshared_tokens is not None
                    and not continues
                    and unshared + added > max_unshared_tokens
                    and unshared >= max_unshared_tokens // 2
                ):
                    cost.append(0)
                    added = len(sequence)
                cost[-1] += added
                assignment[q] = len(cost) - 1
                previous = sequence
        return cls(assignment, torch.tensor(cost))

    def select(self, bundles: Tensor) -> tuple[Bundles, Tensor]:
        """Select some of the bundles.

        Args:
            bundles: [S'] int64, distinct.

        Returns:
            The selected bundles, renumbered in the order given, and [Q'] int64: the positions in
            them, in ascending order.
        """
        # [S] -> [Q]: the new number of each position's bundle, -1 if it was not selected
        new = renumber(bundles, len(self.cost))[self.assignment]
        kept = (new >= 0).nonzero().squeeze(1)
        return Bundles(new[kept], self.cost[bundles]), kept

    def micro_batches(self, max_tokens: int, bundles: Tensor | None = None) -> list[Tensor]:
        """Group bundles into micro-batches of about ``max_tokens`` tokens, in the order given.

        Args:
            max_tokens: tokens of one micro-batch. A larger bundle is a micro-batch of its own.
            bundles: [S'] int64, the bundles to group; all by default.

        Returns:
            [S'] split into consecutive parts.
        """
        bundles = torch.arange(len(self.cost)) if bundles is None else bundles
        # Lay the bundles end to end and cut at every multiple of max_tokens: a bundle belongs to
        # the part in which its last token lies.
        part = (self.cost[bundles].cumsum(0) - 1) // max_tokens
        return [bundles[part == p] for p in part.unique()]


def renumber(kept: Tensor, size: int) -> Tensor:
    """Map old indices to new ones after a selection.

    Args:
        kept: [n] int64, distinct indices below ``size``; ``kept[i]`` becomes i.
        size: how many indices there were.

    Returns:
        [size] int64: the new index of each old one, -1 where it was not kept. For example,
        ``renumber(tensor([3, 1]), 4)`` is ``[-1, 1, -1, 0]``.
    """
    new_index = torch.full((size,), -1)
    new_index[kept] = torch.arange(len(kept))
    return new_index


def common_prefix_length(a: TokenIds, b: TokenIds) -> int:
    """Count the tokens with which both sequences begin."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _shortest_prefixes(prompts: Iterable[TokenIds]) -> dict[TokenIds, TokenIds]:
    """Map each prompt to the shortest of the prompts that it begins with."""
    shortest: dict[TokenIds, TokenIds] = {}
    root: TokenIds | None = None
    for prompt in sorted(prompts):  # continuations of a prompt come directly behind it
        if root is None or prompt[: len(root)] != root:
            root = prompt
        shortest[prompt] = root
    return shortest
