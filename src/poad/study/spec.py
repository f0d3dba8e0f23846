"""Study files: worlds, methods, seeds and a budget, and the runs that follow from them.

Nothing is run here. :func:`read_study` reads a file strictly; :func:`search_jobs` and
:func:`reported_jobs` list the runs. All worlds and methods of one seed come before the next seed,
so that the finished runs stay balanced however early a study ends.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from poad.config import (
    SEEDS_PER_RUN,
    Above,
    AtLeast,
    Config,
    from_dict,
    load,
    merge,
    nested,
    out_of_range,
    read_yaml,
    to_dict,
)
from poad.envs import known_worlds
from poad.errors import ConfigError, did_you_mean
from poad.study.records import SUCCESS, Panel, Settings
from poad.workflows import TinyModel

TOY_SETTINGS = {"streams": 4, "horizon": 16, "steps": 128, "ppo": {"epochs": 1}}
ALL = "all"
"""Stands for all methods in `compare`, and for all worlds together in tables."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass(frozen=True)
class StudyWorld:
    """A world to train in, for how long, and when it counts as learned."""

    config: str | None = None
    """A configuration to start from; its path is relative to the study file."""
    env: str | None = None
    """A world to train in with poad's defaults, instead of a configuration."""
    steps: int | None = None
    """Turns to train for; default: those of the configuration."""
    threshold: float = 0.9
    """Height of the learning curve at which the world counts as learned."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More settings for this world, as in a configuration."""
    at: float | None = None
    """Its place on the study's scale."""


@dataclass(frozen=True)
class Search:
    """A search for settings, the same for every method, on seeds that are not reported."""

    grid: dict[str, Any] = field(default_factory=dict)
    """Values to try by setting (`ppo.lr: [1e-4, 5e-4]`), in all combinations. Settings that vary
    together share an entry: `ppo.entropy, ppo.entropy_free: [[0.02, 0], [0.05, 0.01]]`."""
    seeds: tuple[Annotated[int, AtLeast(0)], ...] = ()
    """Seeds of the search."""
    worlds: tuple[str, ...] = ()
    """Worlds to search in; default: all of them."""


@dataclass(frozen=True)
class Unseen:
    """Worlds in which trained agents are evaluated, and no agent is trained."""

    worlds: tuple[str, ...] = ()
    """Their names."""
    episodes: Annotated[int, Above(0)] = 100
    """Episodes in each world and mode (sampled and greedy)."""


@dataclass(frozen=True)
class Study:
    """The content of a study file."""

    name: str = ""
    """Name of the study, in small letters, digits and underscores."""
    question: str = ""
    """The question it answers, in a sentence or two."""
    worlds: dict[str, StudyWorld] = field(default_factory=dict)
    """Worlds by name; a file gives the fields of each."""
    models: dict[str, Any] = field(default_factory=dict)
    """Tiny models to make before the runs, unless they are there: the options of `poad pretrain`
    (env, and any others), by the directory of each."""
    methods: dict[str, Any] = field(default_factory=dict)
    """Settings by the method's name, as in a configuration."""
    seeds: tuple[Annotated[int, AtLeast(0)], ...] = ()
    """Seeds of the reported runs."""
    panel: Panel = field(default_factory=lambda: Panel(seed=1_000_000, episodes=64, points=12))
    search: Search = field(default_factory=Search)
    unseen: Unseen = field(default_factory=Unseen)
    scale: str = ""
    """A number in which the worlds differ (tokens per action); each world gives its own `at`."""
    curve: str = SUCCESS
    """What learning curves show, and what areas, thresholds and the search go by: `success` or
    `return` of the panel's sampled episodes, or a metric of every iteration (`world/right`)."""
    compare: dict[str, Any] = field(default_factory=dict)
    """Comparisons: a method, and a list of others or `all`; default: the first method with all
    others."""
    budget_minutes: Annotated[float, Above(0)] | None = None
    """CPU minutes for all runs together; runs that do not fit are listed as not run."""
    toy: bool = False
    """Few steps, seeds and episodes, to test that everything works."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The comparisons, as (method, other method)."""
        return tuple(
            (method, other)
            for method, others in (self.compare or {next(iter(self.methods)): ALL}).items()
            for other in (self.methods if others == ALL else others)
            if other != method
        )


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    world: str
    method: str
    seed: int
    config: Config
    threshold: float
    """Height of the learning curve at which the world counts as learned."""
    candidate: int | None = None
    """Index of the settings that the search tries; None for a reported run."""
    curve: str = SUCCESS
    """What the learning curve shows."""

    @property
    def name(self) -> str:
        """The name of its directory."""
        search = "" if self.candidate is None else f"search-{self.candidate}."
        return f"{search}{self.world}.{self.method}.{self.seed}"


# Reading.


def read_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it cannot be read or run; the message says where and what to change.
    """
    path = Path(path)
    where = str(path)
    content = merge(Study(), read_yaml(path), where)
    for name in (content.name, *content.worlds, *content.methods):
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == ALL:
            raise ConfigError(
                f"{where}: {name!r} cannot name a study, world or method. Use small letters, "
                "digits and underscores, and put quotes around names that YAML reads as something "
                f"else (2, on, yes). {ALL!r} means all of them."
            )
    for group in ("worlds", "methods", "seeds"):
        if not getattr(content, group):
            raise ConfigError(f"{where}: no {group}; give at least one.")
    worlds = {name: _read_world(path, name, value) for name, value in content.worlds.items()}
    methods = {
        name: _settings({} if value is None else value, f"methods.{name}", where)
        for name, value in content.methods.items()
    }
    models = {str(name): _read_model(path, name, each) for name, each in content.models.items()}
    study = replace(content, worlds=worlds, methods=methods, models=models)
    if problem := next(_problems(study), None):
        raise ConfigError(f"{where}: {problem}")
    # Expanding every job reports a wrong configuration now instead of in the middle of the study.
    for job in (*search_jobs(study), *reported_jobs(study, {})):
        if job.config.env in study.unseen.worlds:
            raise ConfigError(
                f"{where}: unseen.worlds: agents are trained in {job.config.env}; leave it out."
            )
    return study


def _read_world(path: Path, name: str, value: Any) -> StudyWorld:
    value = {"env": value} if isinstance(value, str) else value
    settings = _settings(value, f"worlds.{name}", str(path))
    world = merge(StudyWorld(), settings, str(path), f"{name}.")
    if (world.config is None) == (world.env is None):
        raise ConfigError(f"{path}: worlds.{name} needs either config or env.")
    if world.config is not None:
        world = replace(world, config=str(path.parent / world.config))
    return world


def _read_model(path: Path, name: Any, value: Any) -> TinyModel:
    settings = _settings(value, f"models.{name}", str(path))
    if "env" not in settings or settings.get("minutes") is not None:
        raise ConfigError(
            f"{path}: models.{name} needs env, and steps instead of minutes, so that the model is "
            "the same each time."
        )
    try:
        return merge(TinyModel(""), settings, str(path), f"models.{name}.")
    except ConfigError as error:
        place = "" if str(error).startswith(f"{path}: ") else f"{path}: models.{name}: "
        raise ConfigError(f"{place}{error}") from error


def _settings(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {name} is a group of settings, not {value!r}.")
    return dict(value)


def _unknown_names(study: Study) -> Iterator[str]:
    """Find references to methods and worlds that do not exist."""
    references: list[tuple[str, Sequence[str], Mapping[str, Any]]] = [
        ("search.worlds", study.search.worlds, study.worlds),
        ("compare", tuple(study.compare), study.methods),
        # A user's own world is named module:name and is opened before the study runs.
        ("unseen.worlds", [w for w in study.unseen.worlds if ":" not in w], dict(known_worlds())),
    ]
    for method, others in study.compare.items():
        if others != ALL and not isinstance(others, list | tuple):
            yield f"compare.{method} must be a list of methods, or `all`."
        elif others != ALL:
            references.append((f"compare.{method}", others, study.methods))
    for place, names, known in references:
        yield from (f"{place}: {unknown(name, known)}" for name in names if name not in known)


def _problems(study: Study) -> Iterator[str]:
    """Find unknown names, numbers out of range, repetitions and contradictions."""
    panel, search = study.panel, study.search
    yield from _unknown_names(study)
    yield from out_of_range(study)
    for name, world in study.worlds.items():
        if study.curve == SUCCESS and not 0 < world.threshold <= 1:
            yield f"worlds.{name}.threshold must be above 0 and at most 1, not {world.threshold}."
    if set(study.seeds) & set(search.seeds):
        yield "seeds of the search must not be reported."
    if bool(search.grid) != bool(search.seeds):
        yield "a search needs both a grid and seeds."
    for name, entries in (
        ("seeds", study.seeds),
        ("search.seeds", search.seeds),
        ("search.worlds", search.worlds),
        ("unseen.worlds", study.unseen.worlds),
    ):
        if _repeats(entries):
            yield f"{name}: an entry is listed twice."
    for seed in (*study.seeds, *search.seeds):
        first = (2 + seed) * SEEDS_PER_RUN
        if panel.seed < first + SEEDS_PER_RUN and first < panel.seed + 2 * panel.episodes:
            yield (
                f"panel.seed {panel.seed}: runs of seed {seed} train on episodes from {first} on. "
                "Use 1000000, which is free in every study."
            )
    if study.scale and not all(world.at for world in study.worlds.values()):
        yield "with a scale, every world needs its place on it: `at`."
    yield from _grid_problems(search)
    places = [f"methods.{name}" for name, settings in study.methods.items() if "steps" in settings]
    places += ["search.grid" for names in search.grid if "steps" in _each(names)]
    for place in places:
        yield (
            f"{place}: every method trains for the same number of steps; give `steps` to the world."
        )


def _grid_problems(search: Search) -> Iterator[str]:
    if _repeats([name for names in search.grid for name in _each(str(names))]):
        yield "search.grid: a setting is in two entries."
    for setting, values in search.grid.items():
        if not isinstance(setting, str):
            yield f"search.grid: {setting!r} is not a setting; an example is `ppo.lr`."
        elif not isinstance(values, list) or not values:
            yield f"search.grid.{setting} must be a list of values to try."
        elif (many := setting.count(",") + 1) > 1 and not all(
            isinstance(each, list) and len(each) == many for each in values
        ):
            yield f"search.grid.{setting} needs lists of {many} values each."


def _repeats(names: Sequence[Any]) -> bool:
    return len(set(names)) < len(names)


def unknown(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Describe an unknown name, with suggestions and the known names."""
    return f"there is no {name!r}. {did_you_mean(name, known)}Known: {', '.join(known)}."


def named_settings(file: Path) -> list[Config]:
    """List one configuration for every module that a study file names."""
    study = read_study(file)
    jobs = (*search_jobs(study), *reported_jobs(study, {}))
    found = {(job.config.env, job.config.credit.method): job.config for job in jobs}
    unseen = (Config(env=world) for world in study.unseen.worlds)
    played = (Config(env=each.env, env_args=dict(each.env_args)) for each in study.models.values())
    return [*found.values(), *unseen, *played]


def toy_study(study: Study) -> Study:
    """Shrink a study to two worlds and seeds, two iterations and four episodes."""
    search, names = study.search, list(study.worlds)[:2]
    return replace(
        study,
        toy=True,
        worlds={name: study.worlds[name] for name in names},
        seeds=study.seeds[:2],
        panel=replace(study.panel, episodes=4, points=2),
        search=replace(
            search,
            grid={key: values[:2] for key, values in list(search.grid.items())[:1]},
            seeds=search.seeds[:1],
            worlds=tuple(names[:1]),
        ),
        unseen=replace(study.unseen, worlds=study.unseen.worlds[:1], episodes=4),
        budget_minutes=None,
    )


# Expanding.


def candidates(study: Study) -> list[dict[str, Any]]:
    """List the settings that the search tries: all combinations of the grid, by dotted name."""
    grid = study.search.grid
    found = []
    for taken in itertools.product(*grid.values()):
        settings: dict[str, Any] = {}
        for entry, values in zip(grid, taken, strict=True):
            names = _each(entry)
            settings |= zip(names, values if len(names) > 1 else [values], strict=True)
        found.append(settings)
    return found


def _each(names: str) -> list[str]:
    """The settings of one entry of a grid."""
    return [name.strip() for name in names.split(",")]


def search_jobs(study: Study) -> list[Job]:
    """List the runs of the search; empty without one."""
    settings_tried = candidates(study) if study.search.seeds else []
    panel = replace(study.panel, seed=study.panel.seed + study.panel.episodes)
    return [
        _job(study, world, method, seed, settings, panel, number)
        for seed in study.search.seeds
        for number, settings in enumerate(settings_tried)
        for world in study.search.worlds or study.worlds
        for method in study.methods
    ]


def reported_jobs(study: Study, chosen: Mapping[str, Settings]) -> list[Job]:
    """List the reported runs, with the settings that the search has chosen by method, if it did."""
    return [
        _job(study, world, method, seed, chosen.get(method, {}), study.panel)
        for seed in study.seeds
        for world in study.worlds
        for method in study.methods
    ]


def _job(
    study: Study,
    world: str,
    method: str,
    seed: int,
    found: Settings,
    panel: Panel,
    candidate: int | None = None,
) -> Job:
    """Configure one run by the world's settings, then the method's, then those of the search."""
    place = study.worlds[world]
    where = f"study {study.name}, {world}, {method}"
    config = _base(place.config) if place.config is not None else Config(env=place.env or "")
    for settings in (place.settings, study.methods[method], nested(found)):
        config = from_dict(settings, config, where)
    if place.steps is not None:
        config = replace(config, steps=place.steps)
    if study.toy:
        config = from_dict(TOY_SETTINGS, config)
    iterations = -(-config.steps // (config.streams * config.horizon))
    evaluation = {
        "episodes": panel.episodes,
        "seed": panel.seed,
        "every": max(1, iterations // panel.points),
        "turns": False,
    }
    housekeeping = {"keep_checkpoints": 1, "threads": 1, "trackers": []}
    config = from_dict({"seed": seed, "eval": evaluation, **housekeeping}, config, where)
    return Job(world, method, seed, config, place.threshold, candidate, study.curve)


@cache
def _base(path: str) -> Config:
    """Read a configuration file once: parsing YAML takes longer than everything else here."""
    return load(path)


def fingerprint(value: Any) -> str:
    """Hash a JSON value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_fingerprint(config: Config) -> str:
    """Hash the settings that decide a run's numbers, except its seed."""
    return fingerprint(deciding_settings(config))


def deciding_settings(config: Config) -> Settings:
    """List the settings that decide a run's numbers, except its seed."""
    settings = to_dict(config)
    for name in (
        *("seed", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"),
        *("trackers", "tracking"),
    ):
        del settings[name]
    return settings
