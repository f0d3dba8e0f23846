"""From finished runs to the numbers of a study.

Scores come from the panel of evaluation episodes that all runs share: the success rate of sampled
episodes at the end of a run, and the area under the curve of those during training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from poad.errors import RunError
from poad.runs import Mode, Run, UnseenEvaluation, Versions
from poad.stats import (
    area_under_curve,
    bootstrap_interval,
    first_reach,
    interquartile_mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from poad.study.comparable import changed_settings, versions_of
from poad.study.records import (
    Aggregates,
    Candidate,
    Comparison,
    Curve,
    Estimate,
    Pair,
    Profile,
    RunRow,
    Settings,
    Speed,
    SuccessRate,
    Summary,
    UnseenComparison,
    UnseenSummary,
)
from poad.study.spec import ALL, Job, Study, candidates
from poad.study.workers import Task

PROFILE_RATES = np.linspace(0, 1, 51)
"""Success rates at which performance profiles are computed."""
Strata = Sequence[Sequence[float]]
"""Scores by world, a number for each seed."""


def read_run(job: Job, task: Task, threshold: float) -> RunRow:
    """Read the results of a finished run, whose world counts as learned at ``threshold``."""
    run = Run.open(task.path)
    summary, metrics = run.summary(), run.metrics()
    if summary is None or summary.evaluation is None:
        raise RunError(f"The run {run.path} has no evaluation in its summary.json.")
    sampled, greedy = summary.evaluation["sampled"], summary.evaluation["greedy"]
    evaluated = [m for m in metrics if math.isfinite(m.get("eval_success", math.nan))]
    keys = ("env_steps", "cpu_seconds", "eval_success", "eval_return")
    curve = [tuple(m[key] for key in keys) for m in evaluated]
    last = metrics[-1]
    if not evaluated or evaluated[-1]["iteration"] != last["iteration"]:
        end = (last["env_steps"], last["cpu_seconds"], sampled.success_rate, sampled.mean_return)
        curve.append(end)
    steps, seconds, success, _ = zip(*curve, strict=True)
    trained, untrained = task.unseen_evaluations()
    return RunRow(
        world=job.world,
        method=job.method,
        seed=job.seed,
        success=sampled.success_rate,
        success_interval=sampled.success_interval or (0.0, 1.0),
        episodes=sampled.episodes,
        greedy=greedy.success_rate,
        mean_return=sampled.mean_return,
        area=area_under_curve(steps, success),
        steps_to=first_reach(steps, success, threshold),
        cpu_seconds_to=first_reach(seconds, success, threshold),
        env_steps=summary.env_steps or 0,
        cpu_seconds=summary.cpu_seconds,
        curve=tuple((round(a, 6), round(b, 6), round(c, 6), round(d, 6)) for a, b, c, d in curve),
        versions=versions_of(run),
        unseen=tuple(map(_success_rate, trained)),
        untrained=tuple(map(_success_rate, untrained)),
    )


def _success_rate(each: UnseenEvaluation) -> SuccessRate:
    bounds = each.evaluation.success_interval or (0.0, 1.0)
    return SuccessRate(each.world, each.mode, each.evaluation.success_rate, bounds)


# The search.


class Selection(NamedTuple):
    """The outcome of a search: settings by method, all candidates, and the versions of each run."""

    settings: dict[str, Settings]
    candidates: list[Candidate]
    versions: list[Versions]


def select_settings(study: Study, jobs: Sequence[Job], tasks: Mapping[str, Task]) -> Selection:
    """Select for each method the settings with the highest mean area under the curve.

    Settings with a failed run are not selected. Nothing is selected for a method that has a run
    which is neither finished nor failed, or which was made with other settings.
    """
    settings = candidates(study)
    areas: dict[tuple[str, int], list[float]] = {}
    undecided, failed = set[str](), set[tuple[str, int]]()
    seconds = {(job.method, job.candidate or 0): 0.0 for job in jobs}
    versions = []
    for job in jobs:
        key, task = (job.method, job.candidate or 0), tasks[job.name]
        if task.finished and not changed_settings(job, task):
            row = read_run(job, task, study.world(job.world).threshold)
            areas.setdefault(key, []).append(row.area)
            versions.append(row.versions)
            seconds[key] += row.cpu_seconds
        elif task.failure is not None:
            failed.add(key)
        else:
            undecided.add(job.method)
    tried = [
        Candidate(
            method=method,
            settings=settings[index],
            area=float(np.mean(areas[method, index])) if (method, index) in areas else math.nan,
            runs=len(areas.get((method, index), ())),
            failed=(method, index) in failed,
            cpu_seconds=cpu_seconds,
        )
        for (method, index), cpu_seconds in seconds.items()
    ]
    selected: dict[str, Settings] = {}
    for method in study.methods:
        own = [each for each in tried if each.method == method]
        complete = [each for each in own if not math.isnan(each.area) and not each.failed]
        if complete and method not in undecided:
            selected[method] = max(complete, key=lambda each: each.area).settings
    return Selection(selected, tried, versions)


# Statistics.


def aggregate(study: Study, rows: Sequence[RunRow]) -> Aggregates:
    """Compute the statistics over seeds, and over all worlds together where there are several."""
    cells = {
        (world, method): sorted(
            (row for row in rows if (row.world, row.method) == (world, method)),
            key=lambda row: row.seed,
        )
        for world in study.worlds
        for method in study.methods
    }
    groups = [(world, [world]) for world in study.worlds]
    groups += [(ALL, list(study.worlds))] if len(study.worlds) > 1 else []
    summaries = []
    for name, worlds in groups:
        for method in study.methods:
            strata = _common_seeds([cells[world, method] for world in worlds])
            if all(strata):
                summaries.append(_summarize(name, method, strata))
    pairs = []
    for method, other in study.pairs:
        for name, worlds in groups:
            both = [cells[world, each] for each in (method, other) for world in worlds]
            shared = _common_seeds(both)
            if all(shared):
                pairs.append(_pair(name, method, other, shared))
    curves = [Curve(*key, _band(cell)) for key, cell in cells.items() if cell]
    return Aggregates(
        summaries=tuple(summaries),
        pairs=tuple(pairs),
        unseen=tuple(_unseen(study, rows)),
        curves=tuple(curves),
        profiles=tuple(_profiles(cells)),
    )


def _common_seeds(cells: Sequence[Sequence[RunRow]]) -> list[list[RunRow]]:
    """Keep the rows of those seeds that every cell has, so that all cells weigh the same."""
    shared = set.intersection(*({row.seed for row in cell} for cell in cells))
    return [[row for row in cell if row.seed in shared] for cell in cells]


def _estimate(strata: Strata) -> Estimate:
    """Interquartile mean over all scores, with its stratified bootstrap interval."""
    low, high = bootstrap_interval(strata, interquartile_mean)
    return float(interquartile_mean(np.concatenate(strata))), float(low), float(high)


def _compare(first: Strata, second: Strata) -> Comparison:
    value, low, high, p = paired_difference(first, second)
    return Comparison((value, low, high), p, probability_of_improvement(first, second))


def _summarize(name: str, method: str, cells: Sequence[Sequence[RunRow]]) -> Summary:
    """One method in one world, or in several."""
    rows = [row for cell in cells for row in cell]
    speed = Speed(
        steps_to=float(np.median([row.steps_to for row in rows])),
        cpu_seconds_to=float(np.median([row.cpu_seconds_to for row in rows])),
        cpu_seconds=float(np.median([row.cpu_seconds for row in rows])),
    )
    return Summary(
        world=name,
        method=method,
        seeds=min(map(len, cells)),
        success=_estimate(_scores(cells, "success")),
        area=_estimate(_scores(cells, "area")),
        greedy=float(np.mean([row.greedy for row in rows])),
        never=float(np.mean([math.isinf(row.steps_to) for row in rows])),
        speed=speed if len(cells) == 1 else None,
    )


def _pair(name: str, method: str, other: str, cells: Sequence[Sequence[RunRow]]) -> Pair:
    """Compare two methods: the cells of the first, then those of the other, on common seeds."""
    one, two = cells[: len(cells) // 2], cells[len(cells) // 2 :]
    return Pair(
        world=name,
        method=method,
        other=other,
        seeds=len(one[0]),
        success=_compare(_scores(one, "success"), _scores(two, "success")),
        area=_compare(_scores(one, "area"), _scores(two, "area")),
    )


def _scores(cells: Sequence[Sequence[RunRow]], name: Literal["success", "area"]) -> Strata:
    return [[getattr(row, name) for row in cell] for cell in cells]


def _band(cell: Sequence[RunRow]) -> tuple[tuple[float, float, float, float], ...]:
    """Interquartile mean over seeds with its interval, at the steps that all seeds share."""
    curves = [{steps: success for steps, _, success, _ in row.curve} for row in cell]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not shared:
        return ()
    scores = np.array([[curve[steps] for steps in shared] for curve in curves])  # [seeds, points]
    means = interquartile_mean(scores, axis=0)
    bounds = [bootstrap_interval([column], interquartile_mean) for column in scores.T]
    return tuple(
        (steps, float(mean), float(low), float(high))
        for steps, mean, (low, high) in zip(shared, means, bounds, strict=True)
    )


def _profiles(cells: Mapping[tuple[str, str], Sequence[RunRow]]) -> list[Profile]:
    """For each method the share of runs, over all worlds, whose final success exceeds a rate."""
    worlds, methods = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    profiles = []
    for method in methods:
        strata = _scores(_common_seeds([cells[world, method] for world in worlds]), "success")
        if not all(strata):
            continue
        pooled = [value for stratum in strata for value in stratum]
        low, high = bootstrap_interval(
            strata, lambda drawn: performance_profile(drawn, PROFILE_RATES)
        )
        shares = performance_profile(pooled, PROFILE_RATES)
        points = np.stack([PROFILE_RATES, shares, low, high], axis=1).round(6)
        profiles.append(Profile(method, tuple((a, b, c, d) for a, b, c, d in points.tolist())))
    return profiles


# Unseen worlds.

BySeed = dict[str, dict[int, float]]
"""Success rates in one unseen world, by the world trained in and the seed."""


def _unseen(study: Study, rows: Sequence[RunRow]) -> list[UnseenSummary]:
    """Success in worlds that no agent was trained in, by method and mode.

    Strata are the worlds that agents were trained in. For all unseen worlds together a run counts
    as one number, its mean over them: the same agent was evaluated in each, so its scores there
    are not independent.
    """
    scores = _unseen_scores(rows)
    summaries = []
    for (method, mode), by_world in scores.items():
        others = [b for a, b in study.pairs if a == method and (b, mode) in scores]
        for name, by_home in by_world.items():
            shared = set.intersection(*map(set, by_home.values()))
            if not shared:
                continue
            strata = [[by_seed[seed] for seed in sorted(shared)] for by_seed in by_home.values()]
            pooled = np.concatenate(strata)
            against = [_against(other, by_home, scores[other, mode].get(name)) for other in others]
            summaries.append(
                UnseenSummary(
                    world=name,
                    method=method,
                    mode=mode,
                    runs=len(pooled),
                    success=_estimate(strata),
                    mean=float(np.mean(pooled)),
                    against=tuple(against),
                )
            )
    return summaries


def _unseen_scores(rows: Sequence[RunRow]) -> dict[tuple[str, Mode], dict[str, BySeed]]:
    """Success rates by (method, mode) and unseen world; all of them together come last."""
    scores: dict[tuple[str, Mode], dict[str, BySeed]] = {}
    for row in rows:
        for each in row.unseen:
            by_world = scores.setdefault((row.method, each.mode), {})
            by_home = by_world.setdefault(each.world, {})
            by_home.setdefault(row.world, {})[row.seed] = each.success_rate
    for by_world in scores.values():
        if len(by_world) > 1:
            by_world[ALL] = {
                home: {
                    seed: float(np.mean([by_home[home][seed] for by_home in by_world.values()]))
                    for seed in by_seed
                }
                for home, by_seed in next(iter(by_world.values())).items()
            }
    return scores


def _against(name: str, scores: BySeed, others: BySeed | None) -> UnseenComparison:
    """Compare one method's success in an unseen world with another's, on their common seeds."""
    others = others or {}
    shared = {home: sorted(set(of) & set(others.get(home, ()))) for home, of in scores.items()}
    if not all(shared.values()):
        return UnseenComparison(name, 0)
    first, second = (
        [[side[home][seed] for seed in seeds] for home, seeds in shared.items()]
        for side in (scores, others)
    )
    return UnseenComparison(name, sum(map(len, shared.values())), _compare(first, second))
