"""A study on paper: a file that names worlds, methods, seeds and a budget, and the runs it means.

Nothing is run here. :func:`read_study` reads the file strictly; :func:`search_jobs` and
:func:`main_jobs` list the runs, in an order that keeps whatever is finished balanced: all worlds
and methods of one seed before the next seed.
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
from typing import Any

from poad.config import SEEDS_PER_RUN, Config, from_dict, load, merge, read_yaml, to_dict
from poad.envs import known_worlds
from poad.errors import ConfigError, did_you_mean

Settings = Mapping[str, Any]
"""Settings of a configuration by group and name, as YAML gives them."""
TOY: Settings = {"streams": 4, "horizon": 16, "steps": 128, "ppo": {"epochs": 1}}
ALL = "all"
"""What stands for all methods in `compare`, and for all worlds in tables."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass(frozen=True)
class World:
    """Where to train, for how long, and what counts as having learned it."""

    config: str | None = None
    """A configuration to start from; its path is taken from the study file's directory."""
    env: str | None = None
    """A world to start from instead, with poad's defaults."""
    steps: int | None = None
    """Turns to train for; none: what the configuration says."""
    threshold: float = 0.9
    """Success rate that counts as having learned the world."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of the world, as in a configuration."""
    at: float | None = None
    """Where it stands on the study's scale."""


@dataclass(frozen=True)
class Panel:
    """The episodes on which every agent is examined: the same seeds for all."""

    seed: int = 1_000_000
    """Seed of the first episode; a search is examined on the episodes behind the panel."""
    episodes: int = 64
    """Episodes of each evaluation, along the way (sampled) and at the end (sampled and greedy)."""
    points: int = 12
    """Evaluations along the way."""


@dataclass(frozen=True)
class Search:
    """A small search for settings, the same for every method, on seeds that are not reported."""

    grid: dict[str, Any] = field(default_factory=dict)
    """Values to try by setting (`ppo.lr: [1e-4, 5e-4]`); all combinations are tried. Settings that
    go together share an entry: `ppo.entropy, ppo.entropy_free: [[0.02, 0], [0.05, 0.01]]`."""
    seeds: tuple[int, ...] = ()
    """Seeds of the search."""
    worlds: tuple[str, ...] = ()
    """Worlds to search in; none: all of them."""


@dataclass(frozen=True)
class Unseen:
    """Worlds that are only examined in, after the training."""

    worlds: tuple[str, ...] = ()
    """Which."""
    episodes: int = 100
    """Episodes in each, sampled and greedy."""


@dataclass(frozen=True)
class Study:
    """Everything that a study file says."""

    name: str = ""
    """What the study is called: small letters, digits and underscores."""
    question: str = ""
    """What it is to answer, in a sentence or two."""
    worlds: dict[str, Any] = field(default_factory=dict)
    """Worlds by name, each with the fields of :class:`World`."""
    methods: dict[str, Any] = field(default_factory=dict)
    """Settings by the method's name, as in a configuration."""
    seeds: tuple[int, ...] = ()
    """Seeds of the reported runs."""
    panel: Panel = field(default_factory=Panel)
    search: Search = field(default_factory=Search)
    unseen: Unseen = field(default_factory=Unseen)
    scale: str = ""
    """What the worlds differ in, where that is a number (tokens per action); `at` tells it."""
    compare: dict[str, Any] = field(default_factory=dict)
    """Whom to compare with whom: a method, and a list of others, or `all`; none: the first method
    with all others."""
    budget_minutes: float | None = None
    """CPU minutes for all runs together; what does not fit is listed as not run."""
    toy: bool = False
    """Few steps, seeds and episodes, to see that everything works."""

    def world(self, name: str) -> World:
        """The world of that name."""
        return self.worlds[name]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The comparisons: (method, other method)."""
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
    candidate: int | None = None
    """Which settings of the search it tries; none: a reported run."""

    @property
    def name(self) -> str:
        """What its directory is called."""
        search = "" if self.candidate is None else f"search-{self.candidate}."
        return f"{search}{self.world}.{self.method}.{self.seed}"


# Reading.


def read_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: what it says cannot be studied; the message says where and what would do.
    """
    path = Path(path)
    where = str(path)
    asked = merge(Study(), read_yaml(path), where)
    for name in (asked.name, *asked.worlds, *asked.methods):
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == ALL:
            raise ConfigError(
                f"{where}: {name!r} is no name for a study, world or method; use small letters, "
                "digits and underscores, and quotes around what YAML takes for something else "
                f"(2, on, yes). {ALL!r} is all of them."
            )
    for group in ("worlds", "methods", "seeds"):
        if not getattr(asked, group):
            raise ConfigError(f"{where}: names no {group}; give at least one.")
    worlds = {name: _read_world(path, name, told) for name, told in asked.worlds.items()}
    methods = {name: _settings(told, f"methods.{name}", where) for name, told in _items(asked)}
    study = replace(asked, worlds=worlds, methods=methods)
    _check_names(study, where)
    _check_numbers(study, where)
    _check_budgets(study, where)
    for job in (*search_jobs(study), *main_jobs(study, {})):  # what is wrong in any is told now
        if job.config.env in study.unseen.worlds:
            raise ConfigError(f"{where}: unseen.worlds: {job.config.env} is trained in.")
    return study


def _items(study: Study) -> Iterator[tuple[str, Any]]:
    return ((name, {} if told is None else told) for name, told in study.methods.items())


def _read_world(path: Path, name: str, told: Any) -> World:
    told = {"env": told} if isinstance(told, str) else told
    world = merge(World(), _settings(told, f"worlds.{name}", str(path)), str(path), f"{name}.")
    if (world.config is None) == (world.env is None):
        raise ConfigError(f"{path}: worlds.{name} needs either config or env.")
    if not 0 < world.threshold <= 1:
        raise ConfigError(f"{path}: worlds.{name}.threshold must be above 0 and at most 1.")
    if world.config is not None:
        world = replace(world, config=str(path.parent / world.config))
    return world


def _settings(told: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(told, Mapping):
        raise ConfigError(f"{where}: {name} is a group of settings, not {told!r}.")
    return dict(told)


def _check_names(study: Study, where: str) -> None:
    """Refuse methods and worlds that are spoken of and not there."""
    spoken: list[tuple[str, Sequence[str], Settings]] = [
        ("search.worlds", study.search.worlds, study.worlds),
        ("compare", tuple(study.compare), study.methods),
        ("unseen.worlds", _registered(study.unseen.worlds), dict(known_worlds())),
    ]
    for method, others in study.compare.items():
        if others != ALL and not isinstance(others, list | tuple):
            raise ConfigError(f"{where}: compare.{method} is a list of methods, or `all`.")
        spoken += [] if others == ALL else [(f"compare.{method}", others, study.methods)]
    for place, names, known in spoken:
        for name in names:
            if name not in known:
                raise ConfigError(f"{where}: {place}: {unknown(name, known)}")


def _registered(worlds: Sequence[str]) -> list[str]:
    """Those that are asked for by name alone; what is in a module of the user's own is not ours."""
    return [world for world in worlds if ":" not in world]


def _check_numbers(study: Study, where: str) -> None:
    panel, search = study.panel, study.search
    wrong = [
        (min(study.seeds) < 0, "seeds must not be negative."),
        (_twice(study.seeds) or _twice(search.seeds), "a seed stands twice."),
        (_twice(search.worlds), "search.worlds: a world stands twice."),
        (_twice(study.unseen.worlds), "unseen.worlds: a world stands twice."),
        (panel.seed < 0, "panel.seed must not be negative."),
        (bool(set(study.seeds) & set(search.seeds)), "seeds of the search must not be reported."),
        (bool(search.grid) != bool(search.seeds), "a search needs both a grid and seeds."),
        (panel.episodes < 1 or panel.points < 1, "panel: episodes and points must be above 0."),
        (bool(study.unseen.worlds) and study.unseen.episodes < 1, "unseen.episodes: above 0."),
        (study.budget_minutes is not None and study.budget_minutes <= 0, "budget: above 0."),
    ]
    for bad, message in wrong:
        if bad:
            raise ConfigError(f"{where}: {message}")
    for seed in (*study.seeds, *search.seeds):
        first = (2 + seed) * SEEDS_PER_RUN
        if panel.seed < first + SEEDS_PER_RUN and first < panel.seed + 2 * panel.episodes:
            raise ConfigError(
                f"{where}: panel.seed {panel.seed}: runs of seed {seed} train on the episodes from "
                f"{first} up; 1000000 is free for every study."
            )
    if study.scale and not all(world.at for world in study.worlds.values()):
        raise ConfigError(f"{where}: with a scale, every world needs to tell where it is: `at`.")
    settings = [name for names in search.grid for name in _each(str(names))]
    if _twice(settings):
        raise ConfigError(f"{where}: search.grid: a setting stands in two entries.")
    for setting, values in search.grid.items():
        if not isinstance(setting, str):
            raise ConfigError(f"{where}: search.grid: {setting!r} is no setting (`ppo.lr` is one).")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: search.grid.{setting} is a list of values to try.")
        many = setting.count(",") + 1
        if many > 1 and not all(isinstance(v, list) and len(v) == many for v in values):
            raise ConfigError(f"{where}: search.grid.{setting} needs lists of {many} values each.")


def _twice(names: Sequence[Any]) -> bool:
    return len(set(names)) < len(names)


def _check_budgets(study: Study, where: str) -> None:
    """Refuse a method that asks for more or fewer steps than the others: budgets are the world's.

    Raises:
        ConfigError: steps in a method or in the grid.
    """
    asked = [f"methods.{name}" for name, told in study.methods.items() if "steps" in told]
    asked += ["search.grid" for names in study.search.grid if "steps" in _each(names)]
    if asked:
        raise ConfigError(
            f"{where}: {asked[0]}: every method trains for the same number of steps; give `steps` "
            "to the world."
        )


def unknown(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """A sentence about a name that is not there, with its neighbours."""
    return f"there is no {name!r} here. {did_you_mean(name, known)}There are: {', '.join(known)}."


def shrink(study: Study) -> Study:
    """The same study at toy size: two worlds and seeds, two iterations, four episodes."""
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
    """What the search tries: all combinations of the grid, by dotted name."""
    grid = study.search.grid
    return [
        {
            name: value
            for names, values in zip(grid, taken, strict=True)
            for name, value in _together(names, values)
        }
        for taken in itertools.product(*grid.values())
    ]


def _together(names: str, values: Any) -> list[tuple[str, Any]]:
    """The settings that one entry of a grid gives values to."""
    each = _each(names)
    return list(zip(each, values if len(each) > 1 else [values], strict=True))


def _each(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def search_jobs(study: Study) -> list[Job]:
    """The runs of the search, none if there is none."""
    tried = candidates(study) if study.search.seeds else []
    panel = replace(study.panel, seed=study.panel.seed + study.panel.episodes)
    return [
        Job(world, method, seed, _configure(study, world, method, seed, settings, panel), number)
        for seed in study.search.seeds
        for number, settings in enumerate(tried)
        for world in study.search.worlds or study.worlds
        for method in study.methods
    ]


def main_jobs(study: Study, chosen: Mapping[str, Settings]) -> list[Job]:
    """The reported runs.

    Args:
        study: what is asked.
        chosen: what the search chose, dotted settings by method; none for a method without.
    """
    return [
        Job(
            world,
            method,
            seed,
            _configure(study, world, method, seed, chosen.get(method, {}), study.panel),
        )
        for seed in study.seeds
        for world in study.worlds
        for method in study.methods
    ]


def _configure(
    study: Study, world: str, method: str, seed: int, found: Settings, panel: Panel
) -> Config:
    """One run's configuration: the world's, then the method's, then what the search found."""
    place = study.world(world)
    where = f"study {study.name}, {world}, {method}"
    config = _base(place.config) if place.config is not None else Config(env=place.env or "")
    for settings in (place.settings, study.methods[method], _nested(found)):
        config = from_dict(settings, config, where)
    if place.steps is not None:
        config = replace(config, steps=place.steps)
    if study.toy:
        config = from_dict(TOY, config)
    iterations = -(-config.steps // (config.streams * config.horizon))
    examined = {
        "episodes": panel.episodes,
        "seed": panel.seed,
        "every": max(1, iterations // panel.points),
        "turns": False,
    }
    kept = {"keep_checkpoints": 1, "threads": 1, "trackers": []}
    return from_dict({"seed": seed, "eval": examined, **kept}, config, where)


@cache
def _base(path: str) -> Config:
    """A configuration file, read once: parsing YAML takes longer than all the rest."""
    return load(path)


def _nested(dotted: Settings) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        group = nested
        *outer, last = name.split(".")
        for key in outer:
            group = group.setdefault(key, {})
        group[last] = value
    return nested


def fingerprint(value: Any) -> str:
    """A short hash of anything that JSON can say; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_fingerprint(config: Config) -> str:
    """A hash of what decides a run, but not of its seed or of what is merely kept."""
    told = to_dict(config)
    for name in ("seed", "checkpoint_every", "keep_checkpoints", "trackers"):
        del told[name]
    return fingerprint(told)
