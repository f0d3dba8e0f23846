"""The settings of a training on the command line: their options, and checks that cost nothing.

Nothing here imports torch, unless a model is named. A mistake is reported before one is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from poad.cli.arguments import value_of
from poad.cli.trust import FLAG, check_stored, is_in_run
from poad.config import PRESETS, Config, load, preset, read_yaml
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
    "grpo": "an episode's return beside those of its group, without a critic",
    "gigpo": "as grpo, and each turn's return behind equal prompts",
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
        "Presets (--preset):",
        *(f"  {name:<13}{each.about}" for name, each in PRESETS.items()),
        "",
    ]
)

Settings = Annotated[Config, tyro.conf.arg(name="")]
"""A configuration whose groups become flags such as ``--ppo.lr``."""


def starting_point(arguments: Sequence[str], path: Path | None = None) -> tuple[str, Config]:
    """The settings that the flags change: those of a file, on the preset that suits the model.

    Args:
        arguments: the command's arguments. ``--preset``, ``--config`` and the model's name count.
        path: the file, instead of the one that ``--config`` names.

    Returns:
        The name of the preset, and the settings.
    """
    named = value_of("--config", arguments)
    if path is None and named is not None:
        path = Path(named).expanduser()
    chosen = preset_of(arguments, {} if path is None else read_yaml(path))
    base = preset(chosen)
    return chosen, base if path is None else settings_in(path, arguments, base)


def preset_of(arguments: Sequence[str], data: Mapping[str, Any]) -> str:
    """Name the preset: the one asked for by a flag or a file, or the one that suits the model.

    Args:
        arguments: the command's arguments.
        data: the content of the file of settings.
    """
    asked = value_of("--preset", arguments) or data.get("preset")
    model = data.get("model")
    model = model if isinstance(model, Mapping) else {}
    name = value_of("--model.name", arguments) or str(model.get("name", "auto"))
    tuning = value_of("--model.tuning", arguments) or model.get("tuning")
    if asked is not None or name == "auto":  # the embedded models need no look at their files
        return str(asked or "plain")
    from poad.models import suitable_preset

    return suitable_preset(name, tuning)


def settings_in(path: Path, arguments: Sequence[str], base: Config) -> Config:
    """The settings in a file. What those in a run ask for has to be trusted."""
    config = load(path, base)
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
