"""Packing: any set of positions laid out in a few rows, and divided into minibatches.

Everything that actor and critic compute is read at a *position*: a prompt and the beginning of an
action. :func:`pack` lays positions out in rows for one forward pass. Token sequences that begin
alike become one tree, so that their common prefix is computed once. :class:`Bundles` divides
positions into units of work that share as little as possible with one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poad.turns import Beginning, Position, TokenIds

_ROW_TOKENS = 240
"""Rows that branch may grow to this length, or to twice that of a sequence that joins them."""

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
    positions: Sequence[Position],
    pad_id: int,
    row_tokens: int = _ROW_TOKENS,
    branching: bool = True,
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
    return _lay_out(*_build_trees(positions, row_tokens, branching), pad_id)


def pack_in_passes(
    positions: Sequence[Position], pad_id: int, max_tokens: int, branching: bool = True
) -> list[tuple[Packed, Tensor]]:
    """Lay positions out as :func:`pack` does, and divide the rows among several passes.

    Args:
        positions: Q positions; prompts must not be empty.
        pad_id: the token in the padding.
        max_tokens: columns of one pass, padding included. A longer row is a pass of its own.
        branching: whether rows may be trees.

    Returns:
        For each pass its rows, and [Q'] int64: the positions that are read there, in ascending
        order. Each position is read once.
    """
    trees, ends = _build_trees(positions, min(_ROW_TOKENS, max_tokens), branching)
    starts, longest = [0], 0
    for b, tree in enumerate(trees):
        longest = max(longest, len(tree.tokens))
        if b > starts[-1] and (b + 1 - starts[-1]) * longest > max_tokens:
            starts.append(b)
            longest = len(tree.tokens)
    passes = []
    row = torch.tensor([b for b, _ in ends])
    for start, stop in pairwise([*starts, len(trees)]):
        here = ((row >= start) & (row < stop)).nonzero().squeeze(1)
        some = [(ends[q][0] - start, ends[q][1]) for q in here.tolist()]
        passes.append((_lay_out(trees[start:stop], some, pad_id), here))
    return passes


def _lay_out(trees: Sequence[_Tree], ends: Sequence[tuple[int, int]], pad_id: int) -> Packed:
    """Pad rows to one length; reading q lies at the (row, column) ``ends[q]``."""
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
    readings = np.array(ends, dtype=np.int64)  # [Q, 2]
    return Packed(
        torch.from_numpy(token_ids),
        torch.from_numpy(mask),
        torch.from_numpy(depth),
        _tree_attention(trees, shape[1]) if any(tree.branches for tree in trees) else None,
        torch.from_numpy(readings[:, 0].copy()),
        torch.from_numpy(readings[:, 1].copy()),
    )


def packed_tokens(positions: Sequence[Position]) -> int:
    """Count the tokens that :func:`pack` would compute for some positions, without padding."""
    trees, _ = _build_trees(positions, _ROW_TOKENS, branching=True)
    return sum(len(tree.tokens) for tree in trees)


class _Sequence(NamedTuple):
    """A token sequence, in sorted order among others."""

    tokens: TokenIds
    """It begins with the sequence, and may be longer."""
    length: int
    """The number of tokens of the sequence."""
    shared: int
    """The number of tokens with which the sequence before it begins as well."""
    positions: list[int]
    """The positions that it belongs to."""


def _in_order(positions: Sequence[Position]) -> Iterator[_Sequence]:
    """Go through the distinct token sequences of some positions in sorted order.

    The beginnings of one action share its tokens, and here they stay together: the work grows with
    the number of tokens, not with the sum of the lengths of all sequences.
    """
    # The positions behind one prompt and in one action, by the length of their sequence.
    found: dict[tuple[int, int], tuple[TokenIds, TokenIds, dict[int, list[int]]]] = {}
    for q, (prompt, beginning) in enumerate(positions):
        action = beginning.tokens if isinstance(beginning, Beginning) else beginning
        key = id(prompt), id(action)  # both stay alive in the positions
        lengths = found.setdefault(key, (prompt, action, {}))[2]
        lengths.setdefault(len(prompt) + len(beginning), []).append(q)
    wholes = sorted(
        (
            ((*prompt, *action[: max(lengths) - len(prompt)]), lengths)
            for prompt, action, lengths in found.values()
        ),
        key=itemgetter(0),
    )
    common = [common_prefix_length(a, b) for (a, _), (b, _) in pairwise([((), {}), *wholes])]
    # What a whole sequence shares with the one before it was to be met there, if not earlier.
    for i in range(len(wholes) - 1, 0, -1):
        mine, before = wholes[i][1], wholes[i - 1][1]
        for length in [length for length in mine if length <= common[i]]:
            before.setdefault(length, []).extend(mine.pop(length))
    previous = 0
    for (tokens, lengths), alike in zip(wholes, common, strict=True):
        previous = min(previous, alike)  # of the newest sequence, what this one shares
        for length in sorted(lengths):
            yield _Sequence(tokens, length, previous, lengths[length])
            previous = length


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
    path: list[int] = field(default_factory=list)
    """The columns of the newest sequence, one for each of its tokens."""

    @property
    def branches(self) -> bool:
        """True if a chain starts anywhere but directly behind its parent."""
        return any(chain.parent != chain.start - 1 for chain in self.chains)

    def fits(self, sequence: _Sequence, row_tokens: int, branching: bool) -> bool:
        """Tell whether a sequence should join this row, whose newest sequence came before it.

        It should share a quarter of its tokens with the newest sequence, because the attention of a
        row costs the square of its length, and there must be room for the rest.
        """
        continues = sequence.shared == len(self.path)
        if not branching or (continues and sequence.shared == len(self.tokens)):
            return continues  # a row without branches needs no mask and may grow to any length
        room = max(row_tokens, 2 * sequence.length) - len(self.tokens)
        added = sequence.length - sequence.shared
        return 4 * sequence.shared >= sequence.length and added <= room

    def grow(self, sequence: _Sequence) -> int:
        """Add a sequence that sorts behind the newest; return the column of its last token."""
        shared = min(sequence.shared, len(self.path))  # nothing in a row that just began
        # Only the tokens behind the shared prefix take new columns.
        start, stop = len(self.tokens), len(self.tokens) + sequence.length - shared
        if start < stop:
            parent = self.path[shared - 1] if shared else -1
            self.chains.append(_Chain(start, stop, parent, shared))
        self.tokens += sequence.tokens[shared : sequence.length]
        self.path[shared:] = range(start, stop)
        return self.path[-1]


def _build_trees(
    positions: Sequence[Position], row_tokens: int, branching: bool
) -> tuple[list[_Tree], list[tuple[int, int]]]:
    """Build the rows; find the (row, column) of the last token of each position's sequence."""
    trees: list[_Tree] = []
    ends = [(0, 0)] * len(positions)
    # In sorted order a tree need only look at its newest sequence: no older one has a longer
    # prefix in common with the next.
    for sequence in _in_order(positions):
        if not trees or not trees[-1].fits(sequence, row_tokens, branching):
            trees.append(_Tree())
        end = len(trees) - 1, trees[-1].grow(sequence)
        for q in sequence.positions:
            ends[q] = end
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

    positions: tuple[Position, ...]
    """[Q]."""
    assignment: Tensor
    """[Q] int64: the bundle of each position."""
    cost: Tensor
    """[S] int64: the number of tokens to compute for each bundle on its own."""
    branching: bool
    """Whether rows may be trees."""

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
            previous = len(root)
            # In sorted order, as in `pack`, no older sequence has more in common with the next.
            for sequence in _in_order([positions[q] for q in indices]):
                # The first one is compared with the root, with which all of them begin.
                shared = max(sequence.shared, len(root))
                continues = shared == previous
                # A sequence adds what lies behind the prefix it shares with the one before. In rows
                # without branches, only a continuation shares anything.
                added = sequence.length - (shared if branching or continues else 0)
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
                    added = sequence.length
                cost[-1] += added
                assignment[[indices[i] for i in sequence.positions]] = len(cost) - 1
                previous = sequence.length
        return cls(tuple(positions), assignment, torch.tensor(cost), branching)

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
        positions = tuple(self.positions[q] for q in kept.tolist())
        return Bundles(positions, new[kept], self.cost[bundles], self.branching), kept

    def micro_batches(self, max_tokens: int, bundles: Tensor | None = None) -> list[Tensor]:
        """Group bundles into micro-batches of at most ``max_tokens`` columns, padding included.

        Args:
            max_tokens: rows times longest row of one micro-batch, as `pack` lays them out. A larger
                bundle is a micro-batch of its own.
            bundles: [S'] int64, the bundles to group; all by default.

        Returns:
            The S' bundles in parts, none if there are none. If there are several, each holds
            bundles of similar length. Both the parts and the bundles in them keep their order.
        """
        bundles = torch.arange(len(self.cost)) if bundles is None else bundles
        # [S]: the length of each bundle's longest sequence
        longest = torch.zeros_like(self.cost)
        longest = longest.scatter_reduce(0, self.assignment, self._length, "amax")
        parts: list[Tensor] = []
        waiting = [longest[bundles].argsort(stable=True)] if len(bundles) else []
        while waiting:
            part = waiting.pop()  # places among the S' bundles
            some = bundles[part]
            if len(some) < 2 or self._columns(some, max_tokens) <= max_tokens:
                parts.append(part.sort().values)
                continue
            # Fill pieces from the shortest to the longest, as if bundles shared no rows.
            piece, count, rows = [], 0, 0
            for cost, length in zip(self.cost[some].tolist(), longest[some].tolist(), strict=True):
                rows += math.ceil(cost / length)
                if rows * length > max_tokens:
                    count, rows = count + 1, math.ceil(cost / length)
                piece.append(count)
            if piece[0] == piece[-1]:  # they would fit, but padding takes more than that
                piece = [2 * i // len(some) for i in range(len(some))]
            waiting += [part[torch.tensor(piece) == p] for p in dict.fromkeys(piece)]
        return [bundles[part] for part in sorted(parts, key=lambda part: int(part[0]))]

    @cached_property
    def _length(self) -> Tensor:
        """[Q] int64: the number of tokens of each position's sequence."""
        return torch.tensor([len(prompt) + len(beginning) for prompt, beginning in self.positions])

    def _columns(self, bundles: Tensor, enough: int) -> int:
        """Count rows times longest row of some bundles; a bound will do if it is small enough."""
        part, _ = self.select(bundles)
        lengths = part._length
        bound = len(lengths) * max(_ROW_TOKENS, 2 * int(lengths.max()))
        if bound <= enough:
            return bound
        trees, _ = _build_trees(part.positions, _ROW_TOKENS, self.branching)
        return len(trees) * max(len(tree.tokens) for tree in trees)


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
    same, most = 0, min(len(a), len(b))
    while same < most:  # comparing slices is far faster than comparing tokens one by one
        middle = (same + most + 1) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same


def _shortest_prefixes(prompts: Iterable[TokenIds]) -> dict[TokenIds, TokenIds]:
    """Map each prompt to the shortest of the prompts that it begins with."""
    shortest: dict[TokenIds, TokenIds] = {}
    root: TokenIds | None = None
    for prompt in sorted(prompts):  # continuations of a prompt come directly behind it
        if root is None or prompt[: len(root)] != root:
            root = prompt
        shortest[prompt] = root
    return shortest
