"""The household's rules: rooms, things, and the effects of actions. This module has no prompts.

Everything is a pure function of a `House` (things, actions, goal) and a `State`. The observation is
a row of bits. The goal and the offered actions are tables over these bits, so both are functions of
the observation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple

ROOMS: Final = ("kitchen", "bathroom", "bedroom", "living room")
HOME: Final = "home"
"""The place of an item that has not been moved, somewhere in the kitchen."""
HAND: Final = "hand"
HANDS: Final = 2


class Fixture(NamedTuple):
    """A thing that stays in its room."""

    name: str
    room: str
    kind: Literal["container", "surface", "switch", "seat"]
    """A container opens, a switch turns on. Items go into a container or onto a surface."""
    faces: str = ""
    """For a seat: what it faces."""


class Action(NamedTuple):
    """An action that the agent can try."""

    verb: Literal["enter", "approach", "grab", "put", "activate", "deactivate", "sit", "stand"]
    thing: str
    """A room to enter, or an item or a fixture. To activate is to open or to turn on."""
    onto: str = ""
    """For "put": a container or a surface."""


class Fact(NamedTuple):
    """One bit of the observation. All but "in" are 0 if the thing is not visible."""

    relation: Literal["in", "see", "near", "hold", "placed", "active", "facing", "seated"]
    thing: str
    at: str = ""
    """For "placed": a container or a surface."""


@dataclass(frozen=True, eq=False)  # compared by identity, for use as a cache key
class House:
    """A task without its words.

    A pattern is a string over the observed bits, with 0, 1 or ? (any) for each. Blanks are ignored.
    """

    items: tuple[str, ...]
    """Things that can be carried. They are in the kitchen at first."""
    fixtures: Mapping[str, Fixture]
    slots: tuple[Action, ...]
    observed: tuple[Fact, ...]
    """The bits of the observation, in order."""
    goal: tuple[str, ...]
    """The goal is reached when one of these patterns fits."""
    offers: Mapping[str, tuple[int, ...]]
    """The slots that are offered when a pattern fits. Exactly one pattern fits a state."""

    @property
    def start(self) -> "State":
        """The state after every reset: in the kitchen, with empty hands, near nothing."""
        return State("kitchen", (HOME,) * len(self.items), ("",) * len(self.items))


class State(NamedTuple):
    """The state of the house and of the agent."""

    room: str
    """The room of the agent."""
    places: tuple[str, ...]
    """The place of each item: HOME, HAND, or the name of a fixture."""
    recorded: tuple[str, ...]
    """For each held item, the room where the agent was before its last walk. Otherwise ""."""
    near: frozenset[str] = frozenset()
    """The things near the agent, including all held items."""
    active: frozenset[str] = frozenset()
    """The containers that are open and the switches that are on."""
    sitting: bool = False
    """True from sitting down to standing up."""
    seated: bool = False
    """True from the first sitting down on. Standing up does not reset it."""
    facing: str = ""
    """The thing that the agent faces."""


class Transition(NamedTuple):
    """The result of an action."""

    state: State
    succeeded: bool
    """True if the precondition held. Otherwise the state is unchanged."""


@cache
def transition(house: House, state: State, slot: int) -> Transition:
    """Try the action `slot`, an index into `house.slots`."""
    action = house.slots[slot]
    if not _possible(house, state, action):
        return Transition(state, False)
    return Transition(_effect(house, state, action), True)


@cache
def observe(house: House, state: State) -> tuple[int, ...]:
    """Observe a state as one bit per fact in `house.observed`."""
    return tuple(int(_holds(house, state, fact)) for fact in house.observed)


@cache
def reached(house: House, state: State) -> bool:
    """Return True if a state satisfies the goal, which ends the episode."""
    return any(fits(pattern, observe(house, state)) for pattern in house.goal)


@cache
def offered(house: House, bits: tuple[int, ...]) -> tuple[int, ...]:
    """Look up the slots that are offered to an agent that observes these bits."""
    return next(slots for pattern, slots in house.offers.items() if fits(pattern, bits))


def fits(pattern: str, bits: tuple[int, ...]) -> bool:
    """Return True if the bits agree with a pattern."""
    wanted = pattern.replace(" ", "")
    return all(want in ("?", str(bit)) for want, bit in zip(wanted, bits, strict=True))


def place_of(house: House, state: State, thing: str) -> str:
    """Return an item's place as in `State.places`, and HOME for a fixture."""
    return state.places[house.items.index(thing)] if thing in house.items else HOME


def _sees(house: House, state: State, thing: str) -> bool:
    if thing in house.fixtures:
        return house.fixtures[thing].room == state.room
    place = place_of(house, state, thing)
    if place == HAND:
        return True
    if place == HOME:
        return state.room == "kitchen"
    shut = house.fixtures[place].kind == "container" and place not in state.active
    return house.fixtures[place].room == state.room and not shut


def _holds(house: House, state: State, fact: Fact) -> bool:
    if fact.relation == "in":
        return state.room == fact.thing
    if not _sees(house, state, fact.thing):
        return False
    match fact.relation:
        case "see":
            return True
        case "near":
            return fact.thing in state.near
        case "hold":
            return place_of(house, state, fact.thing) == HAND
        case "placed":
            return place_of(house, state, fact.thing) == fact.at
        case "active":
            return fact.thing in state.active
        case "facing":
            return state.facing == fact.thing
        case "seated":
            return state.seated


def _possible(house: House, state: State, action: Action) -> bool:
    """Check an action's precondition. An agent near a fixture is also in its room."""
    thing, place = action.thing, place_of(house, state, action.thing)
    near, hand_free = thing in state.near, state.places.count(HAND) < HANDS
    match action.verb:
        case "enter":
            return not state.sitting
        case "approach":
            return not state.sitting and _sees(house, state, thing)
        case "grab":
            within_reach = near or place in state.near
            return _sees(house, state, thing) and place != HAND and hand_free and within_reach
        case "put":
            shut = house.fixtures[action.onto].kind == "container" and (
                action.onto not in state.active
            )
            return place == HAND and action.onto in state.near and not shut
        case "activate":
            return near and hand_free and thing not in state.active
        case "deactivate":
            return near and hand_free and thing in state.active
        case "sit":
            return near and not state.sitting
        case "stand":
            return state.sitting


def _effect(house: House, state: State, action: Action) -> State:
    thing, place = action.thing, place_of(house, state, action.thing)
    match action.verb:
        case "enter":
            return _walk(house, state, thing, set())
        case "approach":
            return _walk(
                house, state, _room_of(house, state, thing), {thing, *_tied(house, state, thing)}
            )
        case "grab":
            state = _move(house, state, thing, HAND)
            return state._replace(near=state.near | {thing} | ({place} & house.fixtures.keys()))
        case "put":
            return _move(house, state, thing, action.onto)
        case "activate":
            return state._replace(active=state.active | {thing})
        case "deactivate":
            return state._replace(active=state.active - {thing})
        case "sit":
            return state._replace(sitting=True, seated=True, facing=house.fixtures[thing].faces)
        case "stand":
            return state._replace(sitting=False)


def _walk(house: House, state: State, room: str, near: set[str]) -> State:
    held = {item for item, place in zip(house.items, state.places, strict=True) if place == HAND}
    recorded = tuple(state.room if item in held else "" for item in house.items)
    return state._replace(room=room, recorded=recorded, near=frozenset(near | held), facing="")


def _move(house: House, state: State, item: str, place: str) -> State:
    """Move an item into the hand or out of it."""
    which = house.items.index(item)
    places, recorded = list(state.places), list(state.recorded)
    places[which], recorded[which] = place, state.room if place == HAND else ""
    return state._replace(places=tuple(places), recorded=tuple(recorded))


def _room_of(house: House, state: State, thing: str) -> str:
    """Find the room to which a walk to a thing leads. For a held item it is the recorded one."""
    if thing in house.fixtures:
        return house.fixtures[thing].room
    place = place_of(house, state, thing)
    if place == HAND:
        return state.recorded[house.items.index(thing)]
    return "kitchen" if place == HOME else house.fixtures[place].room


def _tied(house: House, state: State, thing: str) -> set[str]:
    """Things that the agent is also near to: an item's fixture, or a container's contents."""
    if thing in house.items:
        return {place_of(house, state, thing)} & house.fixtures.keys()
    if house.fixtures[thing].kind != "container":
        return set()
    return {item for item, place in zip(house.items, state.places, strict=True) if place == thing}
