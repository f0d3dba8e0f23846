"""Ranks: the processes of one training, and what they tell each other.

`torchrun` and `accelerate launch` start R processes, which they number 0 to R - 1. Each acts in its
own streams and computes its own share of every forward and backward pass. All else is computed
alike on every rank, from the same numbers. A process on its own is `ALONE`, which tells nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from poad.errors import RankError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

_TOLD = "told_elsewhere"
_LOST = "others_are_gone"
_BUCKET = 2**24
"""Numbers that are summed up in one message, so that no copy of all gradients is needed."""
PATIENCE = timedelta(hours=12)
"""How long a rank waits for the others, for example while they play slow episodes. One that died is
noticed at once."""


class Ranks:
    """A process among those of its training.

    Every method is a meeting: all ranks must call it, in the same order.

    Args:
        rank: the number of this process, from 0.
        size: R, the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.gone = False
        """Whether another rank is known to be gone, so that there are no more meetings."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files, and speaks to the user."""
        return self.rank == 0

    def own(self, count: int) -> range:
        """Return the numbers of the streams, of so many, that this rank plays; perhaps none."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def share(self, cost: Tensor) -> Tensor:
        """Divide pieces of work among the ranks, and return the numbers of this rank's.

        The costliest piece goes to the rank with the least work so far, and so on. No message is
        needed: every rank comes to the same division.

        Args:
            cost: [S] int64.

        Returns:
            [S'] int64, ascending; empty if others do all of it.
        """
        import torch

        if self.size == 1:
            return torch.arange(len(cost))
        load, mine = [0] * self.size, []
        for piece in cost.argsort(descending=True, stable=True).tolist():
            least = min(range(self.size), key=load.__getitem__)
            load[least] += int(cost[piece])
            if least == self.rank:
                mine.append(piece)
        return torch.tensor(sorted(mine), dtype=torch.int64)

    def exchange(self, what: str, value: T) -> list[T]:
        """Tell all ranks something, and hear what each of them says.

        Args:
            what: a name for it, which the ranks compare.
            value: of JSON values.

        Returns:
            R values, by rank; what others said is a copy.

        Raises:
            RankError: another rank is gone, or is somewhere else in the program.
        """
        if self.size == 1:
            return [value]
        heard = [json.loads(each) for each in self._gather(json.dumps([what, value]).encode())]
        for rank, (theirs, _) in enumerate(heard):
            if theirs != what:
                raise RankError(
                    f"Rank {rank} is at {theirs!r} and rank {self.rank} at {what!r}: the processes "
                    "of this training no longer do the same. The last checkpoint is intact."
                )
        return [each for _, each in heard]

    def _gather(self, message: bytes) -> list[bytes]:
        """Send a message to all ranks, and return theirs."""
        import torch
        import torch.distributed as dist

        with self._together():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(message)]))
            longest = int(torch.stack(sizes).max())
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            parts = [torch.zeros_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
        return [
            part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)
        ]

    def first_does(self, what: str, do: Callable[[], T]) -> T | None:
        """Let rank 0 do something that the others wait for.

        Returns:
            On rank 0 what it returned; None elsewhere.

        Raises:
            RankError: on the others, if it failed on rank 0, which raises what went wrong.
        """
        result, failed = None, None
        if self.is_first:
            try:
                result = do()
            except BaseException as error:
                failed = error
        went_well = self.exchange(what, failed is None)[0]
        if failed is not None:
            raise failed
        if not went_well:
            raise self.told_by(0)
        return result

    def told_by(self, rank: int) -> RankError:
        """Make the error of a rank that ends because another one, which says why, has to."""
        error = RankError(f"Rank {rank} could not go on; it says why.")
        setattr(error, _TOLD, True)
        return error

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise self._left_alone() from error

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Notice that another rank is gone where torch exchanges messages by itself.

        Raises:
            RankError: another rank is gone. Other errors stay as they are.
        """
        import torch.distributed as dist

        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error)
            if isinstance(error, RankError) or not lost:
                raise
            raise self._left_alone() from error

    def _left_alone(self) -> RankError:
        self.gone = True
        lost = RankError(
            "Another process of this training has ended, so this one ends, too. The last "
            "checkpoint is intact: start the same command again with --resume RUN."
        )
        setattr(lost, _LOST, True)
        return lost

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of one data type and device, by their sums over all ranks, in place.

        The sums are the same to the last bit on every rank.
        """
        import torch

        if self.size == 1:
            return
        waiting: list[Tensor] = []
        for i, tensor in enumerate(tensors):
            waiting.append(tensor)
            if i + 1 < len(tensors) and sum(each.numel() for each in waiting) < _BUCKET:
                continue
            joined = torch.cat([each.reshape(-1) for each in waiting])
            for each, summed in zip(
                waiting, self._sum(joined).split([w.numel() for w in waiting]), strict=True
            ):
                each.copy_(summed.reshape(each.shape))
            waiting = []

    def _sum(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        here = tensor.device
        if here.type == "cuda" and "nccl" not in str(dist.get_backend_config()):
            tensor = tensor.cpu()  # several ranks share a GPU
        with self._together():
            dist.all_reduce(tensor)
        return tensor.to(here)

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of all ranks. Where no rank has one, there is none afterwards.

        Those of sharded weights are left alone: they were summed when they were computed.
        """
        import torch

        if self.size > 1:
            from torch.distributed.tensor import DTensor

            parameters = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not parameters:
            return
        known = torch.tensor([float(p.grad is not None) for p in parameters])
        self.add_up([known])
        wanted = [p for p, count in zip(parameters, known.tolist(), strict=True) if count]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for kind in dict.fromkeys((p.dtype, p.device) for p in wanted):
            grads = (p.grad for p in wanted if (p.dtype, p.device) == kind)
            self.add_up([grad for grad in grads if grad is not None])

    def put_together(
        self, rows: Tensor | None, places: Tensor, count: int, device: torch.device
    ) -> Tensor:
        """Put rows that the ranks computed together.

        Args:
            rows: [Q', ...] this rank's; None if it has none.
            places: [Q'] int64: their numbers among all.
            count: Q, of all ranks.
            device: where they are.

        Returns:
            [Q, ...], the same on every rank.
        """
        import torch

        if self.size == 1:
            assert rows is not None
            return rows[places.argsort().to(device)]
        kind = None if rows is None else (str(rows.dtype).removeprefix("torch."), rows.shape[1:])
        kinds = self.exchange("rows", kind)
        name, shape = next(each for each in kinds if each is not None)
        whole = torch.zeros(count, *shape, dtype=getattr(torch, name), device=device)
        if rows is not None:
            whole[places.to(device)] = rows
        self.add_up([whole])  # each row is 0 on all ranks but one, so the sum is exact
        return whole


ALONE = Ranks()
"""A training in one process."""


def launched() -> Ranks:
    """Read from the environment which rank a launcher has made this process; needs no torch."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return ALONE
    return Ranks(rank, size) if size > 1 else ALONE


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes of this training, and part from them at the end.

    On a machine with as many GPUs as processes, each takes the one of its local rank.

    Raises:
        RankError: the others cannot be reached.
    """
    ranks = launched()
    if ranks.size == 1:
        yield ranks
        return
    import torch
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
        if beside <= torch.cuda.device_count():
            backend = "cpu:gloo,cuda:nccl"
    started = not dist.is_initialized()
    if started:
        with ranks._together():
            dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield ranks
    except Exception as error:
        _mark(error)
        raise
    finally:
        if started:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def is_told_elsewhere(error: Exception) -> bool:
    """Tell whether another process of this training tells the user about an error."""
    return getattr(error, _TOLD, False)


def is_lost(error: Exception) -> bool:
    """Tell whether an error says that another process of this training is gone."""
    return hasattr(error, _LOST)


def has_met(error: Exception) -> bool:
    """Tell whether an error came while the processes of this training were joined."""
    return hasattr(error, _TOLD)


def _mark(error: Exception) -> None:
    """Find out whether this is the first process with an error that it tells about."""
    import torch.distributed as dist

    if hasattr(error, _TOLD):
        return
    first = True
    with contextlib.suppress(RuntimeError, ValueError):  # who cannot ask, tells
        store: Any = dist.distributed_c10d._get_default_store()
        first = store.add("poad/told", 1) == 1
    setattr(error, _TOLD, not first)
