"""Open a world that a person has named, and explain every failure."""

from collections.abc import Mapping
from typing import Any

import gymnasium

from poad.envs.registry import make
from poad.errors import ConfigError, PoadError


def open_world(env_id: str, env_args: Mapping[str, Any]) -> gymnasium.Env[str, str]:
    """Open a world.

    Args:
        env_id: a name as :func:`poad.envs.make` takes it.
        env_args: arguments of its constructor.

    Raises:
        PoadError: the world cannot be opened. Errors that its constructor raises about its
            arguments or its surroundings become a ConfigError that names the world.
    """
    try:
        return make(env_id, **env_args)
    except PoadError:
        raise
    except (ValueError, TypeError, OSError) as error:
        # Gymnasium appends the constructor and its arguments to the message of a TypeError.
        reason = str(error).partition(" was raised from the environment creator")[0]
        given = f" with {dict(env_args)}" if env_args else ""
        raise ConfigError(
            f"Cannot open {env_id}{given}: {reason or type(error).__name__}"
        ) from error
