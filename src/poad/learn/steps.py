"""What gradient steps measure, and how ranks divide the work of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from poad.lm import LanguageModel
from poad.ranks import Ranks


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
