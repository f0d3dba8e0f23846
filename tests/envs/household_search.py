"""Search over the household's rules, for the tests that count and optimize."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import search
from search import Table

from poad.envs.household.rules import (
    House,
    State,
    Transition,
    observe,
    offered,
    reached,
    transition,
)

LIMIT = 50
DISCOUNT = 0.95


@cache
def reachable(house: House, every: bool = False) -> tuple[State, ...]:
    """All states from the start, by offered actions or by `every` action; the endings included."""

    def after(state: State) -> Iterator[State]:
        return (transition(house, state, slot).state for slot in slots(house, state, every))

    return search.reachable(house.start, after)


def slots(house: House, state: State, every: bool = False) -> tuple[int, ...]:
    """The slots to try in a state; none when it is an ending."""
    if reached(house, state):
        return ()
    return tuple(range(len(house.slots))) if every else offered(house, observe(house, state))


@cache
def transitions(house: House, every: bool = False) -> tuple[tuple[State, int, Transition], ...]:
    return tuple(
        (state, slot, transition(house, state, slot))
        for state in reachable(house, every)
        for slot in slots(house, state, every)
    )


def observations(house: House, every: bool = False) -> set[tuple[int, ...]]:
    return {observe(house, state) for state in reachable(house, every)}


def endings(house: House, every: bool = False) -> list[State]:
    return [state for state in reachable(house, every) if reached(house, state)]


@cache
def table(house: House, every: bool = False) -> Table:
    """The task as arrays, with one primitive step per action."""
    states = [state for state in reachable(house, every) if not reached(house, state)]
    index = {state: i for i, state in enumerate(states)}
    shape = len(states), len(house.slots)
    following = np.zeros(shape, dtype=np.int64)
    allowed = np.zeros(shape, dtype=bool)
    for state, slot, done in transitions(house, every):
        following[index[state], slot] = index.get(done.state, len(states))
        allowed[index[state], slot] = True
    reward = np.where(allowed & (following == len(states)), 1.0, 0.0)
    return Table(np.ones(shape, dtype=np.int64), following, reward, allowed)


def merged(house: House) -> dict[State, int]:
    """Number the classes of states that no sequence of offered actions tells apart."""
    looks: dict[State, object] = {state: observe(house, state) for state in reachable(house)}
    classes = _numbered(looks)
    while True:
        refined = _numbered(
            {
                state: (
                    number,
                    *(
                        classes[transition(house, state, slot).state]
                        for slot in slots(house, state)
                    ),
                )
                for state, number in classes.items()
            }
        )
        if len(set(refined.values())) == len(set(classes.values())):
            return refined
        classes = refined


def _numbered(looks: dict[State, object]) -> dict[State, int]:
    numbers: dict[object, int] = {}
    return {state: numbers.setdefault(look, len(numbers)) for state, look in looks.items()}


def dead_ends(house: House, every: bool = False) -> set[State]:
    """The states from which no sequence of actions reaches the goal."""
    hopeful = set(endings(house, every))
    while True:
        more = {state for state, _, done in transitions(house, every) if done.state in hopeful}
        if more <= hopeful:
            return set(reachable(house, every)) - hopeful
        hopeful |= more


def shortest(house: House, every: bool = False) -> list[tuple[int, ...]]:
    """All shortest sequences of slots from the start to the goal."""
    paths: dict[State, list[tuple[int, ...]]] = {house.start: [()]}
    seen = {house.start}
    while paths:
        longer: dict[State, list[tuple[int, ...]]] = {}
        for state, ways in paths.items():
            for slot in slots(house, state, every):
                after = transition(house, state, slot).state
                if after not in seen:
                    longer.setdefault(after, []).extend((*way, slot) for way in ways)
        if found := [way for s, ways in longer.items() if reached(house, s) for way in ways]:
            return found
        paths = longer
        seen.update(paths)
    raise AssertionError("the goal cannot be reached")


def run(house: House, *sequence: int) -> State:
    """Try these slots one after another, from the start."""
    state = house.start
    for slot in sequence:
        state = transition(house, state, slot).state
    return state
