"""Episodes that nobody played, for the inspector: any numbers, any text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from poad.pages import Alternative, EpisodeView, TurnView


def turn_view(rng: np.random.Generator, size: int, **changes: Any) -> TurnView:
    """A turn of some tokens, each of which is a choice or not."""
    choice = tuple(bool(c) for c in rng.random(size) < 0.6)
    told = {
        "prompt": "You see a tomato.",
        "action": "chop the tomato",
        "token_ids": tuple(range(size)),
        "pieces": tuple(f" w{j}" for j in range(size)),
        "choice": choice,
        "logprob": tuple(
            -float(x) if c else 0.0 for x, c in zip(rng.random(size), choice, strict=True)
        ),
        "value": _rounded(rng.normal(size=size)),
        "reward": float(np.round(rng.normal(), 3)),
        "duration": int(rng.integers(1, 4)),
        "entropy": _rounded(rng.random(size)),
        "before": tuple(
            -float(x) if c else 0.0 for x, c in zip(rng.random(size), choice, strict=True)
        ),
        "alternatives": tuple(
            (Alternative(f" w{j}", 0.7, 0.4, True), Alternative(" other", 0.3, 0.6)) if c else ()
            for j, c in enumerate(choice)
        ),
    }
    return TurnView(**(told | changes))


def episode_view(seed: int, sizes: Sequence[int] | None = None, **changes: Any) -> EpisodeView:
    """An episode that its seed determines, of turns with some numbers of tokens."""
    rng = np.random.default_rng(seed)
    if sizes is None:
        sizes = [int(n) for n in rng.integers(1, 7, size=rng.integers(1, 6))]
    ending = ("terminated", "truncated", "unfinished")[int(rng.integers(3))]
    told = {
        "seed": seed,
        "episode_return": float(np.round(rng.normal(), 3)),
        "success": bool(rng.integers(2)),
        "ending": ending,
        "turns": tuple(turn_view(rng, size) for size in sizes),
        "bootstrap": math.nan if ending == "terminated" else float(np.round(rng.normal(), 4)),
    }
    return EpisodeView(**(told | changes))


def _rounded(values: Any) -> tuple[float, ...]:
    """Numbers that the page keeps to the last digit."""
    return tuple(float(f"{x:.6g}") for x in values)
