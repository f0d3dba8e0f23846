"""``poad train``: train an agent, or go on with a run that was stopped."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from poad.cli.arguments import Switch, value_of
from poad.cli.settings import EPILOG, Settings, check_settings, starting_point
from poad.cli.trust import FLAG, open_run, trust
from poad.cluster import ADDRESS
from poad.config import Config
from poad.envs import host_of
from poad.errors import ConfigError
from poad.ranks import launched
from poad.runs import check_new_run, check_trackers

__all__ = ["EPILOG", "Options", "defaults", "run"]


@dataclass(frozen=True)
class Ray:
    """Train on a Ray cluster; see docs/scaling.md. Needs `poad[ray]`."""

    workers: int = 0
    """Processes that train together, placed and restarted by Ray Train. 0 trains without it."""
    fewest: int = 0
    """Go on with so many processes when there is no room for all. 0 waits for all."""
    restarts: int = 3
    """How often processes that died are started again from the last checkpoint. -1: always."""
    address: str | None = None
    """HOST:PORT of the cluster, also for worlds (`--workers ray:N`). Default: RAY_ADDRESS, or the
    cluster of this machine. If there is none, one is started here; `local` always does so."""


@dataclass(frozen=True)
class Options:
    """Train an agent in a text world.

    A run is a directory with its configuration, metrics, evaluation episodes, checkpoints and a
    report. Ctrl-C or SIGTERM stops after the current iteration and loses nothing. Go on from there
    by `poad train --resume RUN`.
    """

    config: Path | None = None
    """A YAML file of settings; flags override it."""
    preset: str | None = None
    """The defaults to start from; see below. Default: those that suit the model."""
    run: Path | None = None
    """Directory of the new run. Default: runs/<world>-<method>-seed<n>."""
    resume: Path | None = None
    """Go on with this run instead of starting a new one. More --steps are allowed."""
    overwrite: Switch = False
    """Delete the files of a run that is already in the directory. Other files there stay."""
    watch: Switch = False
    """Serve the report on 127.0.0.1 while training, for a browser of this machine; it updates
    itself."""
    port: int = 0
    """Port of --watch. 0 takes any that is free."""
    quiet: Switch = False
    """Print nothing but errors, and the address of --watch."""
    trust_code: Switch = False
    """Do what the settings of a run ask for: import modules that are not poad's, or run programs
    without protection. You are asked once (docs/security.md)."""
    ray: Ray = field(default_factory=Ray)
    settings: Settings = field(default_factory=Config)


def defaults(arguments: Sequence[str]) -> Options:
    """The options before the flags are read: the settings come from --resume or --config."""
    if (resumed := value_of("--resume", arguments)) is not None:
        run = open_run(Path(resumed).expanduser(), trusted=FLAG in arguments)
        return Options(settings=run.config)
    chosen, settings = starting_point(arguments)
    return Options(preset=chosen, settings=settings)


def run(options: Options) -> int:
    """Train; the exit status is 130 after Ctrl-C or SIGTERM."""
    config, watch = options.settings, options.port if options.watch else None
    if options.port and not options.watch:
        raise ConfigError("--port belongs to --watch. Add it, or leave out --port.")
    _check_ray(options)
    if options.resume is not None:
        if options.run or options.config or options.preset or options.overwrite:
            raise ConfigError(
                "--resume takes the directory and the settings from the run, and keeps what it "
                "holds. Leave out --run, --config, --preset and --overwrite."
            )
        check_trackers(config.trackers)
        check_settings(config)
        from poad.workflows import resume_run

        train = partial(resume_run, options.resume, config, quiet=options.quiet)
        return _carry_out(train, options.resume, options, watch)
    path = options.run or _default_path(config, taken=options.overwrite)
    if launched().is_first:  # who may have created it before the others look
        check_new_run(path, config, overwrite=options.overwrite)
        check_trackers(config.trackers)
    trust(config, path)
    check_settings(config)
    from poad.workflows import train_run

    train = partial(
        train_run,
        config,
        path,
        preset=options.preset,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    return _carry_out(train, path, options, watch)


def _carry_out(train: Any, path: Path, options: Options, watch: int | None) -> int:
    """Train here, or on a cluster."""
    ray = options.ray
    if not ray.workers:
        return train(watch=watch)
    from poad.workflows import Placement, resume_run, train_on_cluster

    gpus = {"cpu": False, "auto": None}.get(options.settings.model.device, True)
    placement = Placement(ray.workers, ray.fewest or ray.workers, ray.restarts, gpus)
    again = train if options.resume else partial(resume_run, path, quiet=options.quiet)
    return train_on_cluster(train, again, path, placement)


def _check_ray(options: Options) -> None:
    """Check what is asked of a cluster, and remember its address.

    Raises:
        ConfigError: it cannot be.
    """
    ray = options.ray
    if min(ray.workers, ray.fewest) < 0 or ray.restarts < -1 or ray.fewest > ray.workers:
        raise ConfigError(
            f"--ray.workers {ray.workers} --ray.fewest {ray.fewest} --ray.restarts {ray.restarts}: "
            "numbers of processes are not negative, --ray.fewest is at most --ray.workers, and "
            "--ray.restarts is at least -1."
        )
    if ray.workers and options.watch:
        raise ConfigError(
            "--watch serves this machine, and --ray.workers trains on others. Leave one of them "
            "out; `poad report RUN` shows the run so far."
        )
    if ray.workers and launched().size > 1:
        raise ConfigError(
            "--ray.workers starts the processes of a training, and so does torchrun. Leave out one "
            "of them."
        )
    if ray.address is not None:
        os.environ[ADDRESS] = ray.address


def _default_path(config: Config, *, taken: bool) -> Path:
    """A directory for a new run: ``runs/<world>-<method>-seed<n>``.

    Args:
        config: the settings of the run.
        taken: whether the directory may hold a run already. If not, it gets a number.
    """
    base = Path("runs") / f"{_short_name(config.env)}-{config.credit.label}-seed{config.seed}"
    path, number = base, 2
    while not taken and path.exists() and any(path.iterdir()):
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def _short_name(env: str) -> str:
    """Make a part of a directory's name of a world's name: no module, no path, no version 0."""
    if (host := host_of(env)) is not None:
        name = host.partition("//")[2] or host
    else:
        name = env.rpartition(":")[2].rpartition("/")[2]
        name = re.sub(r"-v0$|\.(z8|ulx|tw-pddl)$", "", name)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    # A pattern such as textworld:*.z8 leaves nothing.
    return re.sub(r"\W+", "-", words).strip("-")[:60] or env.partition(":")[0]
