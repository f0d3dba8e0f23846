"""Rows that grow token by token, and layers that look back only so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poad.batch import TokenIds


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


class Decoder:
    """Rows that grow: a prompt is computed once, then only what is written behind it."""

    def __init__(
        self, body: nn.Module, pad_id: int, window: Window | None, device: torch.device
    ) -> None:
        from transformers import DynamicCache

        self._body, self._pad_id, self._device = body, pad_id, device
        self._window = window
        self._cache = DynamicCache()  # told of no window: it would forget by columns
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._positions = self._mask

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
        else:
            index = torch.tensor(parents)
            if not torch.equal(index, torch.arange(len(self._mask))):
                self._cache.batch_select_indices(index.to(self._device))
            past, places = self._mask[index], self._positions[index]
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
