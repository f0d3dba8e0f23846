"""Search over the kitchen's rules, for the tests that count and optimize."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from poad.envs.kitchen.rules import DISCOUNT, Kitchen, State, Transition, transition

LIMIT = 200


@cache
def reachable(kitchen: Kitchen) -> tuple[State, ...]:
    """All states between macro-actions, breadth first from the start; the served ones left out."""
    states = {kitchen.start: None}
    frontier = [kitchen.start]
    while frontier:
        new = (transition(kitchen, s, a).state for s in frontier for a in slots(kitchen))
        frontier = [s for s in dict.fromkeys(new) if not s.served and s not in states]
        states |= dict.fromkeys(frontier)
    return tuple(states)


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
    seen, frontier, depth = {kitchen.start}, [kitchen.start], 0
    while frontier:
        depth += 1
        new = [transition(kitchen, s, a).state for s in frontier for a in slots(kitchen)]
        if any(s.served for s in new):
            return depth
        frontier = [s for s in dict.fromkeys(new) if s not in seen]
        seen.update(frontier)
    raise AssertionError("the dish cannot be served")


@dataclass(frozen=True)
class Table:
    """The whole task as arrays [state, slot]; state index S stands for "served"."""

    steps: NDArray[np.int64]
    following: NDArray[np.int64]
    reward: NDArray[np.float64]

    @property
    def states(self) -> int:
        return len(self.steps)


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
    )


@dataclass(frozen=True)
class RandomPlay:
    """What uniformly random macro-actions lead to under the step limit, exactly."""

    success: float
    mean_return: float
    served_at: set[int]
    """The episode lengths at which the dish can be served."""
    truncated_at: set[int]


def random_play(kitchen: Kitchen) -> RandomPlay:
    """Push the distribution over states forward through the 200 primitive steps."""
    t = table(kitchen)
    served = t.following == t.states
    mass = np.zeros((LIMIT, t.states))
    mass[0, 0] = 1.0
    success, mean_return, served_at, truncated_at = 0.0, 0.0, set[int](), set[int]()
    for step in range(LIMIT):
        chance = np.repeat(mass[step, :, None] / len(kitchen.macros), t.steps.shape[1], axis=1)
        mean_return += DISCOUNT**step * float((chance * t.reward).sum())
        success += float(chance[served].sum())
        later = step + t.steps
        possible = chance > 0
        served_at.update(later[possible & served].tolist())
        truncated_at.update(later[possible & ~served & (later >= LIMIT)].tolist())
        on = possible & ~served & (later < LIMIT)
        np.add.at(mass, (later[on], t.following[on]), chance[on])
    return RandomPlay(success, mean_return, served_at, truncated_at)


def best_return(kitchen: Kitchen) -> float:
    """The largest return of one episode under the limit, by backward induction over the steps."""
    t = table(kitchen)
    value = np.zeros((LIMIT + t.steps.max(), t.states + 1))
    for step in reversed(range(LIMIT)):
        ahead = value[step + t.steps, t.following]
        value[step, :-1] = (t.reward + DISCOUNT**t.steps * ahead).max(axis=1)
    return float(value[0, 0])


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
