"""The kitchen's rules: a 7x7 grid, one cook, and macro-actions. This module has no prompts.

Everything is a pure function of a `Kitchen` (the task) and a `State` (where the items are). A
macro-action is first planned as a string of primitive moves (`_plan`). The moves are then carried
out one by one (`_primitive`), so that all rewards come from primitive steps.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple, TypeAlias

Cell: TypeAlias = tuple[int, int]
"""(row, column), both from 0 to 6, with row 0 at the top. The outer ring is counter."""

START: Final[Cell] = (1, 4)
DELIVERY: Final[Cell] = (3, 0)
BOARDS: Final[tuple[Cell, ...]] = ((1, 0), (2, 0))
HOMES: Final[dict[str, Cell]] = {
    "tomato": (0, 5),
    "lettuce": (1, 6),
    "onion": (2, 6),
    "bowl": (6, 5),
}
MOVES: Final[dict[str, Cell]] = {"R": (0, 1), "D": (1, 0), "L": (0, -1), "U": (-1, 0), "S": (0, 0)}
RECIPES: Final[tuple[frozenset[str], ...]] = (
    frozenset({"tomato"}),
    frozenset({"lettuce"}),
    frozenset({"onion"}),
    frozenset({"lettuce", "tomato"}),
    frozenset({"onion", "tomato"}),
    frozenset({"lettuce", "onion"}),
    frozenset({"lettuce", "onion", "tomato"}),
)
"""All recipes, in the order of the one-hot code in the numeric observation."""

RADIUS: Final = 2
"""The range of the cook's view (Chebyshev distance)."""
CUTS: Final = 3
"""The number of cuts that chop a food."""
DISCOUNT: Final = 0.99
"""The discount per primitive step, for macro-actions and for an episode's return."""
STEP_REWARD: Final = -0.001
CHOP_REWARD: Final = 0.2
DELIVERY_REWARD: Final = 1.0
WRONG_DELIVERY_REWARD: Final = -0.1


class Macro(NamedTuple):
    """One macro-action: get an item, go to a board, deliver, or chop."""

    verb: Literal["get", "go", "deliver", "chop"]
    item: str = ""
    """The item to get: a food or "bowl"."""
    board: int = 0
    """The board to go to, from 0."""


@dataclass(frozen=True, eq=False)  # compared by identity, for use as a cache key
class Kitchen:
    """A task: the recipe, the foods and the boards."""

    recipe: frozenset[str]
    """The foods that, all chopped, must be in the bowl when it is delivered."""
    foods: tuple[str, ...]
    """The foods in this kitchen, one of each."""
    boards: tuple[Cell, ...]
    """The cells of the cutting boards."""

    @property
    def macros(self) -> tuple[Macro, ...]:
        """The macro-actions, in slot order."""
        return (
            *(Macro("get", item) for item in (*self.foods, "bowl")),
            *(Macro("go", board=board) for board in range(len(self.boards))),
            Macro("deliver"),
            Macro("chop"),
        )

    @property
    def start(self) -> "State":
        """The state after every reset: all items are at home, and the cook holds nothing."""
        return State(START, None, (None,) * len(self.boards), (0,) * len(self.foods), ())


class State(NamedTuple):
    """The positions of all items. An item that is nowhere else is at home, or delivered."""

    agent: Cell
    hand: str | None
    """The item that the cook holds: a food, "bowl" or None."""
    boards: tuple[str | None, ...]
    """The item on each board."""
    cuts: tuple[int, ...]
    """The number of cuts of each of the kitchen's foods, 0 to 3. Between macro-actions 0 or 3."""
    bowl: tuple[str, ...]
    """The foods in the bowl, in the order in which they were added."""
    served: bool = False
    """True if the right dish was delivered, which ends the episode."""


class Transition(NamedTuple):
    """The result of a macro-action."""

    state: State
    moves: str
    """The primitive steps. R, D, L and U move, or bump into the counter; S stays."""
    rewards: tuple[float, ...]
    """One reward per primitive step."""
    reward: float
    """Σ .99ᵏ · rewards[k]."""


TOMATO_SALAD: Final = Kitchen(frozenset({"tomato"}), ("tomato",), BOARDS[:1])
TOMATO_LETTUCE_SALAD: Final = Kitchen(
    frozenset({"lettuce", "tomato"}), ("tomato", "lettuce", "onion"), BOARDS
)


@cache
def transition(kitchen: Kitchen, state: State, slot: int) -> Transition:
    """Carry out the macro-action `slot`, an index into `kitchen.macros`."""
    return carry_out(kitchen, state, _plan(kitchen, state, kitchen.macros[slot]))


def carry_out(kitchen: Kitchen, state: State, moves: str) -> Transition:
    """Carry out a string of primitive moves."""
    rewards: list[float] = []
    total, factor = 0.0, 1.0
    for move in moves:
        state, reward = _primitive(kitchen, state, move)
        rewards.append(reward)
        total += factor * reward
        factor *= DISCOUNT
    return Transition(state, moves, tuple(rewards), total)


def is_chopped(kitchen: Kitchen, state: State, item: str | None) -> bool:
    """Return True if the item is a chopped food."""
    return item in kitchen.foods and state.cuts[kitchen.foods.index(item)] == CUTS


def is_raw(kitchen: Kitchen, state: State, item: str | None) -> bool:
    """Return True if the item is a food that is not chopped."""
    return item in kitchen.foods and not is_chopped(kitchen, state, item)


def cell_of(kitchen: Kitchen, state: State, item: str) -> Cell:
    """Find the cell of an item. Items in the hand or in the bowl are at their holder's cell."""
    holder = _holder(state, item)
    if holder == state.hand:
        return state.agent
    if holder in state.boards:
        return kitchen.boards[state.boards.index(holder)]
    return DELIVERY if state.served and holder == "bowl" else HOMES[holder]


def faced_board(kitchen: Kitchen, state: State) -> int | None:
    """Return the index of the board at which the agent stands, or None."""
    stands = [_stand_cell(board) for board in kitchen.boards]
    return stands.index(state.agent) if state.agent in stands else None


def in_view(agent: Cell, target: Cell) -> bool:
    """Return True if an agent sees the target."""
    return max(abs(agent[0] - target[0]), abs(agent[1] - target[1])) <= RADIUS


def numeric_observation(kitchen: Kitchen, state: State) -> list[int]:
    """Encode what the agent sees: 18 numbers for tomato salad, 26 for tomato-lettuce salad.

    They are the row, column and cuts of every food, then the row and column of the bowl, of every
    board, of the delivery counter and of the agent, then the recipe as a one-hot code. Numbers of
    things out of view are 0.
    """
    things = [
        *((*cell_of(kitchen, state, f), n) for f, n in zip(kitchen.foods, state.cuts, strict=True)),
        cell_of(kitchen, state, "bowl"),
        *kitchen.boards,
        DELIVERY,
        state.agent,
    ]
    seen = [x if in_view(state.agent, thing[:2]) else 0 for thing in things for x in thing]
    return seen + [int(recipe == kitchen.recipe) for recipe in RECIPES]


# --- planning: the primitive moves of a macro-action ----------------------------------------------


def _plan(kitchen: Kitchen, state: State, macro: Macro) -> str:
    match macro.verb:
        case "get" if macro.item == "bowl":
            return _plan_get_bowl(kitchen, state)
        case "get":
            return _plan_get_food(kitchen, state, macro.item)
        case "go":
            return _visit(state, kitchen.boards[macro.board], bump=state.hand is not None)
        case "deliver":
            at_counter = state.agent == _stand_cell(DELIVERY)
            return _visit(state, DELIVERY, bump=state.hand is not None or at_counter)
        case "chop":
            board = faced_board(kitchen, state)
            if board is None or not is_raw(kitchen, state, state.boards[board]):
                return "S"
            return _bump(kitchen.boards[board]) * CUTS


def _plan_get_food(kitchen: Kitchen, state: State, food: str) -> str:
    holder, cell = _holder(state, food), cell_of(kitchen, state, food)
    if holder == state.hand:
        return "S"
    if holder == "bowl":  # on a board; the cook only walks until it is in view
        return _approach(state, cell) + "S"
    # Bumping into raw food on a board would cut it, so the cook only goes there.
    raw_on_board = food in state.boards and is_raw(kitchen, state, food)
    return _visit(state, cell, bump=not raw_on_board)


def _plan_get_bowl(kitchen: Kitchen, state: State) -> str:
    if state.hand == "bowl":
        return "S"
    cell = cell_of(kitchen, state, "bowl")
    path, bump = _path(state.agent, _stand_cell(cell)), _bump(cell)
    if state.hand is None:
        return path + bump
    if is_raw(kitchen, state, state.hand):
        return path + "S"
    # Chopped food goes into the bowl. If the bowl is on a board, the cook then holds it. At home,
    # a second bump picks it up.
    return path + bump + ("S" if "bowl" in state.boards else bump)


def _visit(state: State, target: Cell, *, bump: bool) -> str:
    path = _path(state.agent, _stand_cell(target))
    return path + _bump(target) if bump else path or "S"


def _approach(state: State, target: Cell) -> str:
    """Walk toward the target until it is in view."""
    path, agent = _path(state.agent, _stand_cell(target)), state.agent
    for walked, move in enumerate(path):
        if in_view(agent, target):
            return path[:walked]
        agent = _neighbor(agent, move)
    return path


def _path(start: Cell, goal: Cell) -> str:
    """Walk to the goal's row, then along the row."""
    rows, columns = goal[0] - start[0], goal[1] - start[1]
    return ("D" if rows > 0 else "U") * abs(rows) + ("R" if columns > 0 else "L") * abs(columns)


def _bump(target: Cell) -> str:
    return _path(_stand_cell(target), target)


def _stand_cell(target: Cell) -> Cell:
    """Return the floor cell next to a counter cell, which must not be a corner."""
    row, column = (min(max(x, 1), 5) for x in target)
    return row, column


def _neighbor(cell: Cell, move: str) -> Cell:
    return cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]


def _holder(state: State, item: str) -> str:
    return "bowl" if item in state.bowl else item


# --- primitive steps and their rewards ------------------------------------------------------------


def _primitive(kitchen: Kitchen, state: State, move: str) -> tuple[State, float]:
    cell = _neighbor(state.agent, move)
    if cell == _stand_cell(cell):  # floor
        return state._replace(agent=cell), STEP_REWARD
    if cell == DELIVERY:
        state, event = _deliver(kitchen, state)
    elif cell in kitchen.boards:
        state, event = _use_board(kitchen, state, kitchen.boards.index(cell))
    else:
        state, event = _use_home(kitchen, state, cell), 0.0
    return state, STEP_REWARD + event


def _deliver(kitchen: Kitchen, state: State) -> tuple[State, float]:
    if state.hand is None:
        return state, 0.0
    if state.hand == "bowl" and set(state.bowl) == kitchen.recipe:
        return state._replace(hand=None, served=True), DELIVERY_REWARD
    # Any other delivery returns to its home, and its foods become raw.
    returned = (state.hand, *state.bowl) if state.hand == "bowl" else (state.hand,)
    cuts = (
        0 if food in returned else count
        for food, count in zip(kitchen.foods, state.cuts, strict=True)
    )
    bowl = () if state.hand == "bowl" else state.bowl
    return state._replace(hand=None, cuts=tuple(cuts), bowl=bowl), WRONG_DELIVERY_REWARD


def _use_board(kitchen: Kitchen, state: State, board: int) -> tuple[State, float]:
    there = state.boards[board]

    def put(item: str | None) -> tuple[str | None, ...]:
        return (*state.boards[:board], item, *state.boards[board + 1 :])

    if there is None or (state.hand is None and not is_raw(kitchen, state, there)):
        return state._replace(hand=there, boards=put(state.hand)), 0.0  # put it down or pick it up
    if state.hand is None:
        return _cut(kitchen, state, there)
    foods = [item for item in (state.hand, there) if item != "bowl"]
    if len(foods) == 1 and is_chopped(kitchen, state, foods[0]):  # the other item is the bowl
        return state._replace(hand="bowl", boards=put(None), bowl=(*state.bowl, *foods)), 0.0
    return state, 0.0


def _cut(kitchen: Kitchen, state: State, food: str) -> tuple[State, float]:
    which = kitchen.foods.index(food)
    count = state.cuts[which] + 1
    cuts = (*state.cuts[:which], count, *state.cuts[which + 1 :])
    paid = count == CUTS and food in kitchen.recipe
    return state._replace(cuts=cuts), CHOP_REWARD if paid else 0.0


def _use_home(kitchen: Kitchen, state: State, cell: Cell) -> State:
    for item in (*kitchen.foods, "bowl"):
        if HOMES[item] == cell == cell_of(kitchen, state, item):
            if state.hand is None:
                return state._replace(hand=item)
            if item == "bowl" and is_chopped(kitchen, state, state.hand):
                return state._replace(hand=None, bowl=(*state.bowl, state.hand))
    return state
