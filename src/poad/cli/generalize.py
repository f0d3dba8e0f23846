"""``poad generalize``: evaluate an agent in worlds it was not trained in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from poad.cli.arguments import Switch
from poad.cli.settings import check_episodes
from poad.envs import unseen_worlds, world_arguments
from poad.errors import ConfigError
from poad.runs import Run


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
    quiet: Switch = False
    """Print the table and nothing else."""


def run(options: Options) -> int:
    """Evaluate and print the table; the exit status."""
    check_episodes(options.episodes)
    worlds = options.worlds or tuple(unseen_worlds())
    for world in worlds:
        try:
            world_arguments(world)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    for path in (options.run, *options.beside):
        Run.open(path)
    from poad.workflows import generalize_run

    return generalize_run(
        options.run, options.beside, worlds, options.episodes, quiet=options.quiet
    )
