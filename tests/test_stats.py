"""Known values of the intervals, and what a band over seeds must keep."""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.stats import (
    area_under_curve,
    bootstrap_interval,
    first_reach,
    interquartile_mean,
    median_band,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    wilson_interval,
)


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


def test_without_an_episode_the_interval_is_0_to_1():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_the_interval_contains_the_rate_and_mirrors_for_failures(
    n: int, share: float, confidence: float
):
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
    [((-1, 5), "-1 successes"), ((6, 5), "6 successes"), ((1, 5, 1.0), "confidence is 1.0")],
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


def test_the_band_covers_the_common_range_and_ignores_nan():
    first = ([0, 1, 2, 3], [math.nan, 1, 1, 1])
    second = ([0, 1, 2], [3, 3, 3])
    empty = ([0, 1], [math.nan, math.nan])
    grid, middle, _, _ = median_band([first, second, empty], points=5)
    assert (grid[0], grid[-1]) == (1, 2)
    assert middle == pytest.approx(np.full(5, 2))


@pytest.mark.parametrize("curves", [[], [([0], [math.nan])], [([0, 1], [0, 1]), ([2, 3], [0, 1])]])
def test_curves_that_do_not_overlap_are_an_error(curves: list[tuple[list[float], list[float]]]):
    with pytest.raises(ValueError, match=r"do not overlap|finite point"):
        median_band(curves)


# Scores over seeds.

rates = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=12)
several = st.lists(rates, min_size=1, max_size=4)


def flat(tasks: list[list[float]]) -> list[float]:
    return [score for task in tasks for score in task]


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert interquartile_mean([9, 2, 3, -50]) == 2.5
    assert interquartile_mean(np.arange(10)) == np.mean(np.arange(2, 8))
    assert interquartile_mean([[1.0], [3.0]], axis=0) == 2


@settings(deadline=None)
@given(rates, st.floats(-5, 5), st.floats(0.1, 5))
def test_the_interquartile_mean_moves_and_scales_with_its_scores(scores, shift, scale):
    middle = float(interquartile_mean(scores))
    assert min(scores) - 1e-12 <= middle <= max(scores) + 1e-12
    moved = np.array(scores) * scale + shift
    assert interquartile_mean(moved) == pytest.approx(middle * scale + shift, abs=1e-9)
    assert interquartile_mean(scores[::-1]) == pytest.approx(middle, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(several)
def test_a_bootstrap_interval_lies_within_the_scores_and_repeats(tasks: list[list[float]]):
    low, high = bootstrap_interval(tasks, interquartile_mean, resamples=200)
    if min(map(len, tasks)) < 2:
        assert math.isnan(low)
        assert math.isnan(high)
        return
    assert min(flat(tasks)) <= low <= high <= max(flat(tasks))
    assert (low, high) == bootstrap_interval(tasks, interquartile_mean, resamples=200)


def test_differences_between_tasks_do_not_widen_the_interval():
    low, high = bootstrap_interval([[0.0] * 5, [1.0] * 5], lambda drawn: drawn.mean(axis=1))
    assert (low, high) == (0.5, 0.5)


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    scores = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval([scores], lambda drawn: drawn.mean(axis=1))
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / 20, rel=0.1)


@settings(deadline=None, max_examples=30)
@given(several, st.data())
def test_improvement_of_a_on_b_and_of_b_on_a_sum_to_one(
    tasks: list[list[float]], data: st.DataObject
):
    others = [data.draw(rates) for _ in tasks]
    forth, *_ = probability_of_improvement(tasks, others, resamples=10)
    back, *_ = probability_of_improvement(others, tasks, resamples=10)
    assert forth + back == pytest.approx(1)
    assert probability_of_improvement(tasks, tasks, resamples=10)[0] == pytest.approx(0.5)
    better = [[score + 2 for score in task] for task in others]
    assert probability_of_improvement(better, tasks, resamples=10)[0] == pytest.approx(1)


def test_improvement_rejects_different_numbers_of_tasks():
    with pytest.raises(ValueError, match="2 tasks of A but 1 of B"):
        probability_of_improvement([[1.0], [1.0]], [[1.0]])


@given(rates, st.lists(st.floats(-0.5, 1.5), min_size=2, max_size=6).map(sorted))
def test_a_profile_decreases_and_is_the_share_above_the_threshold(
    scores: list[float], thresholds: list[float]
):
    shares = performance_profile(scores, thresholds)
    assert (np.diff(shares) <= 0).all()
    wanted = [sum(score > limit for score in scores) / len(scores) for limit in thresholds]
    assert shares == pytest.approx(wanted)


def test_the_area_is_the_mean_height():
    assert area_under_curve([0, 10], [0.0, 1.0]) == 0.5
    assert area_under_curve([0, 1, 10], [1.0, 1.0, 1.0]) == 1
    assert area_under_curve([3], [0.4]) == 0.4
    for x in ([], [1, 1], [2, 1]):
        with pytest.raises(ValueError, match="must increase"):
            area_under_curve(x, [0.0] * len(x))


@given(rates, st.floats(0.01, 1))
def test_first_reach_is_the_first_point_at_the_threshold_or_infinity(
    curve: list[float], threshold: float
):
    x = np.arange(len(curve)) * 10.0
    at = first_reach(x, curve, threshold)
    if math.isinf(at):
        assert max(curve) < threshold
    else:
        place = int(at / 10)
        assert curve[place] >= threshold > max(curve[:place], default=-1)


@settings(deadline=None, max_examples=30)
@given(several, st.data())
def test_swapping_a_and_b_changes_the_sign_alone(tasks: list[list[float]], data: st.DataObject):
    others = [
        data.draw(st.lists(st.floats(0, 1), min_size=len(task), max_size=len(task)))
        for task in tasks
    ]
    difference, low, high, p = paired_difference(tasks, others, resamples=200)
    turned = paired_difference(others, tasks, resamples=200)
    assert turned[0] == pytest.approx(-difference, abs=1e-12)
    assert turned[3] == pytest.approx(p)
    assert 0 < p <= 1
    if not math.isnan(low):
        assert low <= high
        assert turned[1:3] == pytest.approx((-high, -low), abs=1e-9)


def test_the_sign_flip_test_has_its_exact_values():
    ones = [1.0] * 5
    assert paired_difference([ones], [[0.0] * 5])[3] == 2 / 2**5
    assert paired_difference([ones], [ones])[3] == 1
    assert paired_difference([[1.0, -1.0]], [[0.0, 0.0]])[3] == 1
    assert paired_difference([[1.0] * 20], [[0.0] * 20])[3] == pytest.approx(1 / 10_001)


def test_without_a_difference_p_is_uniform():
    rng = np.random.default_rng(0)
    p = [paired_difference([rng.normal(size=8)], [np.zeros(8)], resamples=2)[3] for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_seeds_that_do_not_pair_up_are_rejected():
    with pytest.raises(ValueError, match="pass the same"):
        paired_difference([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="pass the same"):
        paired_difference([[1.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="flat array"):
        bootstrap_interval([[]], interquartile_mean)


def test_a_nan_score_is_never_ignored():
    assert math.isnan(interquartile_mean([1.0, 1.0, 1.0, math.nan]))
    table = np.array([[0.0, 1.0], [math.nan, 1.0]])
    np.testing.assert_array_equal(interquartile_mean(table, axis=0), [math.nan, 1.0])
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_interval([[1.0, math.nan]], interquartile_mean)


def test_the_numbers_equal_those_of_rliable():
    """Against the package of the paper's authors, where it happens to be installed."""
    try:
        library, metrics = (import_module(f"rliable.{name}") for name in ("library", "metrics"))
    except Exception as error:  # its dependencies move on without it
        pytest.skip(f"rliable cannot be imported: {error}")
    rng = np.random.default_rng(3)
    a, b = rng.beta(2, 1, size=(10, 4)), rng.beta(1, 1, size=(10, 4))
    tasks, others = list(a.T), list(b.T)
    assert interquartile_mean(flat([list(t) for t in tasks])) == pytest.approx(
        metrics.aggregate_iqm(a)
    )
    assert probability_of_improvement(tasks, others, resamples=2)[0] == pytest.approx(
        metrics.probability_of_improvement(a, b)
    )
    taus = np.linspace(0, 1, 11)
    above = [library.run_score_deviation(a, tau) for tau in taus]
    assert performance_profile(a.ravel(), taus) == pytest.approx(above)
    _, intervals = library.get_interval_estimates(
        {"a": a}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=2000
    )
    low, high = bootstrap_interval(tasks, interquartile_mean)
    assert (float(low), float(high)) == pytest.approx(tuple(intervals["a"][:, 0]), abs=0.01)
