"""Search over the kitchen's rules, for the tests that count and optimize."""

from functools import cache

import numpy as np
import search
from numpy.typing import NDArray
from search import RandomPlay, Table

from poad.envs.kitchen.rules import DISCOUNT, Kitchen, State, Transition, transition

LIMIT = 200


@cache
def reachable(kitchen: Kitchen) -> tuple[State, ...]:
    """All states between macro-actions, breadth first from the start; the served ones left out."""
    states = search.reachable(kitchen.start, lambda state: _after(kitchen, state))
    return tuple(state for state in states if not state.served)


def _after(kitchen: Kitchen, state: State) -> list[State]:
    if state.served:
        return []
    return [transition(kitchen, state, slot).state for slot in slots(kitchen)]


def slots(kitchen: Kitchen) -> range:
    return range(len(kitchen.macros))


def transitions(kitchen: Kitchen) -> list[Transition]:
    return [transition(kitchen, s, a) for s in reachable(kitchen) for a in slots(kitchen)]


def run(kitchen: Kitchen, sequence: str) -> list[Transition]:
    """Carry out macro-actions given as slot digits, from the start."""
    state, done = kitchen.start, []
    for slot in sequence.replace(" ", ""):
        done.append(transition(kitchen, state, int(slot)))
        state = done[-1].state
    return done


def fewest_macros(kitchen: Kitchen) -> int:
    """Breadth-first search for the right delivery."""
    return search.fewest_actions(
        kitchen.start, lambda state: _after(kitchen, state), lambda state: state.served
    )


@cache
def table(kitchen: Kitchen) -> Table:
    index = {state: i for i, state in enumerate(reachable(kitchen))}
    shape = len(index), len(kitchen.macros)
    done = transitions(kitchen)
    following = [index.get(t.state, len(index)) for t in done]
    return Table(
        np.array([len(t.moves) for t in done]).reshape(shape),
        np.array(following).reshape(shape),
        np.array([t.reward for t in done]).reshape(shape),
        np.ones(shape, dtype=bool),
    )


def random_play(kitchen: Kitchen) -> RandomPlay:
    return search.random_play(table(kitchen), LIMIT, DISCOUNT)


def best_return(kitchen: Kitchen) -> float:
    return search.best_return(table(kitchen), LIMIT, DISCOUNT)


def best_forever(kitchen: Kitchen, discount: NDArray[np.floating]) -> str:
    """The first 40 slots of the optimal policy without a limit, or fewer if it serves the dish."""
    t = table(kitchen)
    value = np.zeros(t.states + 1)
    for _ in range(2500):
        value[:-1] = (t.reward + discount * value[t.following]).max(axis=1)
    choice = (t.reward + discount * value[t.following]).argmax(axis=1)
    state, sequence = 0, ""
    while state < t.states and len(sequence) < 40:
        sequence += str(choice[state])
        state = int(t.following[state, choice[state]])
    return sequence
