"""From finished runs to the numbers of a study, and whether two studies' numbers can be compared.

Scores are what the fixed panel of episodes says: the success rate of sampled episodes at the end,
and the area under the curve of those along the way.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from poad.agent import resolve
from poad.config import Config, ConfigError, dump, load, to_dict
from poad.envs import make
from poad.models import ModelError
from poad.run import UNTRAINED, Run
from poad.stats import (
    area_under_curve,
    bootstrap_interval,
    first_reach,
    interquartile_mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from poad.study import ALL, Job, Settings, Study, candidates, config_fingerprint, fingerprint
from poad.versions import PACKAGES
from poad.workers import Task

FORMAT = 2
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


def made_with(run: Run) -> dict[str, Any]:
    """The versions that decide a run's numbers: of Python, of packages and of poad's own source."""
    versions = run.versions()
    each = [versions, *versions.get("later", ())]
    names = ("python", *PACKAGES, "source" if versions.get("source") else "git")
    found = {name: list(dict.fromkeys(line.get(name) for line in each)) for name in names}
    return {
        name: values[0] if len(values) == 1 else ", then ".join(map(str, values))
        for name, values in found.items()
    }


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


# What the numbers were made with.


def identity(
    study: Study, jobs: Sequence[Job], versions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What decides whether two tables can be compared; its hash stands first.

    Args:
        study: for panel and worlds.
        jobs: the reported runs, with what the search chose for them.
        versions: what each run, of the search too, was made with.
    """
    made = {fingerprint(each): each for each in versions}
    worlds, methods = {}, {}
    for job in jobs:
        if job.world not in worlds:
            worlds[job.world] = {
                "env": job.config.env,
                "env_args": job.config.env_args,
                "steps": job.config.steps,
                "threshold": study.world(job.world).threshold,
                "source": world_source(job.config.env, job.config.env_args),
            }
        methods[f"{job.world}.{job.method}"] = config_fingerprint(_resolved(job.config))
    told = {
        "format": FORMAT,
        "panel": {
            "seed": study.panel.seed,
            "episodes": study.panel.episodes,
            "points": study.panel.points,
        },
        "unseen": {
            "episodes": study.unseen.episodes if study.unseen.worlds else None,
            "worlds": {world: world_source(world, {}) for world in study.unseen.worlds},
        },
        "versions": [made[key] for key in sorted(made)],
        "worlds": worlds,
        "configs": methods,
    }
    return {"hash": fingerprint(told), **told}


def _resolved(config: Config) -> Config:
    """With what its defaults mean, so that another meaning is another configuration."""
    try:
        return resolve(config)
    except (ConfigError, ModelError):
        return config  # it cannot be run either


def world_source(env: str, env_args: Mapping[str, Any]) -> str:
    """A hash of the source that a world is made of: its own module, and those beside it."""
    opened = make(env, **env_args)
    kind = type(opened.unwrapped)
    opened.close()
    file = Path(inspect.getfile(kind))
    ours = kind.__module__.startswith("poad.envs.")
    files = [file, *sorted(file.parent.glob("*.py"))] if ours else [file]
    files += [file.parent.parent / "text_world.py"] if ours else []
    digest = hashlib.sha256()
    for each in files:
        if each.is_file():
            digest.update(each.read_bytes())
    return digest.hexdigest()[:16]


def read_results(place: Path) -> dict[str, Any]:
    """The results of a study, from its directory or from results.json itself.

    Raises:
        ConfigError: there are none.
    """
    file = place / "results.json" if place.is_dir() else place
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place} holds no results of a study: {error}") from error
    needed = {"identity", "runs", "summaries", "study"}
    if not isinstance(results, dict) or not needed <= results.keys():
        raise ConfigError(f"{file} holds no results of a study; `poad study` writes them.")
    return results


def incomparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Why the numbers of two studies must not be put side by side; empty if they may.

    What only one of them has (a world, a method) is no reason: the rest may still be compared.
    """
    a, b = first["identity"], second["identity"]
    reasons = [
        f"{name}: {a[name]} and {b[name]}" for name in ("format", "panel") if a[name] != b[name]
    ]
    unseen, other = (each.get("unseen") or {"worlds": {}} for each in (a, b))
    if unseen["worlds"] and other["worlds"] and unseen["episodes"] != other["episodes"]:
        reasons.append(f"unseen worlds: episodes {unseen['episodes']} and {other['episodes']}")
    reasons += [
        f"unseen world {name}: source {source} and {other['worlds'][name]}"
        for name, source in unseen["worlds"].items()
        if other["worlds"].get(name, source) != source
    ]
    for group, what in (("worlds", "world"), ("configs", "configuration")):
        for name in a[group]:
            if name in b[group] and a[group][name] != b[group][name]:
                reasons.append(f"{what} {name}: {_apart(a[group][name], b[group][name])}")
    if not set(a["worlds"]) & set(b["worlds"]):
        reasons.append("no world in common")
    if a["versions"] != b["versions"]:
        reasons += _version_reasons(a["versions"], b["versions"])
    for results in (first, second):
        if len(results["identity"]["versions"]) > 1:
            reasons.append(f"the runs of {results['study']} were made with different versions")
    return reasons


def _version_reasons(a: Sequence[Settings], b: Sequence[Settings]) -> list[str]:
    """Versions that only one of the two studies has."""
    reasons = []
    for name in ("python", *PACKAGES, "source", "git"):
        here, there = ({str(made.get(name)) for made in side} for side in (a, b))
        if here != there:
            told = (", ".join(sorted(side)) or "no run" for side in (here, there))
            reasons.append(f"version of {name}: {' and '.join(told)}")
    return reasons


def _apart(a: Any, b: Any) -> str:
    if not isinstance(a, Mapping):
        return f"{a} and {b}"
    return "; ".join(f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b.get(key))


def changed_settings(job: Job, task: Task) -> list[str]:
    """Settings in which a run that exists differs from what the study now asks for."""
    asked = task.beside(".yaml")
    if not asked.is_file() or not (task.path / "config.yaml").is_file():
        return []
    if asked.read_text(encoding="utf-8") == dump(job.config):
        return []
    before = load(asked)  # a setting that poad has learned since has its default
    old, new = _flat(before), _flat(job.config)
    return [f"{name} {old.get(name)!r} → {new[name]!r}" for name in new if new[name] != old[name]]


def _flat(config: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        inner = value if isinstance(value, dict) and name != "env_args" else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): item for key, item in inner.items()}
    return flat
