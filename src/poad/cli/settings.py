"""The settings of a training on the command line: their options, and checks that cost nothing.

Nothing here imports torch. A mistake is reported before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from poad.cli.arguments import value_of
from poad.cli.trust import FLAG, check_stored, is_in_run
from poad.config import Config, load
from poad.envs import make
from poad.errors import ConfigError, did_you_mean

METHODS = {
    "poad": "credit for each token; γ applies between actions, never inside",
    "ntpo": "every token is a time step, so credit decays in long actions",
    "twosome": "PPO on whole actions, scored by mean log-prob per word",
    "glam": "PPO on whole actions, scored by their summed log-prob",
    "turn_ppo": "the turn's advantage for each of its tokens",
    "archer_adrl": "ntpo that bootstraps from the next action's last token",
    "reinforce": "returns of finished episodes, without a critic",
}
"""The credit methods in a line each. The table `poad.credit.METHODS` defines them; importing it
would load torch."""

EPILOG = "\n".join(
    [
        "",
        "Credit methods (--credit.method):",
        *(f"  {name:<13}{line}" for name, line in METHODS.items()),
        "",
        "A method of your own is named package.module:NAME.",
        "",
    ]
)

Settings = Annotated[Config, tyro.conf.arg(name="")]
"""A configuration whose groups become flags such as ``--ppo.lr``."""


def settings_file(arguments: Sequence[str]) -> Config:
    """The settings in the file that ``--config`` names, or the defaults."""
    path = value_of("--config", arguments)
    return Config() if path is None else settings_in(Path(path).expanduser(), arguments)


def settings_in(path: Path, arguments: Sequence[str]) -> Config:
    """The settings in a file. What those in a run ask for has to be trusted."""
    config = load(path)
    if is_in_run(path):
        check_stored(config, path.parent, trusted=FLAG in arguments)
    return config


def check_settings(config: Config) -> None:
    """Check what can be checked without torch: the method's name and the world.

    Raises:
        ConfigError: the method is unknown, or the world cannot be opened.
    """
    method = config.credit.method
    if method not in METHODS and ":" not in method:  # "package.module:NAME" is imported later
        raise ConfigError(
            f"There is no credit method {method!r}. {did_you_mean(method, METHODS)}"
            f"The methods are {', '.join(METHODS)}. Name one of your own as package.module:NAME."
        )
    make(config.env, **config.env_args).close()


def check_seed(seed: int | None) -> None:
    """Raise ConfigError for a negative ``--seed``."""
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed {seed}: a seed must not be negative.")


def check_episodes(episodes: int) -> None:
    """Raise ConfigError unless ``--episodes`` is positive."""
    if episodes < 1:
        raise ConfigError(f"--episodes {episodes}: there must be at least 1.")
