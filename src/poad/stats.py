"""Statistics for reports and studies: intervals, and comparisons over seeds.

Scores of several tasks are passed as one array per task, with a number for each seed. Statistics
over seeds follow Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical
Precipice (arXiv 2108.13264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a success rate p, from `n` independent episodes.

        p + z²/2n ± z √(p(1−p)/n + z²/4n²)
        ──────────────────────────────────        p = successes / n
                    1 + z²/n

    Unlike the normal interval p ± z √(p(1−p)/n), it stays within [0, 1] and has a positive width
    for 0 and for n successes. Source: E. B. Wilson, Probable Inference, the Law of Succession, and
    Statistical Inference, JASA 22 (1927).

    z is the normal quantile of the coverage probability `confidence`, in (0, 1). Without episodes
    the interval is (0, 1).

    Raises:
        ValueError: the counts or the confidence are out of range.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} episodes; expected 0 ≤ successes ≤ n.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie strictly between 0 and 1.")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # For 0 and n successes a bound is exactly 0 or 1, which rounding would miss.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


Floats = NDArray[np.float64]


def median_band(
    curves: Sequence[tuple[ArrayLike, ArrayLike]], points: int = 200
) -> tuple[Floats, Floats, Floats, Floats]:
    """Combine several curves into their median and the band between the lowest and the highest.

    The curves are pairs (x, y) of equal length, with x ascending. Points with y = NaN are ignored.
    They are interpolated linearly at common positions. These cover the range of x that all curves
    share, so that the median is always over the same curves.

    Returns x, median, lowest and highest, each [points].

    Raises:
        ValueError: no curve has a finite point, or the curves do not share a range of x.
    """
    clean: list[tuple[Floats, Floats]] = []
    for x, y in curves:
        xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        real = np.isfinite(ys)
        if real.any():
            clean.append((xs[real], ys[real]))
    if not clean:
        raise ValueError("No curve has a finite point, so there is nothing to draw.")
    start, stop = max(xs[0] for xs, _ in clean), min(xs[-1] for xs, _ in clean)
    if start > stop:
        raise ValueError(
            f"The curves do not overlap: one starts at {start:g}, and another ends at {stop:g}."
        )
    grid = np.linspace(start, stop, points)
    stack = np.stack([np.interp(grid, xs, ys) for xs, ys in clean])  # [curves, points]
    return grid, np.median(stack, axis=0), stack.min(axis=0), stack.max(axis=0)


# --- scores over seeds ----------------------------------------------------------------------------

Tasks = Sequence[ArrayLike]
"""One array of scores per task, with a number for each seed."""
RESAMPLES = 2000
PERCENTILES = ((1 - 0.95) / 2, (1 + 0.95) / 2)
"""The bounds of a 95 % interval."""
MAX_EXACT_PAIRS = 12
"""Up to so many pairs, the sign-flip test enumerates all signs."""
SIGN_DRAWS = 10_000
"""For more pairs, it draws so many combinations of signs at random."""


def interquartile_mean(scores: ArrayLike, axis: int = -1) -> Floats:
    """Mean of the scores without the lowest and the highest quarter (arXiv 2108.13264).

    Of n scores, n // 4 are dropped at either end. The result is NaN if a score is NaN.
    """
    ordered = np.sort(np.asarray(scores, dtype=float), axis=axis)
    n = ordered.shape[axis]
    middle = np.take(ordered, range(n // 4, n - n // 4), axis=axis)
    unknown = np.isnan(ordered).any(axis=axis)  # NaN is sorted to the end, where it is dropped
    return np.asarray(np.where(unknown, np.nan, middle.mean(axis=axis)))


def bootstrap_interval(
    tasks: Tasks, statistic: Callable[[Floats], Floats], *, resamples: int = RESAMPLES
) -> tuple[Floats, Floats]:
    """95 % interval over seeds by the stratified percentile bootstrap (arXiv 2108.13264).

    Each resample draws the seeds of every task with replacement, task by task. The draws are always
    the same, so that the same scores give the same interval.

    Args:
        tasks: the scores. The result is NaN if a task has fewer than two seeds.
        statistic: maps scores [resamples, all seeds of all tasks] to [resamples, ...].
        resamples: the number of resamples.

    Returns:
        The lower and the upper bound, each of the statistic's shape [...].
    """
    arrays, rng = _arrays(tasks), np.random.default_rng(0)
    drawn = [a[rng.integers(len(a), size=(resamples, len(a)))] for a in arrays]
    values = statistic(np.concatenate(drawn, axis=1))  # [resamples, seeds] -> [resamples, ...]
    low, high = np.quantile(values, PERCENTILES, axis=0)
    if min(map(len, arrays)) < 2:
        return np.full_like(low, np.nan), np.full_like(high, np.nan)
    return low, high


def probability_of_improvement(
    a: Tasks, b: Tasks, *, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Probability that a run of A beats a run of B on a random task (arXiv 2108.13264).

        P(A > B) = mean over tasks of the mean over all pairs of seeds of [a > b] + ½ [a = b]

    `a` and `b` are scores on the same tasks, which may differ in their seeds. Returns the
    probability and the bounds of its 95 % bootstrap interval, in which the seeds of A and B are
    drawn independently.

    Raises:
        ValueError: A and B have different numbers of tasks.
    """
    first, second = _arrays(a), _arrays(b)
    if len(first) != len(second):
        raise ValueError(
            f"There are {len(first)} tasks of A but {len(second)} of B; pass the same tasks."
        )
    rng = np.random.default_rng(0)
    values, estimate = np.zeros(resamples), 0.0
    for x, y in zip(first, second, strict=True):
        beats = (x[:, None] > y) + 0.5 * (x[:, None] == y)  # [seeds of A, seeds of B]
        # Resampling the seeds of both resamples rows and columns of the table of all pairs:
        # [resamples, seeds of A, 1] and [resamples, 1, seeds of B] broadcast to all three axes.
        rows = rng.integers(len(x), size=(resamples, len(x), 1))
        columns = rng.integers(len(y), size=(resamples, 1, len(y)))
        values += beats[rows, columns].mean(axis=(1, 2)) / len(first)
        estimate += float(beats.mean()) / len(first)
    if min(map(len, (*first, *second))) < 2:
        return estimate, math.nan, math.nan
    low, high = np.quantile(values, PERCENTILES)
    return estimate, float(low), float(high)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Share of runs that score above each threshold (arXiv 2108.13264).

    Scores [..., runs] and thresholds [K] give shares [..., K].
    """
    values, limits = np.asarray(scores, dtype=float), np.asarray(thresholds, dtype=float)
    return (values[..., :, None] > limits).mean(axis=-2)  # [..., runs, K] -> [..., K]


def area_under_curve(x: ArrayLike, y: ArrayLike) -> float:
    """Mean height of a curve between its first and its last point, by the trapezoidal rule.

    Raises:
        ValueError: the curve has no point, or x does not increase.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not len(xs) or (np.diff(xs) <= 0).any():
        raise ValueError("A curve needs at least one point, and x must increase.")
    if len(xs) == 1:
        return float(ys[0])
    heights = (ys[1:] + ys[:-1]) / 2
    return float((heights * np.diff(xs)).sum() / (xs[-1] - xs[0]))


def first_reach(x: ArrayLike, y: ArrayLike, threshold: float) -> float:
    """First x at which a curve has a point at or above the threshold; infinity if there is none."""
    there = np.flatnonzero(np.asarray(y, dtype=float) >= threshold)
    return float(np.asarray(x, dtype=float)[there[0]]) if len(there) else math.inf


def paired_difference(
    a: Tasks, b: Tasks, *, resamples: int = RESAMPLES
) -> tuple[float, float, float, float]:
    """Mean difference A − B over paired seeds, its 95 % interval and a two-sided p-value.

    The difference is the mean over tasks of the mean over seeds. Its interval comes from
    `bootstrap_interval`. The p-value comes from the sign-flip test: if A and B were alike, the
    difference of each pair could as well have the opposite sign, and p is the share of sign
    combinations whose absolute mean is at least the observed one. Up to `MAX_EXACT_PAIRS` pairs,
    all 2ⁿ combinations are enumerated. Otherwise `SIGN_DRAWS` of them are drawn at random.

    `a` and `b` are scores on the same tasks with the same seeds, in the same order. Returns the
    difference, the lower and the upper bound, and p.

    Raises:
        ValueError: the tasks or seeds of A and B do not match.
    """
    first, second = _arrays(a), _arrays(b)
    if (seeds := [*map(len, first)]) != (others := [*map(len, second)]):
        raise ValueError(
            f"The numbers of seeds by task are {seeds} for A and {others} for B; pass the same "
            "tasks and seeds, in the same order."
        )
    # One weight per pair makes a plain sum the mean over tasks of means over seeds.
    gaps = [x - y for x, y in zip(first, second, strict=True)]
    weight = np.concatenate([np.full(len(gap), 1 / (len(gap) * len(gaps))) for gap in gaps])
    low, high = bootstrap_interval(gaps, lambda drawn: drawn @ weight, resamples=resamples)
    weighted = np.concatenate(gaps) * weight
    difference = float(weighted.sum())
    return difference, float(low), float(high), _sign_flip(weighted)


def _sign_flip(weighted: Floats) -> float:
    """Compute the p-value of the sign-flip test for n weighted differences [n]."""
    n, observed = len(weighted), abs(weighted.sum())
    slack = 1e-12 * np.abs(weighted).sum()  # equal sums may differ by rounding
    if n <= MAX_EXACT_PAIRS:
        # Row k holds the binary digits of k: all combinations, [2ⁿ, n]. Digit 1 means a minus.
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * bits) @ weighted) >= observed - slack).mean())
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(SIGN_DRAWS, n))
    as_far = (np.abs(signs @ weighted) >= observed - slack).sum()
    return float((as_far + 1) / (SIGN_DRAWS + 1))  # the observed signs count as one draw


def _arrays(tasks: Tasks) -> list[Floats]:
    arrays = [np.asarray(task, dtype=float) for task in tasks]
    if not arrays or any(a.ndim != 1 or not len(a) for a in arrays):
        raise ValueError("Pass a flat array of scores per task, each with at least one seed.")
    if any(np.isnan(a).any() for a in arrays):
        raise ValueError("A score is NaN; leave that seed out, and report that you did.")
    return arrays
