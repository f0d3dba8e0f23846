"""From finished runs to the numbers of a study.

Scores are the success rate of sampled episodes at the end of a run, on the panel of episodes that
all runs share, and the area under the learning curve. The curve shows success or return on that
panel during training, or a metric of the training itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from poad.errors import RunError, did_you_mean
from poad.runs import Mode, Run, UnseenEvaluation, Versions
from poad.stats import (
    Floats,
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
    SUCCESS,
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


def read_run(job: Job, task: Task) -> RunRow:
    """Read the results of a finished run."""
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
    shown = _learning_curve(job, curve, metrics)
    steps, seconds, height = zip(*shown, strict=True)
    if job.curve == SUCCESS:
        shown = []  # it is in `curve`
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
        area=area_under_curve(steps, height),
        steps_to=first_reach(steps, height, job.threshold),
        cpu_seconds_to=first_reach(seconds, height, job.threshold),
        env_steps=summary.env_steps or 0,
        cpu_seconds=summary.cpu_seconds,
        curve=tuple((round(a, 6), round(b, 6), round(c, 6), round(d, 6)) for a, b, c, d in curve),
        versions=versions_of(run),
        unseen=tuple(map(_success_rate, trained)),
        untrained=tuple(map(_success_rate, untrained)),
        shown=tuple((round(a, 6), round(b, 6), round(c, 6)) for a, b, c in shown),
    )


def _learning_curve(
    job: Job, evaluations: Sequence[tuple[float, ...]], metrics: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float, float]]:
    """Read what the study's curves show, as (environment steps, CPU seconds, value).

    Raises:
        RunError: it is a metric that the run does not have.
    """
    if job.curve in (SUCCESS, "return"):
        place = 2 if job.curve == SUCCESS else 3
        return [(point[0], point[1], point[place]) for point in evaluations]
    found = [m for m in metrics if math.isfinite(m.get(job.curve, math.nan))]
    if not found:
        known = sorted({name for m in metrics for name in m})
        raise RunError(
            f"curve: the run {job.name} has no metric {job.curve!r}. "
            f"{did_you_mean(job.curve, known)}A curve shows success, return, or one of: "
            f"{', '.join(known)}. Correct the study file and repeat the command. No run is lost."
        )
    return [(m["env_steps"], m["cpu_seconds"], m[job.curve]) for m in found]


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
    runs: dict[tuple[str, int], list[RunRow]] = {}
    undecided, failed = set[str](), set[tuple[str, int]]()
    for job in jobs:
        key, task = (job.method, job.candidate or 0), tasks[job.name]
        found = runs.setdefault(key, [])
        if task.finished and not changed_settings(job, task):
            found.append(read_run(job, task))
        elif task.failure is not None:
            failed.add(key)
        else:
            undecided.add(job.method)
    tried = [
        Candidate(
            method=method,
            settings=settings[index],
            area=float(np.mean([row.area for row in rows])) if rows else math.nan,
            runs=len(rows),
            failed=(method, index) in failed,
            cpu_seconds=sum((row.cpu_seconds for row in rows), 0.0),
        )
        for (method, index), rows in runs.items()
    ]
    selected: dict[str, Settings] = {}
    for method in study.methods:
        own = [each for each in tried if each.method == method]
        complete = [each for each in own if each.runs and not each.failed]
        if complete and method not in undecided:
            selected[method] = max(complete, key=lambda each: each.area).settings
    return Selection(selected, tried, [row.versions for rows in runs.values() for row in rows])


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
        profiles=tuple(_profiles(study, cells)),
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
    curves = [{steps: value for steps, _, value in row.learning} for row in cell]
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


def _profiles(study: Study, cells: Mapping[tuple[str, str], Sequence[RunRow]]) -> Iterator[Profile]:
    """For each method the share of runs, over all worlds, whose final success exceeds a rate."""

    def profile(scores: Floats) -> Floats:
        return performance_profile(scores, PROFILE_RATES)

    for method in study.methods:
        strata = _scores(_common_seeds([cells[world, method] for world in study.worlds]), "success")
        if not all(strata):
            continue
        low, high = bootstrap_interval(strata, profile)
        shares = profile(np.concatenate(strata))
        points = np.stack([PROFILE_RATES, shares, low, high], axis=1).round(6)
        yield Profile(method, tuple((a, b, c, d) for a, b, c, d in points.tolist()))


# Unseen worlds.

Scores = dict[str, dict[int, float]]
"""Success rates in one unseen world, by the world trained in and the seed."""


def _unseen(study: Study, rows: Sequence[RunRow]) -> list[UnseenSummary]:
    """Success in worlds that no agent was trained in; strata are the worlds of the training."""
    scores = _unseen_scores(rows)
    summaries = []
    for (method, mode, world), by_home in scores.items():
        shared = set.intersection(*map(set, by_home.values()))
        if not shared:
            continue
        strata = [[by_seed[seed] for seed in sorted(shared)] for by_seed in by_home.values()]
        others = [b for a, b in study.pairs if a == method and (b, mode, world) in scores]
        summaries.append(
            UnseenSummary(
                world=world,
                method=method,
                mode=mode,
                runs=len(shared) * len(strata),
                success=_estimate(strata),
                mean=float(np.mean(strata)),
                against=tuple(_against(b, by_home, scores[b, mode, world]) for b in others),
            )
        )
    return summaries


def _unseen_scores(rows: Sequence[RunRow]) -> dict[tuple[str, Mode, str], Scores]:
    """Success rates by method, mode and unseen world.

    For all unseen worlds together a run counts as one number, its mean over them: the same agent
    was evaluated in each, so its scores there are not independent.
    """
    scores: dict[tuple[str, Mode, str], Scores] = {}
    for row in rows:
        modes: dict[Mode, None] = dict.fromkeys(each.mode for each in row.unseen)
        for mode in modes:
            rates = {each.world: each.success_rate for each in row.unseen if each.mode == mode}
            if len(rates) > 1:
                rates[ALL] = float(np.mean(list(rates.values())))
            for world, rate in rates.items():
                by_home = scores.setdefault((row.method, mode, world), {})
                by_home.setdefault(row.world, {})[row.seed] = rate
    return scores


def _against(name: str, scores: Scores, others: Scores) -> UnseenComparison:
    """Compare one method's success in an unseen world with another's, on their common seeds."""
    shared = {home: sorted(set(of) & set(others.get(home, ()))) for home, of in scores.items()}
    if not all(shared.values()):
        return UnseenComparison(name, 0)
    first, second = (
        [[side[home][seed] for seed in seeds] for home, seeds in shared.items()]
        for side in (scores, others)
    )
    return UnseenComparison(name, sum(map(len, shared.values())), _compare(first, second))
