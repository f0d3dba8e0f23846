"""Rows that grow token by token, and layers that look back only so far."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from poad.lm.packing import common
from poad.turns import TokenIds


@dataclass(frozen=True)
class Window:
    """Layers that look back a fixed number of positions only."""

    size: int
    mixed: bool
    """Whether other layers see everything; such a body takes a mask for each kind."""

    @classmethod
    def of(cls, config: Any) -> Window | None:
        """The window a configuration asks for, if any."""
        size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        if size is None or (kinds and "sliding_attention" not in kinds):
            return None
        return cls(size, mixed=bool(kinds))

    def mask(self, sees: Tensor, queries: Tensor, keys: Tensor) -> Any:
        """The attention mask a body takes.

        Transformers measures a window in columns, which in a tree or behind padding are not
        positions, and leaves prepared masks alone; so the window is cut here.

        Args:
            sees: [B, 1, Lq, Lk] bool, what a layer without a window may look at.
            queries: [B, Lq] positions.
            keys: [B, Lk] positions.
        """
        near = sees & (queries[:, None, :, None] - keys[:, None, None, :] < self.size)
        return {"full_attention": sees, "sliding_attention": near} if self.mixed else near


_WORTH = 32
"""Tokens that a common beginning must have to be computed apart, or looked up."""


@dataclass(frozen=True)
class _Kept:
    """What was computed for one token sequence: keys and values [heads, n, d] of each layer."""

    tokens: TokenIds
    layers: list[tuple[Tensor, ...]]
    idle: bool = False
    """Whether the last rows went on without it."""


class Decoder:
    """Rows that grow: a prompt is computed once, then only what is written behind it.

    Args:
        body: the model without its head.
        pad_id: token written into padding.
        window: how far its layers look back, if not to the beginning.
        device: where it is.
        remember: keep what was computed for rows when they end, so that a later prompt that begins
            with one goes on from there. Worth its memory where prompts grow from turn to turn.
    """

    def __init__(
        self,
        body: nn.Module,
        pad_id: int,
        window: Window | None,
        device: torch.device,
        remember: bool = False,
    ) -> None:
        self._body, self._pad_id, self._device = body, pad_id, device
        self._window = window
        self._remember = remember
        self._kept: list[_Kept] = []
        self._forget()

    @torch.no_grad()
    def start(self, sequences: Sequence[TokenIds]) -> Tensor:
        """Begin new rows and read the last hidden state of each.

        What several begin with, or a remembered row, is not computed again.

        Args:
            sequences: R non-empty token sequences.

        Returns:
            [R, H].
        """
        if self._remember:
            self._keep(range(len(self._tokens)))
        known, self._kept = sorted(self._kept, key=lambda kept: kept.tokens), []
        self._forget()
        beginnings = [_longest(known, sequence) for sequence in sequences]
        if not any(shared for _, shared in beginnings) and len(set(sequences)) > 1:
            shared = common(min(sequences), max(sequences))
            shared = min(shared, min(map(len, sequences)) - 1)
            if shared >= _WORTH:
                self.read([sequences[0][:shared]])
                self._keep([0])
                known, self._kept = self._kept, []
                self._forget()
                beginnings = [(known[0], shared)] * len(sequences)
        if any(shared for _, shared in beginnings):
            self._go_on_from(beginnings)
        used = {id(kept) for kept, _ in beginnings}
        self._kept = [
            replace(kept, idle=True) for kept in known if not kept.idle and id(kept) not in used
        ]
        chunks = [s[shared:] for s, (_, shared) in zip(sequences, beginnings, strict=True)]
        return self.read(chunks, range(len(chunks)) if self._tokens else None)

    @torch.no_grad()
    def read(self, chunks: Sequence[TokenIds], parents: Sequence[int] | None = None) -> Tensor:
        """Append tokens to rows and read the last hidden state of each.

        Args:
            chunks: R non-empty token sequences, one for each resulting row.
            parents: the row of the previous call that each continues (rows may be dropped or
                continued twice); none on the first call.

        Returns:
            [R, H].
        """
        width = max(map(len, chunks))
        ids = torch.full((len(chunks), width), self._pad_id)
        mask = torch.zeros(len(chunks), width, dtype=torch.long)
        for r, chunk in enumerate(chunks):
            ids[r, width - len(chunk) :] = torch.tensor(chunk)
            mask[r, width - len(chunk) :] = 1
        if parents is None:
            past = places = torch.zeros(len(chunks), 0, dtype=torch.long)
            self._tokens = [list(chunk) for chunk in chunks]
        else:
            index = torch.tensor(parents)
            if not torch.equal(index, torch.arange(len(self._mask))):
                if self._remember:
                    self._keep(set(range(len(self._tokens))) - set(parents))
                self._cache.batch_select_indices(index.to(self._device))
            past, places = self._mask[index], self._positions[index]
            self._tokens = [self._tokens[p] + list(c) for p, c in zip(parents, chunks, strict=True)]
        positions = (past.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)
        self._mask = torch.cat([past, mask], 1)
        self._positions = torch.cat([places, positions], 1)
        out = self._body(
            input_ids=ids.to(self._device),
            attention_mask=self._attention(width),
            position_ids=positions.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]

    def _forget(self) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache()  # told of no window: it would forget by columns
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._positions = self._mask
        self._tokens: list[list[int]] = []

    def _keep(self, rows: Iterable[int]) -> None:
        """Remember what was computed for some rows."""
        for row in rows:
            columns = self._mask[row].nonzero().squeeze(1).to(self._device)
            cached: Any = self._cache.layers
            layers = [
                tuple(half[row].index_select(1, columns) for half in (layer.keys, layer.values))
                for layer in cached
            ]
            self._kept.append(_Kept(tuple(self._tokens[row]), layers))

    def _go_on_from(self, beginnings: Sequence[tuple[_Kept | None, int]]) -> None:
        """Rows that hold beginnings of remembered ones, padded on the left."""
        some = next(kept for kept, shared in beginnings if kept is not None and shared)
        width = max(shared for _, shared in beginnings)
        self._mask = torch.zeros(len(beginnings), width, dtype=torch.long)
        for row, (_, shared) in enumerate(beginnings):
            self._mask[row, width - shared :] = 1
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._tokens = [
            list(kept.tokens[:shared]) if kept is not None else [] for kept, shared in beginnings
        ]
        for number, pair in enumerate(some.layers):
            laid = []
            for half, like in enumerate(pair):
                rows = like.new_zeros(len(beginnings), like.shape[0], width, like.shape[2])
                for row, (kept, shared) in enumerate(beginnings):
                    if kept is not None and shared:
                        rows[row, :, width - shared :] = kept.layers[number][half][:, :shared]
                laid.append(rows)
            self._cache.update(laid[0], laid[1], number)

    def _attention(self, width: int) -> Any:
        """What the newest ``width`` columns may look at."""
        if self._window is None:
            return self._mask.to(self._device)
        length = self._mask.shape[1]
        causal = torch.ones(width, length, dtype=torch.bool).tril(length - width)
        own = causal & ~causal.tril(length - width - 1)  # padding sees itself, as in `pack`
        sees = ((causal & self._mask[:, None, :].bool()) | own)[:, None].to(self._device)
        places = self._positions.to(self._device)
        return self._window.mask(sees, places[:, -width:], places)


def _longest(known: Sequence[_Kept], sequence: TokenIds) -> tuple[_Kept | None, int]:
    """The remembered row that begins most like a sequence, and how many tokens are of use.

    Sorted, it is a neighbour of where the sequence would stand. The last token is always computed.
    """
    place = bisect_left(known, sequence, key=lambda kept: kept.tokens)
    best: tuple[_Kept | None, int] = (None, 0)
    for kept in known[max(0, place - 1) : place + 1]:
        shared = min(common(kept.tokens, sequence), len(sequence) - 1)
        if shared >= _WORTH and shared > best[1]:
            best = (kept, shared)
    return best
