"""Turns, and the one place that lays their tokens out for a language model.

Everything actor and critic compute is read at a *position*: a prompt and the beginning of an
action. :func:`pack` puts any set of positions into few rows: token sequences that begin alike
become one tree, so that their common beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from poad.turns import Position, TokenIds


@dataclass(frozen=True)
class Packed:
    """B rows of L columns, and Q reading places in them.

    A row is a tree of token sequences: what several of them begin with stands in it once. Rows are
    padded on the right.
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

    def linear(self, pad_id: int) -> Packed:
        """The same readings in rows without branches: each branch gets a row of its own."""
        if self.attention is None:
            return self
        sequences = [
            tuple(self.token_ids[b, self.attention[b, 0, c]].tolist())
            for b, c in zip(self.row.tolist(), self.column.tolist(), strict=True)
        ]
        return pack([(sequence, ()) for sequence in sequences], pad_id, branching=False)

    def to(self, device: torch.device) -> Packed:
        """The same rows on another device."""
        attention = None if self.attention is None else self.attention.to(device)
        rest = (self.token_ids, self.mask, self.position_ids)
        token_ids, mask, position_ids = (t.to(device) for t in rest)
        return Packed(
            token_ids, mask, position_ids, attention, self.row.to(device), self.column.to(device)
        )


@dataclass
class _Tree:
    """A row in the making."""

    tokens: list[int] = field(default_factory=list)
    chains: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Runs of nodes without a branch: first column, column behind the last, the column before the
    first on its path (-1: none), position of the first."""
    newest: TokenIds = ()
    path: list[int] = field(default_factory=list)
    """The columns of the newest sequence."""

    @property
    def branches(self) -> bool:
        return any(parent != start - 1 for start, _, parent, _ in self.chains)

    def fits(self, sequence: TokenIds, row_tokens: int, branching: bool) -> bool:
        """Whether it pays to compute a sequence here: enough of it stands here, and there is room.

        A row's attention costs the square of its length.
        """
        shared = common(self.newest, sequence)
        goes_on = shared == len(self.newest)
        if not branching or (goes_on and shared == len(self.tokens)):
            return goes_on
        room = max(row_tokens, 2 * len(sequence)) - len(self.tokens)
        return 4 * shared >= len(sequence) and len(sequence) - shared <= room

    def grow(self, sequence: TokenIds) -> int:
        """Add a sequence, not before the newest in order; the column of its last token."""
        shared = common(self.newest, sequence)
        start, end = len(self.tokens), len(self.tokens) + len(sequence) - shared
        if start < end:
            self.chains.append((start, end, self.path[shared - 1] if shared else -1, shared))
        self.tokens += sequence[shared:]
        self.path[shared:] = range(start, end)
        self.newest = sequence
        return self.path[-1]


def pack(
    positions: Sequence[Position], pad_id: int, row_tokens: int = 240, branching: bool = True
) -> Packed:
    """Lay positions out in rows, computing once what they have in common.

    Sorted, sequences that begin alike are neighbours. Each joins the row of the one before it,
    unless it has too little in common with that one or the row is long enough.

    Args:
        positions: Q positions; prompts must not be empty.
        pad_id: token written into padding; its value never matters.
        row_tokens: how long rows may grow, though always to twice a sequence that would join.
        branching: whether rows may be trees; otherwise only beginnings join their continuation.

    Returns:
        The rows; reading q belongs to the q-th position.
    """
    sequences = [(*prompt, *beginning) for prompt, beginning in positions]
    trees, place = _build_trees(sequences, row_tokens, branching)
    shape = len(trees), max(len(tree.tokens) for tree in trees)
    token_ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=bool)
    depth = np.zeros(shape, dtype=np.int64)
    for b, tree in enumerate(trees):
        token_ids[b, : len(tree.tokens)] = tree.tokens
        mask[b, : len(tree.tokens)] = True
        for start, end, _, first in tree.chains:
            depth[b, start:end] = np.arange(first, first + end - start)
    found = np.array([place[sequence] for sequence in sequences], dtype=np.int64)
    return Packed(
        torch.from_numpy(token_ids),
        torch.from_numpy(mask),
        torch.from_numpy(depth),
        _tree_attention(trees, shape[1]) if any(tree.branches for tree in trees) else None,
        torch.from_numpy(found[:, 0].copy()),
        torch.from_numpy(found[:, 1].copy()),
    )


def packed_tokens(positions: Sequence[Position], row_tokens: int = 240) -> int:
    """How many tokens :func:`pack` would compute for some positions, padding apart."""
    sequences = [(*prompt, *beginning) for prompt, beginning in positions]
    return sum(len(tree.tokens) for tree in _build_trees(sequences, row_tokens, branching=True)[0])


def _build_trees(
    sequences: Sequence[TokenIds], row_tokens: int, branching: bool
) -> tuple[list[_Tree], dict[TokenIds, tuple[int, int]]]:
    """The rows, and in which row and column each sequence ends."""
    trees: list[_Tree] = []
    place: dict[TokenIds, tuple[int, int]] = {}
    for sequence in sorted(set(sequences)):
        if not trees or not trees[-1].fits(sequence, row_tokens, branching):
            trees.append(_Tree())
        place[sequence] = len(trees) - 1, trees[-1].grow(sequence)
    return trees, place


def _tree_attention(trees: Sequence[_Tree], length: int) -> Tensor:
    """Who sees whom: a token its ancestors and itself. [B, 1, L, L]."""
    sees = np.zeros((len(trees), length, length), dtype=bool)
    sees |= np.eye(length, dtype=bool)  # padding sees itself: a row of nothing would be NaN
    causal = np.tri(length, dtype=bool)
    for b, tree in enumerate(trees):
        for start, end, parent, _ in tree.chains:
            if parent >= 0:
                sees[b, start:end] = sees[b, parent]
            sees[b, start:end, start:end] = causal[: end - start, : end - start]
    return torch.from_numpy(sees[:, None])


def common(a: TokenIds, b: TokenIds) -> int:
    """How many tokens two sequences begin with alike."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _sequence(position: Position) -> TokenIds:
    prompt, beginning = position
    return (*prompt, *beginning)


def _homes(prompts: Iterable[TokenIds]) -> dict[TokenIds, TokenIds]:
    """For each prompt the shortest one that it begins with."""
    homes: dict[TokenIds, TokenIds] = {}
    root: TokenIds | None = None
    for prompt in sorted(prompts):  # what begins with a prompt comes right behind it
        if root is None or prompt[: len(root)] != root:
            root = prompt
        homes[prompt] = root
    return homes


@dataclass(frozen=True)
class Bundles:
    """Q positions divided among S bundles of work, each of what begins with one prompt."""

    of: Tensor
    """[Q] int64: the bundle each position is in."""
    cost: Tensor
    """[S] int64: tokens to compute for each bundle on its own."""

    @classmethod
    def divide(
        cls, positions: Sequence[Position], largest: int | None = 128, branching: bool = True
    ) -> Bundles:
        """Make a bundle of every prompt, in the order the prompts come.

        A prompt that begins with another one (an episode that grows) is in the other's bundle, so
        that what they have in common is computed together.

        Args:
            positions: any number.
            largest: how many tokens a bundle may have that a sequence which branches off does not
                share, or so; more make another bundle. None: one bundle for each prompt.
            branching: whether rows may be trees; otherwise what branches off is computed whole.
        """
        prompts = dict.fromkeys(prompt for prompt, _ in positions)
        home = {prompt: prompt for prompt in prompts} if largest is None else _homes(prompts)
        by_home: dict[TokenIds, list[int]] = {}
        for q, (prompt, _) in enumerate(positions):
            by_home.setdefault(home[prompt], []).append(q)
        of = torch.zeros(len(positions), dtype=torch.int64)
        cost: list[int] = []
        for root, members in by_home.items():
            cost.append(len(root))
            before = root
            for sequence, q in sorted((_sequence(positions[q]), q) for q in members):
                shared = common(before, sequence)
                goes_on = shared == len(before)
                more = len(sequence) - (shared if branching or goes_on else 0)
                own = cost[-1] - shared  # what the bundle has beside it
                if largest is not None and not goes_on and largest - more < own >= largest // 2:
                    cost.append(0)
                    more = len(sequence)
                cost[-1] += more
                of[q] = len(cost) - 1
                before = sequence
        return cls(of, torch.tensor(cost))

    def select(self, bundles: Tensor) -> tuple[Bundles, Tensor]:
        """Some of the bundles, and [Q'] int64: which positions are in them, in ascending order."""
        place = torch.full((len(self.cost),), -1)
        place[bundles] = torch.arange(len(bundles))
        kept = (place[self.of] >= 0).nonzero().squeeze(1)
        return Bundles(place[self.of[kept]], self.cost[bundles]), kept

    def runs(self, tokens: int, bundles: Tensor | None = None) -> list[Tensor]:
        """Split bundles into runs of about ``tokens`` tokens, or of one bundle that is larger.

        Args:
            tokens: what a run may cost.
            bundles: [S'] int64, which bundles; default all.
        """
        bundles = torch.arange(len(self.cost)) if bundles is None else bundles
        run = (self.cost[bundles].cumsum(0) - 1) // tokens
        return [bundles[run == r] for r in run.unique()]
