"""Sharded weights: each rank keeps a part of every trained weight, of its gradient and its moments.

FSDP (arXiv 2304.11277) computes gradient steps block by block: the ranks put a block's weights
together, use them, and forget all but their parts. So every pass of a step is a meeting of all
ranks. Between the steps of one update and those of the next, each rank has the whole weights, in
the precision that computes. Ranks then act, evaluate and read alone, each as often as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from poad.lm.memory import is_out_of_memory, out_of_memory
from poad.ranks import Ranks

Found = TypeVar("Found", bound=tuple[Any, ...])


class _Root(nn.Module):
    """What FSDP takes for the model: its forward pass is whatever a gradient step computes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], Found]) -> Found:
        return compute()


class Shards:
    """The trained weights of a model, divided among ranks.

    Args:
        module: the model, of which all weights but unread ones are trained.
        blocks: its transformer blocks, each put together by itself. The other weights, such as
            embeddings, are whole during all of a step.
        frozen: the blocks of the untrained model, which are divided as well.
        ranks: all of them have the same weights now.
        compute: the precision of passes; None computes in that of the weights.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        frozen: Sequence[nn.Module],
        ranks: Ranks,
        compute: torch.dtype | None = None,
    ) -> None:
        # Transformers imports these when it loads a model; before, they would take half a second.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        self.ranks = ranks
        device = next(module.parameters()).device.type
        policy = MixedPrecisionPolicy(compute, None if compute is None else torch.float32)
        self._root = _Root(module)
        self._roots: list[Any] = [self._root, _Root(nn.ModuleList(frozen))]
        with ranks.noticing():
            mesh = init_device_mesh(device, (ranks.size,))
            for part in (*blocks, *frozen, *self._roots):
                fully_shard(part, mesh=mesh, mp_policy=policy)
            for root in self._roots:
                root(tuple)  # the first forward pass tells FSDP which module is the root
        self._parts: list[FSDPModule] = [
            part for root in self._roots for part in root.modules() if isinstance(part, FSDPModule)
        ]
        self._divide()
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        """This rank's parts, as distributed tensors, by name. Optimizers change these."""
        for part in self._parts:
            part.set_gradient_divide_factor(1.0)  # ranks have shares of a sum, not of a mean
            part.set_force_sum_reduction_for_comms(True)
            # One rank's pass may leave out weights that another's needs.
            part.set_reduce_scatter_unused_params(True)
        self.gather()

    def _divide(self) -> None:
        """Forget all but this rank's parts. No meeting."""
        for root in self._roots:
            root.reset_iter_state()  # also forgets in which order this rank alone made passes
        for part in self._parts:
            part.set_reshard_after_forward(part not in self._roots, recurse=False)

    def gather(self) -> None:
        """Put the whole weights together on every rank, out of the parts as they are now."""
        self._divide()
        with self.ranks.noticing():
            for part in self._parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()

    @contextmanager
    def divided(self) -> Iterator[None]:
        """Keep the weights divided, for gradient steps, and put them together at the end."""
        self._divide()
        yield
        self.gather()

    def backward(self, compute: Callable[[], Found]) -> Found:
        """Compute a loss and its gradient, which is summed over the ranks, in a pass of all ranks.

        Args:
            compute: returns the loss, and what else is to be returned.

        Raises:
            ModelError: memory ran out.
            RankError: another rank is gone.
        """
        try:
            with self.ranks.noticing():
                found = self._root(compute)
                found[0].backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The others are in the same pass, so this rank cannot repeat it in smaller ones.
            where = "in a gradient step on sharded weights (lower ppo.micro_batch_tokens)"
            raise out_of_memory(where) from error
        return found


def own_part(weight: Tensor) -> Tensor:
    """Return this rank's part of a trained weight, in the same memory; all of it if not sharded."""
    from torch.distributed.tensor import DTensor

    return weight.to_local().detach() if isinstance(weight, DTensor) else weight.detach()


def part_of(tensor: Tensor, weight: Tensor) -> Tensor:
    """Divide a whole tensor as a weight of its shape is divided. No meeting."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor):
        return tensor
    tensor = tensor.to(weight.device, weight.dtype)
    return distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """Put a tensor together if it is divided. All ranks must ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def all_whole(named: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Put divided tensors together one by one, in the memory of the CPU of rank 0.

    Returns:
        The tensors by name; those that are not divided are the same ones. Other ranks get only
        these.
    """
    found = {}
    for name, tensor in named.items():
        with ranks.noticing():
            each = whole(tensor)
        if each is tensor:
            found[name] = tensor
        elif ranks.is_first:
            found[name] = each.cpu()
    return found
