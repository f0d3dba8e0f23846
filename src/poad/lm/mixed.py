"""Mixed precision: products of frozen weights in bfloat16, everything else in float32.

Hidden states, norms, attention, adapters, logits and probabilities stay in float32, and so do all
sums. Only the two factors of a product are rounded. What is rounded is nearly the same whichever
rows share a forward pass, so the probabilities of sampler and learner hardly differ. With a model
that is in bfloat16 as a whole, they differ ten times as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poad.errors import ModelError

_SHAPE = (256, 512, 1024)
"""Rows, inputs and outputs of the products that are timed: those of a small model."""
_TRIALS = 16
_GAIN = 1.3
"""Products in bfloat16 have to be this many times as fast, since rounding takes time, too."""


class MixedLinear(nn.Linear):
    """A frozen linear layer with weights in bfloat16 that takes and gives float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply in bfloat16, and add the bias in float32. [..., in] -> [..., out]."""
        product = F.linear(input.to(self.weight.dtype), self.weight).float()
        return product if self.bias is None else product + self.bias


class MixedConv1D(nn.Module):
    """The same for the linear layers of GPT-2, which hold their weights transposed."""

    weight: nn.Parameter  # [in, out]
    bias: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """Multiply in bfloat16, and add the bias in float32. [..., in] -> [..., out]."""
        return F.linear(input.to(self.weight.dtype), self.weight.T).float() + self.bias


def use_mixed_products(body: nn.Module) -> int:
    """Round the frozen linear layers of a body to bfloat16, in place.

    Args:
        body: in float32, with its adapters inside.

    Returns:
        The number of layers that were rounded.

    Raises:
        ModelError: the body has no frozen linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    kinds = {nn.Linear: MixedLinear, Conv1D: MixedConv1D}
    rounded = 0
    for module in body.modules():
        mixed, weight = kinds.get(type(module)), getattr(module, "weight", None)
        if mixed is not None and isinstance(weight, Tensor) and not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
            module.__class__ = mixed
            rounded += 1
    if not rounded:
        raise ModelError(
            f"{type(body).__name__} has no linear layers whose products could be taken in "
            "bfloat16. Set model.precision = full."
        )
    return rounded


def resolve_precision(suitable: bool, device: torch.device) -> Literal["full", "mixed"]:
    """Decide how a model is computed: ``mixed`` if that is possible, and faster on this device.

    Args:
        suitable: whether the model has frozen float32 weights.
        device: the device that computes.
    """
    return "mixed" if suitable and products_are_faster(device) else "full"


@cache
def products_are_faster(device: torch.device) -> bool:
    """Return whether bfloat16 products are clearly faster than float32 ones. Takes milliseconds."""
    full, mixed = _seconds((torch.float32, torch.bfloat16), device)
    return full > _GAIN * mixed


def _seconds(dtypes: Sequence[torch.dtype], device: torch.device) -> list[float]:
    """Time the fastest of many products in each precision.

    The precisions take turns, so that a machine that is busy for a while slows down all of them.
    """
    rows, inputs, outputs = _SHAPE
    factors = [
        (
            torch.ones(rows, inputs, dtype=dtype, device=device),
            torch.ones(outputs, inputs, dtype=dtype, device=device),
        )
        for dtype in dtypes
    ]
    fastest = [math.inf] * len(factors)
    for _ in range(_TRIALS):
        for i, (states, weight) in enumerate(factors):
            begin = time.perf_counter()
            F.linear(states, weight)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            fastest[i] = min(fastest[i], time.perf_counter() - begin)
    return fastest
