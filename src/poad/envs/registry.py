"""The registry of text worlds: open one by name, and list its arguments.

Importing this module registers the worlds of poad with Gymnasium.
"""

import inspect
import traceback
from collections.abc import Iterable, Mapping
from itertools import chain, takewhile
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from poad.envs.schemes import SCHEMES, split_scheme
from poad.errors import ConfigError, PoadError, did_you_mean, imported


class FreeText(NamedTuple):
    """Where a freely written action ends, besides at the model's own end-of-text token."""

    stop: tuple[str, ...] = ("\n",)
    """Strings that end the action. They are not part of it."""
    max_tokens: int = 64
    """The action is cut off after this many tokens."""


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
        "deliver a bowl of chopped tomato and lettuce, but no onion.",
    ),
    _household("FoodPreparation", "food_preparation", "shut the pancake into the microwave."),
    _household("Cheese", "cheese", "the same task with cheese."),
    _household("Hamburger", "hamburger", "the same task with a hamburger."),
    _household("ApplePie", "apple_pie", "the same task with an apple pie."),
    _household("Pizza", "pizza", "the same task with a pizza."),
    _household("WashingPlate", "washing_plate", "the same task with dishes and a dishwasher."),
    _household("Laundry", "laundry", "the same task with clothes and a washing machine."),
    _household("Entertainment", "entertainment", "watch TV on the sofa with chips and milk."),
    _household(
        "EntertainmentSparseText",
        "entertainment_sparse_text",
        "the same task; its shorter prompts do not determine the offered actions.",
    ),
    _household(
        "EntertainmentAllActions",
        "entertainment_all_actions",
        "the same task; all 17 actions are offered at every step.",
    ),
    _World(
        "poad/Length-v0",
        "poad.envs.length:LengthEnv",
        {},
        "Measurement: four decisions, spelled in as many words as you like.",
    ),
    _World(
        "poad/Order-v0",
        "poad.envs.order:OrderEnv",
        {},
        "Measurement: forms with up to sixteen decisions in each action, offered or written.",
    ),
    _World(
        "poad/ToolDesk-v0",
        "poad.envs.tooldesk.env:ToolDeskEnv",
        {},
        "Tools: look up, change and answer at a service desk, by calls with typed arguments.",
    ),
    _World(
        "poad/DataScience-v0",
        "poad.envs.datasci.env:DataScienceEnv",
        {},
        "Programming: write a classifier for a table; a sandbox runs it and scores it.",
    ),
)


def register_worlds() -> None:
    """Register the worlds of poad with Gymnasium; calling it again changes nothing."""
    for world in _WORLDS:
        if world.env_id not in gymnasium.registry:
            # The worlds check the order of calls themselves, so they need no wrapper. They set no
            # max_episode_steps: TimeLimit would also truncate an episode that has just terminated.
            gymnasium.register(
                world.env_id,
                entry_point=world.entry_point,
                kwargs=dict(world.kwargs),
                order_enforce=False,
            )


def known_worlds() -> list[tuple[str, str]]:
    """List the worlds of poad as pairs: the name that `make` takes, and a one-line summary."""
    return [(world.env_id, world.summary) for world in _WORLDS]


def unseen_worlds() -> list[str]:
    """List the paper's generalization tasks for an agent trained on `poad/FoodPreparation-v0`."""
    names = ("Cheese", "Hamburger", "ApplePie", "Pizza", "WashingPlate", "Laundry")
    return [f"poad/{name}-v0" for name in names]


def make(env_id: str, **kwargs: Any) -> gymnasium.Env[str, str]:
    """Open a world by name.

    Args:
        env_id: a registered name, "package.module:EnvId" for a world of your own, or "scheme:rest"
            for a world of another project (`known_schemes`). In the second form the module is
            imported first; the import should register the world.
        kwargs: arguments for the world's constructor; `world_arguments` lists them.

    Raises:
        ConfigError: the name is unknown, its module cannot be imported, the world does not take an
            argument, or its constructor fails. The message lists the alternatives.
    """
    spec = _spec(env_id)
    arguments = world_arguments(env_id)
    for name in kwargs:
        if name not in arguments and not _takes_any_argument(spec):
            raise ConfigError(
                f"{spec.id} takes no argument {name!r}. {did_you_mean(name, arguments)}"
                f"It takes: {', '.join(arguments) or 'none'}."
            )
    return _open(spec, kwargs)


def _open(spec: EnvSpec, kwargs: dict[str, Any]) -> gymnasium.Env[str, str]:
    """Call a world's constructor, and report in one sentence why it fails."""
    try:
        if spec.id in gymnasium.registry:
            return gymnasium.make(spec, disable_env_checker=True, **kwargs)
        world = _creator(spec)(spec.id.partition(":")[2], **kwargs)  # an adapter
        world.spec = spec
        return world
    except PoadError:
        raise
    except (Exception, SystemExit) as error:
        # Gymnasium appends all arguments to the message of a TypeError.
        reason = str(error).partition(" was raised from the environment creator")[0]
        if not isinstance(error, ValueError | TypeError):
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {reason} ({place.filename}, line {place.lineno})"
        given = f" with {kwargs}" if kwargs else ""
        raise ConfigError(f"Cannot make {spec.id}{given}: {reason}") from error


def world_arguments(env_id: str) -> Mapping[str, tuple[Any, Any]]:
    """Map each argument of a world's constructor to its annotation and its default.

    The default is `inspect.Parameter.empty` where there is none. Arguments that the registered name
    already fixes are left out. `env_id` and errors are those of `make`.
    """
    spec = _spec(env_id)
    return {
        parameter.name: (parameter.annotation, parameter.default)
        for parameter in _parameters(spec)
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in spec.kwargs
    }


def same_class(one: str, other: str) -> bool:
    """Check whether two names open the same class of world, which then shares its vocabulary.

    Both names and errors are those of `make`.
    """
    first, second = _spec(one), _spec(other)
    if first.entry_point != second.entry_point:
        return False
    found = split_scheme(one)
    return found is None or found[0].one_vocabulary or one == other


def free_text_of(env_id: str) -> FreeText:
    """Get the `free_text` attribute of a world's class, or the default if the class has none.

    `env_id` and errors are those of `make`.
    """
    spec = _spec(env_id)
    creator = _creator(spec)
    if hasattr(creator, "free_text_of"):  # an adapter, which asks what it adapts
        return creator.free_text_of(spec.id.partition(":")[2])
    found = getattr(creator, "free_text", None)
    return found if isinstance(found, FreeText) else FreeText()


def _takes_any_argument(spec: EnvSpec) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(spec))


def _creator(spec: EnvSpec) -> Any:
    """Import the class or function that makes a world."""
    entry_point = spec.entry_point
    if entry_point is None:
        raise ConfigError(
            f"{spec.id} is registered without an entry point, so it cannot be made. "
            "Pass entry_point=... to gymnasium.register."
        )
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _parameters(spec: EnvSpec) -> Iterable[inspect.Parameter]:
    creator = _creator(spec)
    try:
        return inspect.signature(creator, eval_str=True).parameters.values()
    except NameError:  # some annotations exist only for type checkers
        return inspect.signature(creator).parameters.values()


_MODULES: dict[str, str] = {}
"""The module that was named with a world, by the world's registered name."""


def full_name(world: gymnasium.Env[str, str]) -> str | None:
    """Return the name by which `make` opens a world, and None for one that is not registered."""
    if world.spec is None:
        return None
    module = _MODULES.get(world.spec.id)
    return f"{module}:{world.spec.id}" if module else world.spec.id


def docstring_of(world: gymnasium.Env[str, str]) -> str | None:
    """Return the docstring of a world's class, or of the next class above it that has one.

    That of `gymnasium.Env` and other bases says nothing of a world, so it does not count. An
    adapter stands back behind what it adapts.
    """
    kinds = (type(inner_of(world)), type(world.unwrapped))
    above = (takewhile(lambda each: each.__module__ not in _BASES, kind.__mro__) for kind in kinds)
    return next((each.__doc__ for each in chain(*above) if each.__doc__), None)


def manual_of_adapter(world: gymnasium.Env[str, str]) -> str | None:
    """Return the docstring of an adapter that stands back behind what it adapts, else None."""
    doc = type(world.unwrapped).__doc__
    return None if doc == docstring_of(world) or inner_of(world) is world.unwrapped else doc


_BASES = ("gymnasium.core", "poad.envs.adapter", "typing", "builtins")
"""Modules of classes that worlds inherit from."""


def inner_of(world: gymnasium.Env[str, str]) -> object:
    """Return the object whose code plays: what an adapter adapts, or the world itself."""
    return getattr(world.unwrapped, "inner", world.unwrapped)


def _spec(env_id: str) -> EnvSpec:
    if (found := split_scheme(env_id)) is not None:
        # Gymnasium allows no URL and no path in the name of a world, so it is set afterwards.
        spec = EnvSpec("poad/Scheme-v0", found[0].entry_point)
        spec.id = env_id
        return spec
    module, colon, name = env_id.rpartition(":")
    if colon:
        scheme = f"{module.partition(':')[0]}:"
        near = did_you_mean(scheme, [f"{each}:" for each in SCHEMES], 1)
        imported(module, f"{module!r} to find the world {name!r}", near)
    if name not in gymnasium.registry:
        where = f" The module {module!r} was imported; it must register the world." if colon else ""
        near = did_you_mean(name, [*gymnasium.registry, *(each.shown for each in SCHEMES.values())])
        raise ConfigError(
            f"There is no world {name!r}. {near}"
            f"Known worlds: {', '.join(world.env_id for world in _WORLDS)}."
            f"{where or ' Name a world of your own as package.module:EnvId.'}"
        )
    if colon:
        _MODULES[name] = module
    return gymnasium.registry[name]


register_worlds()
