"""What gradient steps measure, and how ranks divide the work of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from poad.lm import LanguageModel, pack, whole
from poad.ranks import Ranks

Found = TypeVar("Found", bound=tuple[Any, ...])


class Step(NamedTuple):
    """Measurements of one minibatch, as means over its terms."""

    policy_loss: float
    value_loss: float
    entropy: float
    kl: float
    clip_fraction: float
    kl_reference: float
    grad_norm: float


def mean_of(steps: Sequence[Step]) -> dict[str, float]:
    """Average over an update's steps; the KL and the clipped share are the last step's.

    Skipped steps do not count, unless there are no others.
    """
    steps = [step for step in steps if all(map(math.isfinite, step))] or steps
    names = ("policy_loss", "value_loss", "entropy", "kl_reference", "grad_norm")
    means = {name: sum(getattr(s, name) for s in steps) / len(steps) for name in names}
    return means | {"kl": steps[-1].kl, "clip_fraction": steps[-1].clip_fraction}


@contextmanager
def divided(model: LanguageModel, ranks: Ranks) -> Iterator[None]:
    """Divide the reading of many positions among ranks that all ask for the same."""
    before, model.ranks = model.ranks, ranks
    try:
        yield
    finally:
        model.ranks = before


def stepping(model: LanguageModel) -> AbstractContextManager[None]:
    """Keep the weights divided among ranks while steps are made, if they are sharded."""
    return nullcontext() if model.shards is None else model.shards.divided()


def backward(
    model: LanguageModel,
    micro_batches: Sequence[Tensor],
    loss_of: Callable[[Tensor], Found],
    noise: torch.Generator,
) -> Iterator[Found]:
    """Compute the gradient of a step, one micro-batch after the other.

    A pass over sharded weights is a meeting. So a rank with fewer micro-batches than another takes
    part in passes of nothing at the end, and so does one whose memory has run out.

    Args:
        model: the model that the loss depends on.
        micro_batches: this rank's.
        loss_of: returns the loss of a micro-batch, and what else is to be yielded.
        noise: the source of dropout.

    Yields:
        What `loss_of` returned, after its backward pass.

    Raises:
        OutOfMemoryError: memory ran out. On sharded weights, all ranks have made all passes then,
            and other ranks do not know of it.
    """
    if model.shards is None:
        for some in micro_batches:
            with model.dropout(noise):
                found = loss_of(some)
                found[0].backward()
            yield found
        return
    shards, nothing, full = model.shards, partial(_loss_of_nothing, model), False
    for i in range(max(shards.ranks.exchange("passes", len(micro_batches)))):
        if full or i >= len(micro_batches):
            full = shards.backward(nothing, nothing) is None or full
        elif (found := shards.backward(partial(loss_of, micro_batches[i]), nothing)) is None:
            full = True
        else:
            yield found
    if full:
        raise torch.OutOfMemoryError("Out of memory in a pass over sharded weights.")


def _loss_of_nothing(model: LanguageModel) -> tuple[Tensor]:
    """Compute a loss whose gradient is 0, from all weights."""
    packed = pack([((model.codec.end_id,), ())], model.codec.pad_id)
    return (0.0 * model.logits(model.read(packed)[:, None]).logsumexp(-1).sum(),)


def clip_gradients(weights: Sequence[Tensor], limit: float) -> Tensor:
    """Clip the norm of the gradients of some weights, sharded or not, and return it unclipped."""
    norm = whole(get_total_norm([w.grad for w in weights if w.grad is not None]))
    clip_grads_with_norm_(weights, limit, norm)
    return norm


def noise_of(generator: torch.Generator, model: LanguageModel, ranks: Ranks) -> torch.Generator:
    """Return the source of a step's dropout: ranks drop different inputs, and shuffle alike."""
    if ranks.size == 1 or not model.has_dropout:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(seed + ranks.rank)


def draws(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Draw indices below `count`, `size` at a time; none comes again before all others did.

    Yields:
        [at most `size`] int64, without end.
    """
    order = torch.zeros(0, dtype=torch.int64)
    while True:
        if not len(order):
            order = torch.randperm(count, generator=generator)
        yield order[:size]
        order = order[size:]
