"""Incremental reading: rows that grow token by token."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from poad.lm.masks import over_positions
from poad.lm.packing import common_prefix_length
from poad.turns import TokenIds

_MIN_SHARED_TOKENS = 32
"""A shorter common prefix costs less to compute again than to look up or to compute apart."""


@dataclass(frozen=True)
class _CachedRow:
    """The keys and values of one token sequence of length n."""

    tokens: TokenIds
    layers: list[tuple[Tensor, ...]]
    """Keys and values of each layer, both [heads, n, d]."""
    idle: bool = False
    """True if the last call of `start` did not continue it."""


class _Match(NamedTuple):
    """The cached prefix of a sequence."""

    row: _CachedRow | None = None
    length: int = 0
    """Number of tokens of the row that can be used."""


class Decoder:
    """Reads rows that grow: each token is computed once, and its keys and values are kept.

    Rows are padded on the left of each chunk, so that the newest token of every row stands in the
    last column. Padding is masked and takes no position.

    Args:
        body: the model without its head.
        pad_id: the token in the padding.
        windowed: whether some layers of the body do not see the whole row.
        device: the device of the body.
        remember: keep the keys and values of rows that end, so that a later prompt with the same
            prefix continues from them. This is worth its memory if prompts grow from turn to turn.
        check: called with the token ids and positions [R, W] of what is read next.
        pass_tokens: columns of one forward pass over all rows, padding included; more are computed
            in several passes. A pass has at least one column of every row it reads.
    """

    def __init__(
        self,
        body: nn.Module,
        pad_id: int,
        windowed: bool,
        device: torch.device,
        remember: bool = False,
        check: Callable[[Tensor, Tensor], None] | None = None,
        pass_tokens: int = sys.maxsize,
    ) -> None:
        self._body, self._pad_id, self._device = body, pad_id, device
        self._windowed, self._pass_tokens = windowed, pass_tokens
        self._remember, self._check = remember, check
        self._stored: list[_CachedRow] = []
        self._reset()

    @torch.no_grad()
    def start(self, sequences: Sequence[TokenIds]) -> Tensor:
        """Begin new rows and read the last hidden state of each.

        A prefix that all of them share, or that a remembered row begins with, is not computed
        again.

        Args:
            sequences: R non-empty token sequences.

        Returns:
            [R, H].
        """
        if self._remember:
            self._store(range(len(self._tokens)))
        stored, self._stored = sorted(self._stored, key=lambda row: row.tokens), []
        self._reset()
        matches = [_best_match(stored, sequence) for sequence in sequences]
        if not any(match.length for match in matches) and len(set(sequences)) > 1:
            prefix = self._read_common_prefix(sequences)
            if prefix is not None:
                stored, matches = [prefix], [_Match(prefix, len(prefix.tokens))] * len(sequences)
        used = {id(match.row) for match in matches}
        if len(sequences) * max(map(_unread, sequences, matches)) > self._pass_tokens:
            matches = self._read_by_length(sequences, matches)
        if any(match.length for match in matches):
            self._resume(matches)
        # A row that was continued is stored again, longer, when it ends. One that was not is kept
        # for one more call, because an action without a choice skips a turn.
        self._stored = [
            replace(row, idle=True) for row in stored if not row.idle and id(row) not in used
        ]
        # Row r holds the first match.length tokens of sequence r already, so the rest is read.
        chunks = [s[match.length :] for s, match in zip(sequences, matches, strict=True)]
        return self.read(chunks, range(len(chunks)) if self._tokens else None)

    @torch.no_grad()
    def read(self, chunks: Sequence[Sequence[int]], parents: Sequence[int] | None = None) -> Tensor:
        """Append tokens to rows and read the last hidden state of each.

        Args:
            chunks: R non-empty token sequences, one for each resulting row.
            parents: for each resulting row, the row of the previous call that it continues. Rows
                may be dropped or continued twice. None on the first call.

        Returns:
            [R, H].
        """
        if parents is None:
            self._mask = self._positions = torch.zeros(len(chunks), 0, dtype=torch.long)
            self._tokens = [list(chunk) for chunk in chunks]
        else:
            index = torch.tensor(parents)
            if not torch.equal(index, torch.arange(len(self._mask))):
                if self._remember:  # the rows that nothing continues end here
                    self._store(set(range(len(self._tokens))) - set(parents))
                self._cache.batch_select_indices(index.to(self._device))
            self._mask, self._positions = self._mask[index], self._positions[index]  # [R', P]
            self._tokens = [self._tokens[p] + list(c) for p, c in zip(parents, chunks, strict=True)]
        width = max(map(len, chunks))
        ids = torch.full((len(chunks), width), self._pad_id)  # [R, W]
        mask = torch.zeros(len(chunks), width, dtype=torch.long)
        for r, chunk in enumerate(chunks):
            ids[r, width - len(chunk) :] = torch.tensor(chunk)
            mask[r, width - len(chunk) :] = 1
        at_once = max(1, self._pass_tokens // len(chunks))
        blocks = zip(ids.split(at_once, 1), mask.split(at_once, 1), strict=True)
        return [self._append(*block) for block in blocks][-1]

    def _append(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute new columns of all rows, [R, W]; return the hidden states of the last, [R, H]."""
        # A token's position is the number of real tokens before it, so positions count on from the
        # past across any padding. Padding before a row's first token would be at -1.
        before = self._mask.sum(1, keepdim=True)
        positions = (before + mask.cumsum(1) - 1).clamp(min=0)
        if self._check is not None:
            self._check(ids, positions)
        self._mask = torch.cat([self._mask, mask], 1)  # [R, P + W]
        self._positions = torch.cat([self._positions, positions], 1)
        # Transformers adds causality itself; only windows have to be told of the padding.
        mask = torch.ones_like(self._mask) if self._windowed else self._mask
        with self._attention(ids.shape[1]):
            out = self._body(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),  # [R, P + W]
                position_ids=positions.to(self._device),
                past_key_values=self._cache,
                use_cache=True,
            )
        return out.last_hidden_state[:, -1]

    def _reset(self) -> None:
        """Drop all rows."""
        from transformers import DynamicCache

        # Created without the model's configuration, which would make the cache drop what lies
        # outside a window, counted in columns.
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._positions = self._mask
        self._tokens: list[list[int]] = []

    def _store(self, rows: Iterable[int]) -> None:
        """Remember the keys and values of some rows."""
        self._stored += map(self._cached, rows)

    def _cached(self, row: int) -> _CachedRow:
        """Copy the keys and values of a row, without its padding."""
        columns = self._mask[row].nonzero().squeeze(1).to(self._device)  # [n]
        cached: Any = self._cache.layers
        layers = [
            # [R, heads, P, d] -> [heads, n, d]
            tuple(half[row].index_select(1, columns) for half in (layer.keys, layer.values))
            for layer in cached
        ]
        return _CachedRow(tuple(self._tokens[row]), layers)

    def _read_common_prefix(self, sequences: Sequence[TokenIds]) -> _CachedRow | None:
        """Compute the prefix that all sequences share, None if it is too short to be worth it."""
        # What the first and the last in sorted order share, all of them share.
        shared = common_prefix_length(min(sequences), max(sequences))
        # Each row must have a token left to read.
        shared = min(shared, min(map(len, sequences)) - 1)
        if shared < _MIN_SHARED_TOKENS:
            return None
        self.read([sequences[0][:shared]])
        row = self._cached(0)
        self._reset()
        return row

    def _read_by_length(
        self, sequences: Sequence[TokenIds], matches: Sequence[_Match]
    ) -> list[_Match]:
        """Compute all but the last token of every sequence, rows of similar length together."""
        found = list(matches)
        unread = list(map(_unread, sequences, matches))
        order = sorted((r for r in range(len(unread)) if unread[r] > 1), key=unread.__getitem__)
        while order:
            # The longest rows that fit into one pass. A row that does not fit is read alone.
            longest = unread[order[-1]] - 1
            count = max(1, self._pass_tokens // longest)
            group, order = order[-count:], order[:-count]
            parents = None
            if any(matches[r].length for r in group):
                self._resume([matches[r] for r in group])
                parents = range(len(group))
            self.read([sequences[r][matches[r].length : -1] for r in group], parents)
            for place, r in enumerate(group):
                row = self._cached(place)
                found[r] = _Match(row, len(row.tokens))
            self._reset()
        return found

    def _resume(self, matches: Sequence[_Match]) -> None:
        """Lay cached prefixes out as rows, padded on the left."""
        width = max(match.length for match in matches)
        self._mask = torch.zeros(len(matches), width, dtype=torch.long)  # [R, W]
        for r, match in enumerate(matches):
            self._mask[r, width - match.length :] = 1
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._tokens = [list(row.tokens[:n]) if row is not None else [] for row, n in matches]
        some = next(row for row, n in matches if row is not None and n)  # for dtypes and sizes
        for number, pair in enumerate(some.layers):
            halves = []
            for half, like in enumerate(pair):
                # [heads, n, d] of each row -> [R, heads, W, d]
                laid = like.new_zeros(len(matches), like.shape[0], width, like.shape[2])
                for r, (row, n) in enumerate(matches):
                    if row is not None and n:
                        laid[r, :, width - n :] = row.layers[number][half][:, :n]
                halves.append(laid)
            self._cache.update(halves[0], halves[1], number)

    def _attention(self, width: int) -> AbstractContextManager[None]:
        """Mask the newest W columns of rows that are P + W columns long, by their positions."""
        if not self._windowed:
            return nullcontext()
        length = self._mask.shape[1]
        # [W, P + W]: query w stands in column P + w and sees the columns up to its own.
        causal = torch.ones(width, length, dtype=torch.bool).tril(length - width)
        own = causal & ~causal.tril(length - width - 1)  # padding sees itself, as in `pack`
        sees = ((causal & self._mask[:, None, :].bool()) | own)[:, None].to(self._device)
        positions = self._positions.to(self._device)
        return over_positions(self._body, sees, positions[:, -width:], positions)


def _unread(sequence: TokenIds, match: _Match) -> int:
    """Count the tokens of a sequence behind its cached prefix."""
    return len(sequence) - match.length


def _best_match(stored: Sequence[_CachedRow], sequence: TokenIds) -> _Match:
    """Find the row that shares the longest prefix with a sequence.

    Args:
        stored: rows sorted by their tokens, so that the best one is next to where the sequence
            would be inserted.
        sequence: its last token is never matched, because its hidden state has to be read.
    """
    place = bisect_left(stored, sequence, key=lambda row: row.tokens)
    best = _Match()
    for row in stored[max(0, place - 1) : place + 1]:
        shared = min(common_prefix_length(row.tokens, sequence), len(sequence) - 1)
        if shared >= _MIN_SHARED_TOKENS and shared > best.length:
            best = _Match(row, shared)
    return best
