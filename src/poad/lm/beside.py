"""Low-rank adapters beside those of the policy: on the untrained body, for a critic alone.

They are no adapters of PEFT, which would be saved and served with the policy's. They are added to
the outputs of layers by hooks, for as long as somebody reads through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poad.config import ModelConfig
from poad.lm.adapters import layers_to_adapt
from poad.lm.model import LanguageModel, seeded, untrained
from poad.lm.packing import Packed


class SideAdapter(nn.Module):
    """A low-rank adapter (LoRA, arXiv 2106.09685) on the untrained body of a model.

    It adds nothing at first: the second factor of each product starts at zero.

    Args:
        model: loaded with its frozen body, which is not changed.
        config: rank, scale, layers and blocks are those of the policy's adapters.
        seed: of the initial weights; the caller's random state is kept.

    Raises:
        ModelError: no layer has one of the names in ``config.lora_targets``.
    """

    def __init__(self, model: LanguageModel, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self._model, self._scale = model, config.lora_alpha / config.lora_rank
        with untrained(model) as body:
            self._layers = layers_to_adapt(body, config)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        with seeded(seed, torch.device("cpu")):
            for layer in self._layers:
                inside, outside = _sizes(layer)
                down = torch.empty(config.lora_rank, inside)
                self.down.append(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
                self.up.append(torch.zeros(outside, config.lora_rank))
        self.to(model.device)

    @contextmanager
    def applied(self) -> Iterator[Callable[[Packed], Tensor]]:
        """Add the adapter to the untrained body, for passes and their gradients.

        Yields:
            A reader of packed rows: their hidden states [Q, H].
        """
        with untrained(self._model) as body:
            handles = [
                layer.register_forward_hook(partial(self._add, number))
                for number, layer in enumerate(self._layers)
            ]
            try:
                yield partial(self._model.read_body, body)
            finally:
                for handle in handles:
                    handle.remove()

    def _add(self, number: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add the product of a layer's two factors to its output. [..., out] -> [..., out]."""
        low = F.linear(inputs[0].float(), self.down[number])  # [..., in] -> [..., rank]
        return output + (self._scale * F.linear(low, self.up[number])).to(output.dtype)


def _sizes(layer: Any) -> tuple[int, int]:
    """Return the widths of what a linear layer takes and gives; GPT-2's has names of its own."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return layer.nx, layer.nf
