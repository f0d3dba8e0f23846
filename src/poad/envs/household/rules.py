"""The household's rules: rooms, things, and what an agent's actions do. No words are chosen here.

Everything is a pure function of a `House` (what there is, what can be done, what counts) and a
`State` (how things are). What the agent perceives is a row of bits, and the goal and the offered
actions are tables over these bits, so both are functions of the observation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple

ROOMS: Final = ("kitchen", "bathroom", "bedroom", "living room")
HOME: Final = "home"
"""The place of an item nobody has moved: somewhere in the kitchen."""
HAND: Final = "hand"
HANDS: Final = 2


class Fixture(NamedTuple):
    """Something that stays in its room."""

    name: str
    room: str
    kind: Literal["container", "surface", "switch", "seat"]
    """A container opens, a switch turns on; items go into a container or onto a surface."""
    faces: str = ""
    """What one faces on this seat."""


class Action(NamedTuple):
    """One thing the agent can try."""

    verb: Literal["enter", "approach", "grab", "put", "activate", "deactivate", "sit", "stand"]
    thing: str
    """A room to enter, else an item or a fixture. To activate is to open or to turn on."""
    onto: str = ""
    """Where to put an item: a container or a surface."""


class Fact(NamedTuple):
    """One bit of the observation. All but "in" are 0 where the thing is not visible."""

    relation: Literal["in", "see", "near", "hold", "placed", "active", "facing", "seated"]
    thing: str
    at: str = ""
    """Where an item is "placed": a container or a surface."""


@dataclass(frozen=True, eq=False)  # compared by identity, which makes it a cheap cache key
class House:
    """A task without its words. A pattern has one of 0, 1, ? per observed bit; blanks are free."""

    items: tuple[str, ...]
    """What can be carried; all of it is in the kitchen at first."""
    fixtures: Mapping[str, Fixture]
    slots: tuple[Action, ...]
    observed: tuple[Fact, ...]
    """The bits of the observation, in order."""
    goal: tuple[str, ...]
    """Patterns, any of which is success."""
    offers: Mapping[str, tuple[int, ...]]
    """The slots that are offered where a pattern fits; exactly one does."""

    @property
    def start(self) -> "State":
        """The state after every reset: in the kitchen, hands empty, near nothing."""
        return State("kitchen", (HOME,) * len(self.items), ("",) * len(self.items))


class State(NamedTuple):
    """How things are."""

    room: str
    """Where the agent is."""
    places: tuple[str, ...]
    """Where each item is: HOME, HAND, or the name of a fixture."""
    recorded: tuple[str, ...]
    """For each held item the room the house believes it to be in, one walk behind; else ""."""
    near: frozenset[str] = frozenset()
    """What the agent is close to; every held item is."""
    active: frozenset[str] = frozenset()
    """The containers that are open and the switches that are on."""
    sitting: bool = False
    """The posture. Standing up ends it."""
    seated: bool = False
    """That the agent is on the seat. It sat down once; standing up does not end this."""
    facing: str = ""


class Transition(NamedTuple):
    """What an action did."""

    state: State
    succeeded: bool
    """Whether its precondition held. If not, the state is as before."""


@cache
def transition(house: House, state: State, slot: int) -> Transition:
    """Try the action at `slot` (an index into `house.slots`)."""
    action = house.slots[slot]
    if not _possible(house, state, action):
        return Transition(state, False)
    return Transition(_effect(house, state, action), True)


@cache
def observe(house: House, state: State) -> tuple[int, ...]:
    """Perceive a state: one bit per fact in `house.observed`."""
    return tuple(int(_holds(house, state, fact)) for fact in house.observed)


@cache
def reached(house: House, state: State) -> bool:
    """Tell whether a state satisfies the goal, which ends the episode."""
    return any(fits(pattern, observe(house, state)) for pattern in house.goal)


@cache
def offered(house: House, bits: tuple[int, ...]) -> tuple[int, ...]:
    """Look up the slots that are listed to an agent who perceives these bits."""
    return next(slots for pattern, slots in house.offers.items() if fits(pattern, bits))


def fits(pattern: str, bits: tuple[int, ...]) -> bool:
    """Tell whether bits agree with a pattern."""
    wanted = pattern.replace(" ", "")
    return all(want in ("?", str(bit)) for want, bit in zip(wanted, bits, strict=True))


def place_of(house: House, state: State, thing: str) -> str:
    """Give an item's place, as in `State.places`; a fixture's is HOME."""
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
    """Tell whether an action's precondition holds. Who is near a fixture is in its room."""
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
    """Take an item into the hand, or put it somewhere."""
    which = house.items.index(item)
    places, recorded = list(state.places), list(state.recorded)
    places[which], recorded[which] = place, state.room if place == HAND else ""
    return state._replace(places=tuple(places), recorded=tuple(recorded))


def _room_of(house: House, state: State, thing: str) -> str:
    """Tell where a walk to a thing leads: for a held item, to the room recorded for it."""
    if thing in house.fixtures:
        return house.fixtures[thing].room
    place = place_of(house, state, thing)
    if place == HAND:
        return state.recorded[house.items.index(thing)]
    return "kitchen" if place == HOME else house.fixtures[place].room


def _tied(house: House, state: State, thing: str) -> set[str]:
    """What one is near, too, when near a thing: an item's fixture, a container's contents."""
    if thing in house.items:
        return {place_of(house, state, thing)} & house.fixtures.keys()
    if house.fixtures[thing].kind != "container":
        return set()
    return {item for item, place in zip(house.items, state.places, strict=True) if place == thing}
