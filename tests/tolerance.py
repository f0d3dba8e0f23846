"""How exactly laws are held: to float64's last digits, or to float32's with room.

Two right ways of computing one number differ by rounding, and how much depends on the processor:
wider vector units sum in another order. A law that float32 meets to 1e-5 on one machine may miss it
on the next. So laws are stated in float64, where rounding is far below any tolerance that could
hide a mistake, and a few smoke tests in float32 allow for what `rounding` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM

EXACT = 1e-9
"""Relative and absolute: four million units in the last place of float64."""


def rounding(*, depth: int, magnitude: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The distance that rounding alone may put between two right ways of computing one number.

    Args:
        depth: the matrix products (or sums over many terms) that follow one another.
        magnitude: the size of the largest numbers on the way, which may cancel later on.
        dtype: of the computation.

    Each step rounds to half a unit in the last place per term. Terms average out, so that a step
    over hundreds of them is off by a few units; eight leave room for any order of summation.
    """
    return 8 * torch.finfo(dtype).eps * depth * magnitude


def drift(layers: int = 2, logit: float = 30.0) -> float:
    """The float32 `rounding` of a log-probability: six products a layer, and the head's.

    Random and embedded test models have two layers and logits up to 30.
    """
    return rounding(depth=6 * layers + 1, magnitude=logit)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def float64() -> Iterator[None]:
    """Compute in float64 throughout: models that are loaded here, critics, records, losses.

    Wherever poad or transformers asks for float32, it gets the default dtype, which is float64.
    """
    load, plain_to = AutoModelForCausalLM.from_pretrained, torch.Tensor.to

    def default(dtype: Any) -> Any:
        return torch.get_default_dtype() if dtype is torch.float32 else dtype

    def loaded(*args: Any, dtype: torch.dtype, **rest: Any) -> Any:
        return load(*args, dtype=default(dtype), **rest)

    def as_float(tensor: torch.Tensor) -> torch.Tensor:
        return plain_to(tensor, torch.get_default_dtype())

    def to(tensor: torch.Tensor, *args: Any, **rest: Any) -> torch.Tensor:
        rest = {key: default(value) for key, value in rest.items()}
        return plain_to(tensor, *map(default, args), **rest)

    with (
        patch.object(AutoModelForCausalLM, "from_pretrained", loaded),
        patch.object(torch.Tensor, "float", as_float),
        patch.object(torch.Tensor, "to", to),
        _default_dtype(torch.float64),
    ):
        yield


def float32() -> AbstractContextManager[None]:
    """Inside `float64`: as outside it."""
    return _default_dtype(torch.float32)
