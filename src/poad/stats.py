"""The little statistics that a report needs: an honest interval, and several seeds as one band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where a success rate may well lie, given ``successes`` out of ``n`` independent episodes.

    Unlike the usual plus-minus, it stays within [0, 1] and does not shrink to a point at 0 or n.

    Args:
        successes: episodes that succeeded, 0 to ``n``.
        n: episodes in all; none of them leaves everything possible, (0, 1).
        confidence: probability that such intervals cover the truth, in (0, 1).

    Raises:
        ValueError: counts or a confidence that cannot be.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference,
    JASA 22 (1927).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} episodes: expected 0 ≤ successes ≤ n.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence}: must lie strictly between 0 and 1.")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At 0 and n the bound is exactly 0 or 1; rounding must not say otherwise.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


Floats = NDArray[np.float64]


def median_band(
    curves: Sequence[tuple[ArrayLike, ArrayLike]], points: int = 200
) -> tuple[Floats, Floats, Floats, Floats]:
    """Several curves as one: their median, and the band from the lowest to the highest.

    The curves are interpolated linearly at common positions, over the stretch that all of them
    cover, so that the end of a shorter curve does not bend the median of the rest.

    Args:
        curves: pairs (x, y) of equal length, x ascending; points where y is NaN are left out.
        points: how many common positions.

    Returns:
        x, median, lowest, highest, each of shape [points].

    Raises:
        ValueError: no curve has a point, or they share no stretch of x.
    """
    clean: list[tuple[Floats, Floats]] = []
    for x, y in curves:
        xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        real = np.isfinite(ys)
        if real.any():
            clean.append((xs[real], ys[real]))
    if not clean:
        raise ValueError("No curve has a single finite point; nothing to draw.")
    start, stop = max(xs[0] for xs, _ in clean), min(xs[-1] for xs, _ in clean)
    if start > stop:
        raise ValueError(f"The curves share no stretch: one starts at {start:g}, after {stop:g}.")
    grid = np.linspace(start, stop, points)
    stack = np.stack([np.interp(grid, xs, ys) for xs, ys in clean])
    return grid, np.median(stack, axis=0), stack.min(axis=0), stack.max(axis=0)
