"""Schemes: names such as ``babyai:LEVEL`` that open the worlds of other projects.

An adapter is named by an entry point and imported when the first world of its scheme is opened, as
Gymnasium does with registered worlds. So this room knows the names of the adapters and no more.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from poad.errors import ConfigError


class Scheme(NamedTuple):
    """One row of `SCHEMES`."""

    shown: str
    """The scheme with a placeholder, as in ``babyai:LEVEL``."""
    entry_point: str
    """The class of the adapter, as ``module:Class``. It takes what stands behind the colon."""
    example: str
    summary: str
    functions: tuple[str, ...] = ()
    """Arguments that name a function as ``module:function``."""
    holds_module: bool = False
    """Whether what stands behind the colon may name a module."""
    one_vocabulary: bool = False
    """Whether all worlds of the scheme use the same words."""

    @property
    def name(self) -> str:
        """The part before the colon."""
        return self.shown.partition(":")[0]


_ROWS: Final = (
    Scheme(
        "gymnasium:ID",
        "poad.adapters:GymnasiumWorld",
        "gymnasium:FrozenLake-v1",
        "a registered Gymnasium environment, with words for its observations",
        functions=("describe", "success"),
        holds_module=True,
    ),
    Scheme(
        "object:MODULE:NAME",
        "poad.adapters:ObjectWorld",
        "object:my_module:MyWorld",
        "an object of yours with reset and step",
        functions=("describe", "success"),
        holds_module=True,
    ),
    Scheme(
        "tools:MODULE:CLASS",
        "poad.adapters:ToolsWorld",
        "tools:my_module:MyTools",
        "a class of yours whose methods are tools, called by JSON",
        holds_module=True,
    ),
    Scheme(
        "openenv:URL",
        "poad.adapters:OpenEnvWorld",
        "openenv:http://localhost:8000",
        "an environment behind an OpenEnv server",
    ),
    Scheme(
        "textworld:GAME",
        "poad.adapters:TextWorldGame",
        "textworld:games/*.z8",
        "a game of TextWorld or ALFWorld; a pattern names several",
        one_vocabulary=True,
    ),
    Scheme(
        "babyai:LEVEL",
        "poad.adapters:BabyAI",
        "babyai:BabyAI-GoToRedBallNoDists-v0",
        "a level of BabyAI in words, as in GLAM",
        one_vocabulary=True,
    ),
    Scheme(
        "textarena:GAME",
        "poad.adapters:TextArenaGame",
        "textarena:Sokoban-v0",
        "a single-player game of TextArena",
    ),
)

SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType({row.name: row for row in _ROWS})
"""The schemes, by name."""


def split_scheme(name: str) -> tuple[Scheme, str] | None:
    """Split a world's name into its scheme and the rest; None if it begins with no scheme.

    Raises:
        ConfigError: nothing follows the scheme, or no function or class follows a module.
    """
    first, colon, rest = name.partition(":")
    scheme = SCHEMES.get(first)
    if scheme is None or not colon:
        return None
    colons = scheme.shown.count(":") - 1  # object: and tools: take a module and a name in it
    parts = rest.rsplit(":", colons)
    if len(parts) <= colons or not all(parts):
        raise ConfigError(
            f"{name!r} is incomplete. {scheme.name}: opens {scheme.summary}: write "
            f"{scheme.shown}, as in {scheme.example}. If you mean a module of your own that "
            f"registers worlds, give it another name than {scheme.name!r}."
        )
    return scheme, rest


def known_schemes() -> list[tuple[str, str]]:
    """List the schemes as pairs: an example of a name that `make` takes, and a one-line summary."""
    return [(scheme.example, scheme.summary) for scheme in SCHEMES.values()]


def code_named(env: str, env_args: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the code that opening a world runs because its name or arguments say so.

    Args:
        env: a name for `make`.
        env_args: arguments of the world.

    Returns:
        What is run, and the module that is imported for it. The two are equal where importing the
        module is all. Otherwise something in the module is called, so the module may be any.
    """
    found = split_scheme(env)
    if found is None:
        module = env.rpartition(":")[0]
        return [(module, module)] if module else []
    scheme, rest = found
    module = rest.rpartition(":")[0] if scheme.holds_module else ""
    called = scheme.shown.count(":") > 1
    named = [(env if called else module, module)] if module else []
    for argument in scheme.functions:
        function = str(env_args.get(argument, ""))
        if module := function.rpartition(":")[0]:
            named.append((f"{argument}={function}", module))
    return named


def host_of(env: str) -> str | None:
    """Return the address that opening a world connects to; None if it connects to none."""
    found = split_scheme(env)
    return found[1] if found is not None and found[0].name == "openenv" else None
