"""Sharded weights: each rank keeps a part of every trained weight, of its gradient and its moments.

FSDP (arXiv 2304.11277) computes gradient steps block by block: the ranks put a block's weights
together, use them, and forget all but their parts. So every pass of a step is a meeting of all
ranks. Between the steps of one update and those of the next, each rank has the whole weights, in
the precision that computes. Ranks then act, evaluate and read alone, each as often as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from poad.errors import ModelError
from poad.lm.memory import free_memory, is_out_of_memory, out_of_memory
from poad.ranks import Ranks

if TYPE_CHECKING:
    import torch.distributed as dist

Found = TypeVar("Found", bound=tuple[Any, ...])


class _Root(nn.Module):
    """What FSDP takes for the model: its forward pass is whatever a gradient step computes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], Found]) -> Found:
        return compute()


class _Messages:
    """The messages of a pass, which FSDP hands to this instead of sending them by itself.

    They are counted, so that a rank whose pass failed can begin another one, and send only what the
    others still wait for. All passes send the same messages in the same order.
    """

    def __init__(self) -> None:
        self.sent = 0
        """In this pass, up to where it failed."""
        self._next = 0

    def begin(self, *, again: bool = False) -> None:
        """Begin a pass, or one in place of a pass that failed."""
        self._next = 0
        if not again:
            self.sent = 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Make room for a message."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any = None,
        async_op: bool = False,
    ) -> Any:
        """Put parts together, or add up with ``op`` and take a part."""
        import torch.distributed as dist

        self._next += 1
        if self._next <= self.sent:
            return None  # the others have got it; what stands in the output does not matter
        if op is None:
            work = dist.all_gather_single(output_tensor, input_tensor, group, async_op)
        else:
            work = dist.reduce_scatter_single(output_tensor, input_tensor, op, group, async_op)
        self.sent = self._next
        return work


class Shards:
    """The trained weights of a model, divided among ranks.

    Args:
        module: the model, of which all weights but unread ones are trained.
        blocks: its transformer blocks, each put together by itself. The other weights, such as
            embeddings, are whole during all of a step.
        frozen: the blocks of the untrained model, which are divided as well.
        ranks: all of them have the same weights now.
        compute: the precision of passes; None computes in that of the weights.

    Raises:
        ModelError: the installed torch is too old.
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
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        if not hasattr(dist, "all_gather_single"):
            raise ModelError(
                f"model.shard needs torch 2.13 or newer, and this is torch {torch.__version__}. "
                "Upgrade torch, or set model.shard = none."
            )
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
        self._messages = _Messages()
        messages: Any = self._messages  # without its base class, whose import takes a while
        for part in self._parts:
            part.set_custom_all_gather(messages)
            part.set_custom_reduce_scatter(messages)
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

    def backward(
        self, compute: Callable[[], Found], nothing: Callable[[], tuple[Tensor]]
    ) -> Found | None:
        """Compute a loss and its gradient, which is summed over the ranks, in a pass of all ranks.

        Where memory runs out, the others are in the same pass and wait for this rank. So it ends
        the pass with them, but computes nothing any more.

        Args:
            compute: returns the loss, and what else is to be returned.
            nothing: returns a loss whose gradient is 0, from all weights, in little memory.

        Returns:
            What `compute` returned; None if memory ran out. Then the gradients that all ranks have
            now are wrong, and the step has to begin again.

        Raises:
            ModelError: memory ran out, and there was not even room to end the pass.
            RankError: another rank is gone.
        """
        self._messages.begin()
        try:
            return self._pass(compute)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Behind the except block, where the error no longer holds the tensors of its frames. The
        # gradients that a block already has are sent in the messages that follow, and dropped.
        self._roots[0].reset_iter_state()
        free_memory()
        self._messages.begin(again=True)
        try:
            self._pass(nothing)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory("on sharded weights, even in a pass of nothing") from error
            raise
        return None

    def _pass(self, compute: Callable[[], Found]) -> Found:
        with self.ranks.noticing():
            found = self._root(compute)
            found[0].backward()
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
