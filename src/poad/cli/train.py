"""``poad train``: train an agent, or go on with a run that was stopped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poad.cli.arguments import Switch, value_of
from poad.cli.settings import EPILOG, Settings, check_settings, starting_point
from poad.cli.trust import FLAG, open_run, trust
from poad.config import Config
from poad.envs import host_of
from poad.errors import ConfigError
from poad.ranks import launched
from poad.runs import check_new_run, check_trackers

__all__ = ["EPILOG", "Options", "defaults", "run"]


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
    if options.resume is not None:
        if options.run or options.config or options.preset or options.overwrite:
            raise ConfigError(
                "--resume takes the directory and the settings from the run, and keeps what it "
                "holds. Leave out --run, --config, --preset and --overwrite."
            )
        check_trackers(config.trackers)
        check_settings(config)
        from poad.workflows import resume_run

        return resume_run(options.resume, config, quiet=options.quiet, watch=watch)
    path = options.run or _default_path(config, taken=options.overwrite)
    if launched().is_first:  # who may have created it before the others look
        check_new_run(path, config, overwrite=options.overwrite)
        check_trackers(config.trackers)
    trust(config, path)
    check_settings(config)
    from poad.workflows import train_run

    return train_run(
        config,
        path,
        preset=options.preset,
        overwrite=options.overwrite,
        quiet=options.quiet,
        watch=watch,
    )


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
