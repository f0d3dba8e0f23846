"""The kitchen's prompts: a state becomes facts, and the facts become a prompt and actions.

The prompt states all of the `Facts`, and the actions depend on nothing else, so the offered actions
are a function of the prompt. Both are short because every token costs computation.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from poad.envs.kitchen.rules import (
    HOMES,
    Kitchen,
    Macro,
    State,
    cell_of,
    faced_board,
    in_view,
    is_chopped,
)
from poad.envs.text_world import View


class Thing(NamedTuple):
    """An item as the cook sees it."""

    item: str
    """A food or "bowl"."""
    chopped: bool = False
    contents: tuple[str, ...] = ()
    """The foods in a bowl, in the kitchen's order. The cook cannot see which came first."""


class Facts(NamedTuple):
    """Everything that a prompt states. None means empty or out of view."""

    at_home: tuple[str, ...]
    """The items in view at their home cell."""
    boards: tuple[Thing | None, ...]
    """The item on each board."""
    facing: int | None
    """The board at which the cook stands."""
    hand: Thing | None
    """The item that the cook holds."""


@cache
def view(kitchen: Kitchen, state: State) -> View:
    """Describe a state. There is one action per macro-action, in the same order."""
    facts = see(kitchen, state)
    actions = tuple(_action(kitchen, facts, macro) for macro in kitchen.macros)
    return View(_prompt(kitchen, facts), actions)


def see(kitchen: Kitchen, state: State) -> Facts:
    """Reduce a state to the facts that the cook knows."""

    def look(item: str | None) -> Thing | None:
        if item is None:
            return None
        contents = tuple(f for f in kitchen.foods if f in state.bowl) if item == "bowl" else ()
        return Thing(item, is_chopped(kitchen, state, item), contents)

    return Facts(
        at_home=tuple(
            item
            for item in (*kitchen.foods, "bowl")
            if HOMES[item] == cell_of(kitchen, state, item) and in_view(state.agent, HOMES[item])
        ),
        boards=tuple(
            look(item) if in_view(state.agent, cell) else None
            for cell, item in zip(kitchen.boards, state.boards, strict=True)
        ),
        facing=faced_board(kitchen, state),
        hand=look(state.hand),
    )


def _prompt(kitchen: Kitchen, facts: Facts) -> str:
    recipe = [food for food in kitchen.foods if food in kitchen.recipe]
    boards = "is one cutting board" if len(kitchen.boards) == 1 else "are two cutting boards"
    sentences = [f"Deliver a bowl of only chopped {_join(recipe)}.", f"There {boards}."]
    if facts.at_home:
        sentences.append(f"You see {_join([_article(item) for item in facts.at_home])}.")
    for board, thing in enumerate(facts.boards):
        if thing is not None:
            sentences.append(f"{_board(kitchen, board).capitalize()} holds {_name(thing)}.")
    place = "" if facts.facing is None else f"are at {_board(kitchen, facts.facing)} and "
    sentences.append(f"You {place}hold {'nothing' if facts.hand is None else _name(facts.hand)}.")
    return " ".join([*sentences, "Next, you should"])


def _action(kitchen: Kitchen, facts: Facts, macro: Macro) -> str:
    hand = facts.hand
    match macro.verb:
        case "get" if macro.item == "bowl":
            filled = any(thing and thing.contents for thing in (hand, *facts.boards))
            # With a single food, the two states of the bowl need no different names.
            return "get the bowl" if filled or len(kitchen.foods) == 1 else "get the empty bowl"
        case "get" if hand is not None and hand.item == "bowl":
            return f"add the {macro.item} to the bowl"
        case "get":
            return f"get the {macro.item}"
        # With chopped food in hand the action reads "go to", although it puts the food down.
        case "go" if hand is not None and not hand.chopped:
            return f"put the {hand.item} on {_board(kitchen, macro.board)}"
        case "go":
            return f"go to {_board(kitchen, macro.board)}"
        case "deliver":
            return "deliver nothing" if hand is None else "deliver the dish"
        case "chop":
            there = None if facts.facing is None else facts.boards[facts.facing]
            if there is None or there.item == "bowl":
                return "chop nothing"
            return f"chop the {there.item}"


def _name(thing: Thing) -> str:
    if thing.item == "bowl":
        return f"a bowl of {_join(thing.contents)}" if thing.contents else "an empty bowl"
    return f"{'chopped' if thing.chopped else 'raw'} {thing.item}"


def _board(kitchen: Kitchen, board: int) -> str:
    return "the board" if len(kitchen.boards) == 1 else f"the {('first', 'second')[board]} board"


def _article(item: str) -> str:
    return f"{'an' if item[0] in 'aeiou' else 'a'} {item}"


def _join(words: Sequence[str]) -> str:
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
