"""From finished runs to the numbers of a study.

Scores are what the fixed panel of episodes says: the success rate of sampled episodes at the end,
and the area under the curve of those along the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from poad.runs import UNTRAINED, Run
from poad.stats import (
    area_under_curve,
    bootstrap_interval,
    first_reach,
    interquartile_mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from poad.study.comparable import changed_settings, made_with
from poad.study.spec import ALL, Job, Settings, Study, candidates
from poad.study.workers import Task

PROFILE = np.linspace(0, 1, 51)
SCORES = {"success": "success at the end", "area": "area under the curve"}
Row = dict[str, Any]
"""One finished run, as results.json has it."""


def read_run(job: Job, task: Task, threshold: float) -> Row:
    """What a finished run's own files say."""
    run = Run.open(task.path)
    summary, metrics = run.summary() or {}, run.metrics()
    sampled, greedy = (summary["evaluation"][mode] for mode in ("sampled", "greedy"))
    along = [m for m in metrics if math.isfinite(m.get("eval_success", math.nan))]
    names = ("env_steps", "cpu_seconds", "eval_success", "eval_return")
    curve = [[m[name] for name in names] for m in along]
    if not along or along[-1]["iteration"] != metrics[-1]["iteration"]:
        ended = (sampled["success_rate"], sampled["mean_return"])
        curve.append([metrics[-1]["env_steps"], metrics[-1]["cpu_seconds"], *ended])
    steps, seconds, success, _ = zip(*curve, strict=True)
    row = {
        "world": job.world,
        "method": job.method,
        "seed": job.seed,
        "success": sampled["success_rate"],
        "success_interval": sampled["success_interval"],
        "episodes": sampled["episodes"],
        "greedy": greedy["success_rate"],
        "return": sampled["mean_return"],
        "area": area_under_curve(steps, success),
        "steps_to": first_reach(steps, success, threshold),
        "cpu_seconds_to": first_reach(seconds, success, threshold),
        "env_steps": summary["env_steps"],
        "cpu_seconds": summary["cpu_seconds"],
        "curve": [[round(value, 6) for value in point] for point in curve],
        "versions": made_with(run),
    }
    for line in task.results():
        label = "unseen" if line["trained"] else UNTRAINED
        names = ("world", "mode", "success_rate", "success_interval")
        row.setdefault(label, []).append({name: line[name] for name in names})
    return row


# The search.


class Choice(NamedTuple):
    """What a search found."""

    settings: dict[str, Settings]
    """The settings of the highest mean area under the curve, by method."""
    table: list[dict[str, Any]]
    """A line for each method and combination of settings."""
    versions: list[dict[str, Any]]
    """What its runs were made with."""


def choose(study: Study, jobs: Sequence[Job], tasks: Mapping[str, Task]) -> Choice:
    """For each method the settings of the highest mean area under the curve, and all that was seen.

    Only settings whose runs are all finished are compared; if a method has a run that is neither
    finished nor failed, or that was made with other settings, nothing is chosen for it yet.
    """
    tried = candidates(study)
    areas: dict[tuple[str, int], list[float]] = {}
    open_methods, failed = set[str](), set[tuple[str, int]]()
    seen = {(job.method, job.candidate or 0): 0.0 for job in jobs}
    versions = []
    for job in jobs:
        key, task = (job.method, job.candidate or 0), tasks[job.name]
        if task.finished and not changed_settings(job, task):
            row = read_run(job, task, study.world(job.world).threshold)
            areas.setdefault(key, []).append(row["area"])
            versions.append(row["versions"])
            seen[key] += row["cpu_seconds"]
        elif task.failure is not None:
            failed.add(key)
        else:
            open_methods.add(job.method)
    table = [
        {
            "method": method,
            "settings": tried[number],
            "area": float(np.mean(areas[method, number])) if (method, number) in areas else None,
            "runs": len(areas.get((method, number), ())),
            "failed": (method, number) in failed,
            "cpu_seconds": seconds,
        }
        for (method, number), seconds in seen.items()
    ]
    chosen: dict[str, Settings] = {}
    for method in study.methods:
        whole = [
            line
            for line in table
            if line["method"] == method and line["area"] is not None and not line["failed"]
        ]
        if whole and method not in open_methods:
            chosen[method] = max(whole, key=lambda line: line["area"])["settings"]
    return Choice(chosen, table, versions)


# The numbers.


def tally(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that is said about several runs together."""
    by = {
        (world, method): sorted(
            (r for r in rows if (r["world"], r["method"]) == (world, method)),
            key=lambda r: r["seed"],
        )
        for world in study.worlds
        for method in study.methods
    }
    groups = [(world, [world]) for world in study.worlds]
    groups += [(ALL, list(study.worlds))] if len(study.worlds) > 1 else []
    summaries = []
    for name, worlds in groups:
        for method in study.methods:
            cells = _common([by[world, method] for world in worlds])
            if all(cells):
                summaries.append({"world": name, "method": method, **_summary(cells)})
    pairs = [
        {"world": name, "method": a, "other": b, **compared}
        for a, b in study.pairs
        for name, worlds in groups
        if (compared := _pair([(by[w, a], by[w, b]) for w in worlds])) is not None
    ]
    curves = [
        {"world": world, "method": method, "points": _band(cell)}
        for (world, method), cell in by.items()
        if cell
    ]
    return {
        "summaries": summaries,
        "pairs": pairs,
        "unseen": _unseen(study, rows),
        "curves": curves,
        "profiles": _profiles(by),
    }


def _common(cells: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Of several worlds' rows those whose seed every world has, so that each weighs the same."""
    shared = set.intersection(*({row["seed"] for row in cell} for cell in cells))
    return [[row for row in cell if row["seed"] in shared] for cell in cells]


def _unseen(study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Success in worlds that nobody was trained in, by method and mode, with the differences asked.

    Stratified, as all else, by the world that was trained in. Under the name of `all` worlds a run
    counts as one number, its mean over them: the same agent was examined in each, so they are no
    independent observations.
    """
    scores: dict[tuple[str, str], dict[str, dict[str, dict[int, float]]]] = {}
    for row in rows:
        for line in row.get("unseen", ()):
            of = scores.setdefault((row["method"], line["mode"]), {}).setdefault(line["world"], {})
            of.setdefault(row["world"], {})[row["seed"]] = line["success_rate"]
    for seen in scores.values():
        if len(seen) > 1:
            seen[ALL] = {
                home: {
                    seed: float(np.mean([of[home][seed] for of in seen.values()]))
                    for seed in by_seed
                }
                for home, by_seed in next(iter(seen.values())).items()
            }
    found = []
    for (method, mode), seen in scores.items():
        others = [b for a, b in study.pairs if a == method and (b, mode) in scores]
        for name, of in seen.items():
            shared = set.intersection(*map(set, of.values()))
            strata = [[by_seed[seed] for seed in sorted(shared)] for by_seed in of.values()]
            if not shared:
                continue
            low, high = bootstrap_interval(strata, interquartile_mean)
            pooled = np.concatenate(strata)
            told = {"world": name, "method": method, "mode": mode, "runs": len(pooled)}
            told["success"] = [float(interquartile_mean(pooled)), float(low), float(high)]
            told["mean"] = float(np.mean(pooled))
            told["against"] = [
                {"other": other, **_against(of, scores[other, mode].get(name, {}))}
                for other in others
            ]
            found.append(told)
    return found


def _against(
    mine: Mapping[str, Mapping[int, float]], others: Mapping[str, Mapping[int, float]]
) -> dict[str, Any]:
    """One method's success in an unseen world less another's, on the seeds both have."""
    shared = {home: sorted(set(of) & set(others.get(home, ()))) for home, of in mine.items()}
    if not all(shared.values()):
        return {"runs": 0}
    first, second = (
        [[side[home][seed] for seed in seeds] for home, seeds in shared.items()]
        for side in (mine, others)
    )
    *difference, p = paired_difference(first, second)
    improvement = list(probability_of_improvement(first, second))
    runs = sum(map(len, shared.values()))
    return {"runs": runs, "difference": difference, "p": p, "improvement": improvement}


def _summary(cells: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """One method in one world, or in several: interquartile means and how soon it got there."""
    found: dict[str, Any] = {"seeds": min(map(len, cells))}
    for score in SCORES:
        strata = [[row[score] for row in cell] for cell in cells]
        low, high = bootstrap_interval(strata, interquartile_mean)
        pooled = [value for stratum in strata for value in stratum]
        found[score] = [float(interquartile_mean(pooled)), float(low), float(high)]
    rows = [row for cell in cells for row in cell]
    found["greedy"] = float(np.mean([row["greedy"] for row in rows]))
    found["never"] = float(np.mean([math.isinf(row["steps_to"]) for row in rows]))
    if len(cells) == 1:
        for name in ("steps_to", "cpu_seconds_to"):
            found[name] = float(np.median([row[name] for row in rows]))
        found["cpu_seconds"] = float(np.median([row["cpu_seconds"] for row in rows]))
    return found


def _pair(cells: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> dict[str, Any] | None:
    """One method against another on the seeds that both have, in all of these worlds."""
    found: dict[str, Any] = {}
    both = _common([rows for cell in cells for rows in cell])
    if not all(both):
        return None
    found["seeds"] = len(both[0])
    for score in SCORES:
        first, second = (
            [[row[score] for row in rows] for rows in both[side::2]] for side in (0, 1)
        )
        *difference, p = paired_difference(first, second)
        found[score] = {
            "difference": difference,
            "p": p,
            "improvement": list(probability_of_improvement(first, second)),
        }
    return found


def _band(cell: Sequence[Row]) -> list[list[float]]:
    """Steps, interquartile mean over seeds, lowest and highest, at the points all seeds share."""
    curves = [{point[0]: point[2] for point in row["curve"]} for row in cell]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    scores = np.array([[curve[step] for step in steps] for curve in curves])
    if not steps:
        return []
    middle = interquartile_mean(scores, axis=0)
    bounds = [bootstrap_interval([column], interquartile_mean) for column in scores.T]
    return [
        [step, float(m), float(low), float(high)]
        for step, m, (low, high) in zip(steps, middle, bounds, strict=True)
    ]


def _profiles(by: Mapping[tuple[str, str], Sequence[Row]]) -> list[dict[str, Any]]:
    """For each method the share of runs whose success at the end exceeds a rate, all worlds."""
    worlds, methods = (list(dict.fromkeys(key[i] for key in by)) for i in (0, 1))
    profiles = []
    for method in methods:
        cells = _common([by[world, method] for world in worlds])
        strata = [[row["success"] for row in cell] for cell in cells]
        if not all(strata):
            continue
        pooled = [value for stratum in strata for value in stratum]
        low, high = bootstrap_interval(strata, lambda drawn: performance_profile(drawn, PROFILE))
        shares = performance_profile(pooled, PROFILE)
        points = np.stack([PROFILE, shares, low, high], axis=1).round(6)
        profiles.append({"method": method, "points": points.tolist()})
    return profiles
