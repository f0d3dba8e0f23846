"""Text worlds: Gymnasium environments whose observations and actions are text. No torch here."""

from poad.envs.best_work import BestWork, Work
from poad.envs.check import RULES, check_env
from poad.envs.contract import CheckedWorld
from poad.envs.draw import draw, size_of
from poad.envs.registry import (
    FreeText,
    docstring_of,
    free_text_of,
    known_worlds,
    make,
    register_worlds,
    same_class,
    unseen_worlds,
    world_arguments,
)
from poad.envs.remote import RemoteWorld
from poad.envs.workers import Host, Workers, parse_workers
from poad.trie import Form, Grammar

__all__ = [
    "RULES",
    "BestWork",
    "CheckedWorld",
    "Form",
    "FreeText",
    "Grammar",
    "Host",
    "RemoteWorld",
    "Work",
    "Workers",
    "check_env",
    "docstring_of",
    "draw",
    "free_text_of",
    "known_worlds",
    "make",
    "parse_workers",
    "register_worlds",
    "same_class",
    "size_of",
    "unseen_worlds",
    "world_arguments",
]
