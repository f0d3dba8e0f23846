"""The little statistics that reports and studies need: honest intervals, and seeds as samples.

Scores of several tasks are given as one array per task, a number for each seed. What is said of
several seeds follows Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical
Precipice (arXiv 2108.13264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


# Scores over seeds.

Tasks = Sequence[ArrayLike]
"""One array of scores per task, a number for each seed."""
RESAMPLES = 2000
FLIPS = 10_000
"""How many signs are drawn at random where there are too many to try them all."""


def interquartile_mean(scores: ArrayLike, axis: int = -1) -> Floats:
    """The mean of the middle half: without the lowest and the highest quarter of the scores.

    Of n scores, n // 4 are dropped at either end. A NaN among them makes the result NaN.
    """
    ordered = np.sort(np.asarray(scores, dtype=float), axis=axis)
    n = ordered.shape[axis]
    middle = np.take(ordered, range(n // 4, n - n // 4), axis=axis)
    unknown = np.isnan(ordered).any(axis=axis)  # sorted to the end, it would be dropped unseen
    return np.asarray(np.where(unknown, np.nan, middle.mean(axis=axis)))


def bootstrap_interval(
    tasks: Tasks,
    statistic: Callable[[Floats], Floats],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Where a statistic may well lie, had other seeds been drawn: the stratified bootstrap.

    The seeds of each task are drawn anew with replacement, task by task, and the percentiles of
    the statistic over many such draws are the interval.

    Args:
        tasks: scores; a task with fewer than two seeds tells nothing, and the result is NaN.
        statistic: from scores of shape [resamples, all seeds of all tasks] to [resamples, ...].
        confidence: share of the draws that lies within.
        resamples: how many draws.
        seed: of the draws; the same scores give the same interval.

    Returns:
        Lowest and highest, each of the statistic's shape.
    """
    arrays = _arrays(tasks)
    rng = np.random.default_rng(seed)
    drawn = [a[rng.integers(len(a), size=(resamples, len(a)))] for a in arrays]
    values = statistic(np.concatenate(drawn, axis=1))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    if min(map(len, arrays)) < 2:
        return np.full_like(low, np.nan), np.full_like(high, np.nan)
    return low, high


def probability_of_improvement(
    a: Tasks, b: Tasks, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """How likely a run of A beats a run of B on a task drawn at random; ties count half.

    Args:
        a: scores of A.
        b: scores of B on the same tasks; its seeds may be others.
        confidence: as for :func:`bootstrap_interval`, which draws from both.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        The probability with its interval.

    Raises:
        ValueError: different numbers of tasks.
    """
    first, second = _arrays(a), _arrays(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} tasks against {len(second)}: give the same ones.")
    rng = np.random.default_rng(seed)
    values = np.zeros(resamples)
    estimate = 0.0
    for x, y in zip(first, second, strict=True):
        beats = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        rows = rng.integers(len(x), size=(resamples, len(x), 1))
        columns = rng.integers(len(y), size=(resamples, 1, len(y)))
        values += beats[rows, columns].mean(axis=(1, 2)) / len(first)
        estimate += float(beats.mean()) / len(first)
    if min(map(len, (*first, *second))) < 2:
        return estimate, math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return estimate, float(low), float(high)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """The share of runs that score above each threshold.

    Args:
        scores: [..., runs].
        thresholds: [K].

    Returns:
        [..., K], falling from left to right where the thresholds rise.
    """
    values, limits = np.asarray(scores, dtype=float), np.asarray(thresholds, dtype=float)
    return (values[..., :, None] > limits).mean(axis=-2)


def area_under_curve(x: ArrayLike, y: ArrayLike) -> float:
    """The mean height of a curve between its first and its last point (trapezoids).

    Raises:
        ValueError: no point, or x does not rise.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not len(xs) or (np.diff(xs) <= 0).any():
        raise ValueError("A curve needs a point at least, and x that rises.")
    if len(xs) == 1:
        return float(ys[0])
    heights = (ys[1:] + ys[:-1]) / 2
    return float((heights * np.diff(xs)).sum() / (xs[-1] - xs[0]))


def first_reach(x: ArrayLike, y: ArrayLike, threshold: float) -> float:
    """Where a curve first has a point at or above the threshold; infinity if it never does."""
    there = np.flatnonzero(np.asarray(y, dtype=float) >= threshold)
    return float(np.asarray(x, dtype=float)[there[0]]) if len(there) else math.inf


def paired_difference(
    a: Tasks, b: Tasks, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float, float]:
    """By how much A exceeds B where both had the same seeds, and whether that may be chance.

    The difference is the mean over tasks of the mean over seeds. Its interval draws seeds anew,
    task by task. The p-value is that of the sign-flip test: if A and B were alike, each seed's
    difference might as well have had the other sign. Up to 12 differences all signs are tried;
    beyond that so many are drawn at random.

    Args:
        a: scores of A.
        b: scores of B, seed by seed those of the same tasks.
        confidence: of the interval.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        Difference, lowest, highest, p.

    Raises:
        ValueError: tasks or seeds that do not pair up.
    """
    first, second = _arrays(a), _arrays(b)
    if (seeds := [*map(len, first)]) != (others := [*map(len, second)]):
        raise ValueError(f"Seeds by task, {seeds} against {others}: give the same ones, in order.")
    gaps = [x - y for x, y in zip(first, second, strict=True)]
    weight = np.concatenate([np.full(len(gap), 1 / (len(gap) * len(gaps))) for gap in gaps])
    low, high = bootstrap_interval(
        gaps, lambda drawn: drawn @ weight, confidence=confidence, resamples=resamples, seed=seed
    )
    weighted = np.concatenate(gaps) * weight
    difference = float(weighted.sum())
    return difference, float(low), float(high), _sign_flip(weighted, seed)


def _sign_flip(weighted: Floats, seed: int) -> float:
    n, observed = len(weighted), abs(weighted.sum())
    slack = 1e-12 * np.abs(weighted).sum()  # rounding must not tell equal sums apart
    if n <= 12:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * bits) @ weighted) >= observed - slack).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, n))
    as_far = (np.abs(signs @ weighted) >= observed - slack).sum()
    return float((as_far + 1) / (FLIPS + 1))  # the observed signs are one of the draws


def _arrays(tasks: Tasks) -> list[Floats]:
    arrays = [np.asarray(task, dtype=float) for task in tasks]
    if not arrays or any(a.ndim != 1 or not len(a) for a in arrays):
        raise ValueError("Give a flat array of scores per task, each with a seed at least.")
    if any(np.isnan(a).any() for a in arrays):
        raise ValueError("A score is NaN; leave that seed out, and say so.")
    return arrays
