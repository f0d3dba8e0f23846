"""Attention masks over positions, in trees and in rows with padding between their tokens.

A body states what its layers see as rules: causal, a window, chunks. Transformers applies them to
columns. In a tree, or where padding stands between tokens, columns are not positions. Here the
same rules are applied to positions, so nothing about an architecture's windows is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(row, head, query index, key index) → True where the query may look at the key."""


@contextmanager
def over_positions(body: Any, sees: Tensor, queries: Tensor, keys: Tensor) -> Iterator[None]:
    """Let every layer of a body see what its rule allows by position, within some forward pass.

    Args:
        body: a transformer of transformers.
        sees: [B, 1, Lq, Lk] bool, True where a layer without a window may look.
        queries: [B, Lq] int64, positions.
        keys: [B, Lk] int64, positions.
    """

    def build(rule: Rule, dtype: torch.dtype) -> Tensor | None:
        rows = torch.arange(len(sees), device=sees.device)[:, None, None, None]
        near = rule(rows, rows.new_zeros(1), queries[:, None, :, None], keys[:, None, None, :])
        return _for_kernel(body, sees & near, dtype)

    with _building(body, build):
        yield


@torch.no_grad()
def window_of(body: nn.Module, longest: int, device: torch.device) -> int | None:
    """Measure how many positions the layer with the shortest view sees, its own included.

    Args:
        body: a transformer of transformers.
        longest: views of this size or more count as whole.
        device: the device of the body.

    Returns:
        None if all layers see everything before them, or if the body builds masks of its own.
    """
    rules: list[Rule] = []

    def record(rule: Rule, dtype: torch.dtype) -> Tensor | None:
        rules.append(rule)
        return _for_kernel(body, torch.ones(1, 1, 2, 2, dtype=torch.bool, device=device), dtype)

    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    with _building(body, record):
        body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    zero, positions = torch.zeros(1, dtype=torch.long), torch.arange(longest)
    # [longest] each: may the query at this position see the first token?
    seen = [rule(zero, zero, positions, zero.expand(longest)) for rule in rules]
    # A layer that did not see itself would not be used, as with a window of 0.
    return min((int((~s).nonzero()[0]) for s in seen if s[0] and not s.all()), default=None)


def _for_kernel(body: Any, allowed: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return a mask as the body's attention takes it: bool, or what eager adds to its scores."""
    kernel = body.config._attn_implementation
    if kernel.startswith("flash"):  # it takes none, and knows the windows itself
        return None
    if kernel != "eager":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


@contextmanager
def _building(body: Any, build: Callable[[Rule, torch.dtype], Tensor | None]) -> Iterator[None]:
    """Build the masks of a body with another function for a while."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as BUILDERS

    def instead(*, mask_function: Rule, dtype: torch.dtype = torch.float32, **_: Any) -> Any:
        return build(mask_function, dtype)

    kernel = body.config._attn_implementation
    BUILDERS[kernel] = instead  # over the function of transformers, which stays registered
    try:
        yield
    finally:
        del BUILDERS[kernel]
