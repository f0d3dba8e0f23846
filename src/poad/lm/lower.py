"""The lower layers of a model whose adapters lie in the upper ones: computed once for each token.

Below the first layer that is trained, the hidden state of a token depends on the token and those
before it, and on nothing that training changes. So acting, the critic's features and all passes of
an update can share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from poad.lm.packing import Packed

_MOST_BYTES = 2**30
"""Of remembered states. Beyond it all are forgotten, so that memory stays bounded."""


class LowerLayers:
    """The layers below the first that is trained, and what they computed.

    Tokens are told apart by the whole sequence that ends with them. A token's number is that of
    the pair (number of the token before it, token), as in a trie.

    Args:
        body: the body of a model.
        layers: all its layers, in order; None if there is nothing to share.
    """

    def __init__(self, body: nn.Module, layers: nn.ModuleList | None) -> None:
        self._layers = [] if layers is None else _below_the_trained(body, layers)
        self._active = False
        self._numbers: dict[tuple[int, int], int] = {}
        self._states: Tensor | None = None  # [capacity, H], of which the first are in use
        self._in_tuple = False

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Remember what the layers compute, and use it again, until the context ends."""
        if self._active or not self._layers:
            yield
            return
        self._active = True
        try:
            yield
        finally:
            self._active = False
            self._forget()

    @contextmanager
    def reused(self, packed: Packed) -> Iterator[None]:
        """Skip the layers in a forward pass over packed rows if all their tokens are known."""
        if not self._active:
            yield
            return
        if self._states is not None and self._states.nbytes > _MOST_BYTES:
            self._forget()
        known = len(self._numbers)
        numbers = self._number(packed)  # [B, L]
        last = self._layers[-1]
        if self._states is None or len(self._numbers) > known:
            handle = last.register_forward_hook(partial(self._keep, known, numbers))
            try:
                yield
            except BaseException:  # memory may have run out before the states were there
                self._forget()
                raise
            finally:
                handle.remove()
            return
        # [B, L] -> [B, L, H]. In the padding stands some token's state. Nothing reads it, but it
        # must be finite: attention multiplies it by 0.
        states = self._states[numbers.clamp(min=0).to(self._states.device)]
        replaced = dict.fromkeys(self._layers[:-1], _hand_on) | {last: partial(self._give, states)}
        with _forwards(replaced):
            yield

    def _forget(self) -> None:
        self._numbers.clear()
        self._states = None

    def _number(self, packed: Packed) -> Tensor:
        """Number the tokens of packed rows. [B, L] int64, -1 in the padding."""
        found = torch.full(packed.token_ids.shape, -1)
        ids, depths = packed.token_ids.tolist(), packed.position_ids.tolist()
        for b, length in enumerate(packed.mask.sum(1).tolist()):
            path: list[int] = []  # the numbers of the tokens before this one, by depth
            row = []
            for token, depth in zip(ids[b][:length], depths[b][:length], strict=True):
                # The token before is the newest in the row at the depth above: rows are laid out
                # depth first.
                before = path[depth - 1] if depth else -1
                number = self._numbers.setdefault((before, token), len(self._numbers))
                del path[depth:]
                path.append(number)
                row.append(number)
            found[b, :length] = torch.tensor(row)
        return found

    def _keep(
        self, known: int, numbers: Tensor, _: nn.Module, __: Any, output: Tensor | tuple[Tensor]
    ) -> None:
        """Keep the states of the tokens whose numbers are new, those from ``known`` on."""
        self._in_tuple = isinstance(output, tuple)
        states = output[0] if isinstance(output, tuple) else output
        total = len(self._numbers)
        if self._states is None or len(self._states) < total:
            room = torch.empty(
                2 * total, states.shape[-1], dtype=states.dtype, device=states.device
            )
            if self._states is not None:
                room[:known] = self._states[:known]
            self._states = room
        new = numbers >= known
        self._states[numbers[new].to(states.device)] = states.detach()[new.to(states.device)]

    def _give(self, states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return (states,) if self._in_tuple else states


def _below_the_trained(body: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    """List the layers below the first that is trained; none if embeddings are trained, too."""
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    inside = {id(p) for p in layers.parameters()}
    beside = any(p.requires_grad and id(p) not in inside for p in body.parameters())
    return list(layers)[: trained.index(True)] if True in trained and not beside else []


def _hand_on(states: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stand in for a layer whose output nobody reads."""
    return states


@contextmanager
def _forwards(replaced: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward passes of modules for a while."""
    before = {module: vars(module).get("forward") for module in replaced}
    for module, forward in replaced.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward
