"""The conditions that a study's numbers depend on, and whether two studies can be compared."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from poad.agent import resolve
from poad.config import Config, dump, load, to_dict
from poad.envs import inner_of, make
from poad.errors import ConfigError, ModelError
from poad.runs import PACKAGES, Run, Versions, encode
from poad.study.records import Identity, Results, Settings, UnseenIdentity, WorldIdentity
from poad.study.spec import ALL, Job, Study, config_fingerprint, deciding_settings, fingerprint
from poad.study.workers import Task

FORMAT = 2


def versions_of(run: Run) -> Versions:
    """Return the versions that decide a run's numbers: Python, packages and poad's source.

    A run that went on with other versions has them joined: ``0.1, then 0.2``.
    """
    versions = run.versions()
    sessions = [versions, *versions.get("later", ())]
    names = ("python", *PACKAGES, "source" if versions.get("source") else "git")
    found = {name: list(dict.fromkeys(each.get(name) for each in sessions)) for name in names}
    return {
        name: values[0] if len(values) == 1 else ", then ".join(map(str, values))
        for name, values in found.items()
    }


def identify(study: Study, jobs: Sequence[Job], versions: Sequence[Versions]) -> Identity:
    """Collect everything that decides whether two tables can be compared."""
    different = {fingerprint(each): each for each in versions}
    worlds: dict[str, WorldIdentity] = {}
    configs: dict[str, Config] = {}
    for job in jobs:
        config = job.config
        if job.world not in worlds:
            worlds[job.world] = WorldIdentity(
                env=config.env,
                env_args=config.env_args,
                steps=config.steps,
                threshold=job.threshold,
                source=world_source(config.env, config.env_args),
            )
        configs[f"{job.world}.{job.method}"] = _resolved(config)
    unseen = study.unseen
    identity = Identity(
        hash="",
        format=FORMAT,
        panel=study.panel,
        unseen=UnseenIdentity(
            unseen.episodes if unseen.worlds else None,
            {world: world_source(world, {}) for world in unseen.worlds},
        ),
        versions=tuple(different[key] for key in sorted(different)),
        worlds=worlds,
        curve=study.curve,
        configs={name: config_fingerprint(config) for name, config in configs.items()},
        settings=_shared(configs),
    )
    content = encode(identity)
    del content["hash"], content["settings"]  # their hashes are in it
    return replace(identity, hash=fingerprint(content))


def _resolved(config: Config) -> Config:
    """Replace defaults by what they currently mean, so that a new meaning counts as a change.

    The precision of products stays ``auto``: which is faster depends on the processor, like the
    device, and the log-probabilities are the same up to rounding.
    """
    try:
        found = resolve(config).config
    except (ConfigError, ModelError):
        return config  # it cannot run either
    return replace(found, model=replace(found.model, precision=config.model.precision))


def _shared(configs: Mapping[str, Config]) -> dict[str, Settings]:
    """Return the settings that all configurations share, by ``all``, and what each has besides."""
    flat = {name: _flat(deciding_settings(config)) for name, config in configs.items()}
    first = next(iter(flat.values()), {})
    same = {k: v for k, v in first.items() if all(each[k] == v for each in flat.values())}
    own = {name: {k: v for k, v in each.items() if k not in same} for name, each in flat.items()}
    return {ALL: same, **own}


def world_source(env: str, env_args: Mapping[str, Any]) -> str:
    """Hash the source of a world: its own module, and for poad's worlds those it shares.

    The source of an adapter is also what it adapts, with the version of that package, and the files
    that it names.
    """
    opened = make(env, **env_args)
    kind, inner = type(opened.unwrapped), type(inner_of(opened))
    further = getattr(opened.unwrapped, "files", ())
    opened.close()
    file = Path(inspect.getfile(kind))
    ours = kind.__module__.startswith("poad.envs.")
    files = [file, *sorted(file.parent.glob("*.py"))] if ours else [file]
    files += [file.parent.parent / "text_world.py"] if ours else []
    digest = hashlib.sha256()
    if inner is not kind:
        files.append(Path(inspect.getfile(inner)))
        with suppress(PackageNotFoundError):  # the user's own module has no version
            digest.update(version(inner.__module__.partition(".")[0]).encode())
    for each in (*files, *further):
        if each.is_file():
            digest.update(each.read_bytes())
    return digest.hexdigest()[:16]


def incomparable(first: Results, second: Results) -> list[str]:
    """List the reasons why the numbers of two studies cannot be compared; empty if they can.

    A world or method that only one of them has is no reason: the rest can still be compared.
    """
    a, b = first.identity, second.identity
    reasons = conditions(a, b)
    if a.versions != b.versions:
        reasons += _version_reasons(a.versions, b.versions)
    for results in (first, second):
        if len(results.identity.versions) > 1:
            reasons.append(f"the runs of {results.study} were made with different versions")
    return reasons


def conditions(a: Identity, b: Identity) -> list[str]:
    """List the differences in all that two studies share, except versions."""
    reasons = []
    if a.format != b.format:
        reasons.append(f"format: {a.format} and {b.format}")
    if a.curve != b.curve:
        reasons.append(f"learning curves: {a.curve} and {b.curve}")
    if a.panel != b.panel:
        reasons.append(f"panel: {_differences(a.panel, b.panel)}")
    unseen, other = (each.unseen or UnseenIdentity(None, {}) for each in (a, b))
    if unseen.worlds and other.worlds and unseen.episodes != other.episodes:
        reasons.append(f"unseen worlds: episodes {unseen.episodes} and {other.episodes}")
    for label, ours, theirs in (
        ("unseen world", unseen.worlds, other.worlds),
        ("world", a.worlds, b.worlds),
    ):
        for name, value in ours.items():
            if theirs.get(name, value) != value:
                reasons.append(f"{label} {name}: {_differences(value, theirs[name])}")
    for name, value in a.configs.items():
        if b.configs.get(name, value) != value and (found := _different_settings(a, b, name)):
            reasons.append(f"configuration {name}: {found}")
    if not set(a.worlds) & set(b.worlds):
        reasons.append("no world in common")
    return reasons


def _different_settings(a: Identity, b: Identity, name: str) -> str:
    """Say how two configurations of a world and method differ; empty if only their hashes do.

    A setting that one of the two versions of poad did not have counts as the default that it has
    got since.
    """
    if a.settings is None or b.settings is None:
        return f"{a.configs[name]} and {b.configs[name]} (older results keep only these hashes)"
    default = _flat(deciding_settings(Config()))
    one, two = ({**default, **each[ALL], **each[name]} for each in (a.settings, b.settings))
    keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
    return "; ".join(f"{key} {one.get(key)!r} and {two.get(key)!r}" for key in keys)


def _version_reasons(a: Sequence[Versions], b: Sequence[Versions]) -> list[str]:
    """Versions that only one of the two studies has."""
    reasons = []
    for name in ("python", *PACKAGES, "source", "git"):
        here, there = ({str(versions.get(name)) for versions in side} for side in (a, b))
        if here != there:
            listed = (", ".join(sorted(side)) or "no run" for side in (here, there))
            reasons.append(f"version of {name}: {' and '.join(listed)}")
    return reasons


def _differences(a: Any, b: Any) -> str:
    if isinstance(a, str):
        return f"{a} and {b}"
    first, second = encode(a), encode(b)
    return "; ".join(
        f"{key} {value} and {second[key]}" for key, value in first.items() if value != second[key]
    )


def changed_settings(job: Job, task: Task) -> list[str]:
    """List the settings in which an existing run differs from what the study now asks for."""
    requested = task.sibling(".yaml")
    if not requested.is_file() or not (task.path / "config.yaml").is_file():
        return []
    if requested.read_text(encoding="utf-8") == dump(job.config):
        return []
    before = load(requested)  # a setting that poad has gained since has its default here
    old, new = _flat(to_dict(before)), _flat(to_dict(job.config))
    return [f"{name} {old.get(name)!r} → {new[name]!r}" for name in new if new[name] != old[name]]


def _flat(settings: Settings) -> Settings:
    flat: Settings = {}
    for name, value in settings.items():
        inner = value if isinstance(value, dict) and name != "env_args" else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): item for key, item in inner.items()}
    return flat
