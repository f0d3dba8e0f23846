"""Worlds of other projects as text worlds. Each package is imported when a world of it is opened.

`poad.envs.make` finds these classes by their schemes, such as ``babyai:LEVEL``.
"""

from poad.adapters.babyai import BabyAI
from poad.adapters.five_tuple import GymnasiumWorld, ObjectWorld
from poad.adapters.openenv import OpenEnvWorld
from poad.adapters.textarena import TextArenaGame
from poad.adapters.textworld import TextWorldGame
from poad.adapters.tools import ToolsWorld

__all__ = [
    "BabyAI",
    "GymnasiumWorld",
    "ObjectWorld",
    "OpenEnvWorld",
    "TextArenaGame",
    "TextWorldGame",
    "ToolsWorld",
]
