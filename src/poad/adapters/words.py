"""Words for Gymnasium's toy text environments, whose observations are numbers."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class Words(NamedTuple):
    """How an environment is told."""

    describe: Callable[[Any, Any], str]
    """From an observation and the environment to a text."""
    actions: tuple[str, ...]
    success: Callable[[float, bool], bool]
    """From the last reward, and whether the episode terminated, to success."""


def _frozen_lake(cell: int, env: Any) -> str:
    row, column = divmod(int(cell), env.unwrapped.ncol)
    size = f"{env.unwrapped.nrow} rows and {env.unwrapped.ncol} columns"
    return (
        f"You cross a frozen lake of {size}. You stand in row {row + 1}, column {column + 1}. The "
        "goal is in the last row and column, and there are holes on the way. You should"
    )


def _cliff(cell: int, env: Any) -> str:
    row, column = divmod(int(cell), 12)
    return (
        "You walk in a field of 4 rows and 12 columns. The goal is in row 4, column 12, and the "
        f"cliff lies before it in row 4. You stand in row {row + 1}, column {column + 1}. You "
        "should"
    )


_STANDS = ("red", "green", "yellow", "blue")


def _taxi(state: int, env: Any) -> str:
    row, column, passenger, destination = env.unwrapped.decode(int(state))
    aboard = passenger == len(_STANDS)
    where = "is in your taxi" if aboard else f"waits at the {_STANDS[passenger]} stand"
    return (
        f"You drive a taxi, which is in row {row + 1}, column {column + 1} of the town. The "
        f"passenger {where} and wants to go to the {_STANDS[destination]} stand. You should"
    )


def _blackjack(hand: tuple[int, int, int], env: Any) -> str:
    total, card, ace = hand
    shown = "an ace" if card == 1 else f"a {int(card)}"
    usable = ", with an ace that counts eleven" if ace else ""
    return f"Your cards add up to {int(total)}{usable}. The dealer shows {shown}. You should"


_LAKE = Words(
    _frozen_lake, ("go left", "go down", "go right", "go up"), lambda reward, _: reward > 0
)
_FIELD = Words(
    _cliff, ("go up", "go right", "go down", "go left"), lambda _, terminated: terminated
)
_TOWN = Words(
    _taxi,
    (
        "go south",
        "go north",
        "go east",
        "go west",
        "pick up the passenger",
        "drop off the passenger",
    ),
    lambda reward, _: reward == 20,
)
_TABLE = Words(_blackjack, ("stick", "hit"), lambda reward, _: reward > 0)

WORDS: Final[Mapping[str, Words]] = MappingProxyType(
    {
        "FrozenLake-v1": _LAKE,
        "FrozenLake8x8-v1": _LAKE,
        "CliffWalking-v1": _FIELD,
        "CliffWalkingSlippery-v1": _FIELD,
        "Taxi-v4": _TOWN,
        "Blackjack-v1": _TABLE,
    }
)
"""The words, by the environment's id."""
