"""Text worlds: Gymnasium environments that are read and acted in through text. No torch here."""

from poad.envs.check import check_env
from poad.envs.opening import open_world
from poad.envs.registry import (
    Writing,
    known_worlds,
    make,
    register_worlds,
    same_words,
    unseen_worlds,
    world_arguments,
    writing,
)

__all__ = [
    "Writing",
    "check_env",
    "known_worlds",
    "make",
    "open_world",
    "register_worlds",
    "same_words",
    "unseen_worlds",
    "world_arguments",
    "writing",
]
