"""Text worlds: Gymnasium environments that are read and acted in through text. No torch here.

`make` opens one by name, ours or yours; `known_worlds` and `world_arguments` tell what there is.
"""

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

__all__ = [
    "Writing",
    "known_worlds",
    "make",
    "register_worlds",
    "same_words",
    "unseen_worlds",
    "world_arguments",
    "writing",
]


class Writing(NamedTuple):
    """How a freely written action ends, beside the model's own end of text."""

    stop: tuple[str, ...] = ("\n",)
    """Texts that end it and are no part of it."""
    tokens: int = 64
    """Where it is cut off."""


class _World(NamedTuple):
    env_id: str
    entry_point: str
    kwargs: dict[str, Any]
    """The constructor arguments that this name fixes."""
    summary: str


def _kitchen(name: str, task: str, summary: str) -> _World:
    entry_point = "poad.envs.kitchen.env:KitchenEnv"
    return _World(f"poad/{name}-v0", entry_point, {"task": task}, f"Kitchen: {summary}")


def _household(name: str, task: str, summary: str) -> _World:
    entry_point = "poad.envs.household.env:HouseholdEnv"
    return _World(f"poad/{name}-v0", entry_point, {"task": task}, f"Household: {summary}")


_WORLDS = (
    _kitchen("TomatoSalad", "tomato_salad", "chop a tomato, put it into the bowl, deliver it."),
    _kitchen(
        "TomatoLettuceSalad",
        "tomato_lettuce_salad",
        "deliver a bowl of chopped tomato and lettuce; an onion is in the way.",
    ),
    _household("FoodPreparation", "food_preparation", "shut the pancake into the microwave."),
    _household("Cheese", "cheese", "the same with cheese."),
    _household("Hamburger", "hamburger", "the same with a hamburger."),
    _household("ApplePie", "apple_pie", "the same with an apple pie."),
    _household("Pizza", "pizza", "the same with a pizza."),
    _household("WashingPlate", "washing_plate", "the same with dishes and a dishwasher."),
    _household("Laundry", "laundry", "the same with clothes and a washing machine."),
    _household("Entertainment", "entertainment", "watch TV on the sofa with chips and milk."),
    _household(
        "EntertainmentSparseText",
        "entertainment_sparse_text",
        "the same, told so briefly that the prompt does not settle what is offered.",
    ),
    _household(
        "EntertainmentAllActions",
        "entertainment_all_actions",
        "the same, with all 17 actions offered at any time.",
    ),
    _World(
        "poad/Length-v0",
        "poad.envs.length:LengthEnv",
        {},
        "Measuring: the same four decisions, spelled in as many words as you like.",
    ),
    _World(
        "poad/DataScience-v0",
        "poad.envs.datasci.env:DataScienceEnv",
        {},
        "Programming: write a classifier for a table; it is run in a sandbox and scored.",
    ),
)


def register_worlds() -> None:
    """Register our worlds with Gymnasium, as importing this module does; twice is harmless."""
    for world in _WORLDS:
        if world.env_id not in gymnasium.registry:
            # Our worlds keep the order of calls themselves, and no wrapper costs no time.
            # No max_episode_steps: TimeLimit would also truncate what has just terminated.
            gymnasium.register(
                world.env_id,
                entry_point=world.entry_point,
                kwargs=dict(world.kwargs),
                order_enforce=False,
            )


def known_worlds() -> list[tuple[str, str]]:
    """List our worlds: the name to `make` each by, and one line about it."""
    return [(world.env_id, world.summary) for world in _WORLDS]


def unseen_worlds() -> list[str]:
    """List the worlds that test a food-preparation agent on what it has not seen (the paper's)."""
    names = ("Cheese", "Hamburger", "ApplePie", "Pizza", "WashingPlate", "Laundry")
    return [f"poad/{name}-v0" for name in names]


def make(env_id: str, **kwargs: Any) -> gymnasium.Env[str, str]:
    """Open a world by its registered name, or by "package.module:EnvId" for one of your own.

    In the second form the module is imported first, which should register the world. `kwargs` go
    to the world's constructor; `world_arguments` tells which it takes.

    Raises:
        ValueError: for an unknown name, a module that cannot be imported, or an argument that the
            world does not take. The message names the alternatives.
    """
    spec = _spec(env_id)
    arguments = world_arguments(env_id)
    for name in kwargs:
        if name not in arguments and not _takes_any_argument(spec):
            raise ValueError(
                f"{spec.id} takes no argument {name!r}{_close_to(name, arguments)}. "
                f"It takes: {', '.join(arguments) or 'none'}."
            )
    return gymnasium.make(spec, disable_env_checker=True, **kwargs)


def world_arguments(env_id: str) -> Mapping[str, tuple[Any, Any]]:
    """Map each argument of a world's constructor to its annotation and its default.

    An argument without a default has `inspect.Parameter.empty` there. Arguments that the registered
    name fixes already are left out. `env_id` and errors are as for `make`.
    """
    spec = _spec(env_id)
    return {
        parameter.name: (parameter.annotation, parameter.default)
        for parameter in _parameters(spec)
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in spec.kwargs
    }


def same_words(one: str, other: str) -> bool:
    """Whether two worlds are of one kind and so speak alike: the same class, other arguments.

    `env_id` and errors are as for `make`.
    """
    return _spec(one).entry_point == _spec(other).entry_point


def writing(env_id: str) -> Writing:
    """How actions end in a world whose class says so (`writing: Final = Writing(...)`).

    `env_id` and errors are as for `make`.
    """
    entry_point = _spec(env_id).entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    asked = getattr(creator, "writing", None)
    return asked if isinstance(asked, Writing) else Writing()


def _takes_any_argument(spec: EnvSpec) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(spec))


def _parameters(spec: EnvSpec) -> Iterable[inspect.Parameter]:
    entry_point = spec.entry_point
    if entry_point is None:
        raise ValueError(f"{spec.id} is registered without an entry point, so it cannot be made")
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    try:
        return inspect.signature(creator, eval_str=True).parameters.values()
    except NameError:  # annotations that exist only for a type checker
        return inspect.signature(creator).parameters.values()


def _spec(env_id: str) -> EnvSpec:
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"cannot import {module!r} to find the world {name!r}: {error}"
            ) from error
    if name not in gymnasium.registry:
        where = f", although {module!r} was imported: does it register one?" if colon else "."
        raise ValueError(
            f"there is no world {name!r}{_close_to(name, gymnasium.registry)}{where} "
            f"Known worlds: {', '.join(world.env_id for world in _WORLDS)}. "
            'One of your own is named "package.module:EnvId".'
        )
    return gymnasium.registry[name]


def _close_to(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known))
    return f" (close: {', '.join(close)})" if close else ""


register_worlds()
