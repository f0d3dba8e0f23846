"""Known values of the intervals, and what a band over seeds must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.stats import median_band, wilson_interval


# The table of R. G. Newcombe, Two-sided confidence intervals for the single proportion,
# Statistics in Medicine 17 (1998), method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_its_published_values(successes: int, n: int, low: float, high: float):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959964), (0.99, 2.575829)])
def test_at_its_bounds_the_score_statistic_is_the_normal_quantile(confidence: float, z: float):
    successes, n = 950, 1000
    for bound in wilson_interval(successes, n, confidence):
        deviation = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert deviation == pytest.approx(z, abs=1e-5)


def test_without_an_episode_every_rate_is_possible():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_the_interval_holds_the_rate_and_mirrors_failures(n: int, share: float, confidence: float):
    successes = round(share * n)
    low, high = wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    mirrored = wilson_interval(n - successes, n, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(level: float):
    """Its coverage, summed exactly over the binomial distribution, is near the nominal one."""
    n, rate = 60, 0.3
    covered = 0.0
    for k in range(n + 1):
        low, high = wilson_interval(k, n, level)
        if low <= rate <= high:
            covered += math.comb(n, k) * rate**k * (1 - rate) ** (n - k)
    assert covered == pytest.approx(level, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((-1, 5), "-1 successes"), ((6, 5), "6 successes"), ((1, 5, 1.0), "confidence = 1.0")],
)
def test_impossible_counts_are_named(arguments: tuple[int, int], named: str):
    with pytest.raises(ValueError, match=named):
        wilson_interval(*arguments)


def test_the_band_of_three_lines_is_their_middle_lowest_and_highest():
    x = [0, 10]
    grid, middle, low, high = median_band([(x, [0, 1]), (x, [5, 5]), (x, [2, 2])], points=11)
    assert grid == pytest.approx(np.arange(11))
    assert low == pytest.approx(np.arange(11) / 10)
    assert middle == pytest.approx(np.full(11, 2))
    assert high == pytest.approx(np.full(11, 5))


def test_the_band_covers_what_all_curves_cover_and_skips_what_is_no_number():
    first = ([0, 1, 2, 3], [math.nan, 1, 1, 1])
    second = ([0, 1, 2], [3, 3, 3])
    empty = ([0, 1], [math.nan, math.nan])
    grid, middle, _, _ = median_band([first, second, empty], points=5)
    assert (grid[0], grid[-1]) == (1, 2)
    assert middle == pytest.approx(np.full(5, 2))


@pytest.mark.parametrize("curves", [[], [([0], [math.nan])], [([0, 1], [0, 1]), ([2, 3], [0, 1])]])
def test_nothing_in_common_is_an_error(curves: list[tuple[list[float], list[float]]]):
    with pytest.raises(ValueError, match=r"no stretch|finite point"):
        median_band(curves)
