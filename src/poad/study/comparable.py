"""What a study's numbers were made with, and whether those of two studies can be compared."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poad.agent import resolve
from poad.config import Config, dump, load, to_dict
from poad.envs import make
from poad.errors import ConfigError, ModelError
from poad.runs import PACKAGES, Run
from poad.study.spec import Job, Settings, Study, config_fingerprint, fingerprint
from poad.study.workers import Task

FORMAT = 2


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
        return resolve(config).config
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
