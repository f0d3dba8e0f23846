"""``poad generalize``: evaluate an agent in worlds it was not trained in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from poad.cli.arguments import Switch
from poad.cli.settings import check_episodes
from poad.cli.trust import open_run, trust
from poad.config import Config
from poad.envs import unseen_worlds, world_arguments
from poad.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Evaluate an agent in worlds it was not trained in.

    The table compares it with the same agent before training and with other runs.
    """

    run: tyro.conf.Positional[Path]
    """The directory of the run. The table is saved there."""
    beside: tuple[Path, ...] = ()
    """Other runs to compare with, such as another method with the same budget."""
    worlds: tuple[str, ...] = ()
    """The worlds. Default: the six household tasks that test an agent trained on
    poad/FoodPreparation-v0."""
    episodes: int = 100
    """Episodes in each world and mode (sampled and greedy)."""
    trust_code: Switch = False
    """Do what the settings of the runs ask for: import modules that are not poad's, or run programs
    without protection. You are asked once (docs/security.md)."""
    quiet: Switch = False
    """Print the table and nothing else."""


def run(options: Options) -> int:
    """Evaluate and print the table; the exit status."""
    check_episodes(options.episodes)
    worlds = options.worlds or tuple(unseen_worlds())
    for world in worlds:
        trust(Config(env=world))
        try:
            world_arguments(world)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    for path in (options.run, *options.beside):
        open_run(path, trusted=options.trust_code)
    from poad.workflows import generalize_run

    return generalize_run(
        options.run, options.beside, worlds, options.episodes, quiet=options.quiet
    )
