"""Text worlds: Gymnasium environments whose observations and actions are text. No torch here."""

from poad.envs.adapter import AnyText, TextAdapter
from poad.envs.best_work import BestWork, Work
from poad.envs.check import RULES, check_env
from poad.envs.contract import CheckedWorld
from poad.envs.draw import draw, size_of
from poad.envs.registry import (
    FreeText,
    docstring_of,
    free_text_of,
    inner_of,
    known_worlds,
    make,
    manual_of_adapter,
    register_worlds,
    same_class,
    unseen_worlds,
    world_arguments,
)
from poad.envs.remote import RemoteWorld
from poad.envs.schemes import code_named, host_of, known_schemes, split_scheme
from poad.envs.workers import Host, Workers, parse_workers
from poad.trie import Form, Grammar

__all__ = [
    "RULES",
    "AnyText",
    "BestWork",
    "CheckedWorld",
    "Form",
    "FreeText",
    "Grammar",
    "Host",
    "RemoteWorld",
    "TextAdapter",
    "Work",
    "Workers",
    "check_env",
    "code_named",
    "docstring_of",
    "draw",
    "free_text_of",
    "host_of",
    "inner_of",
    "known_schemes",
    "known_worlds",
    "make",
    "manual_of_adapter",
    "parse_workers",
    "register_worlds",
    "same_class",
    "size_of",
    "split_scheme",
    "unseen_worlds",
    "world_arguments",
]
