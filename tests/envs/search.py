"""Search and dynamic programming over the rules of any of our worlds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

State = TypeVar("State")


def reachable(start: State, after: Callable[[State], Iterable[State]]) -> tuple[State, ...]:
    """All states that `after` leads to from the start, breadth first, the start included."""
    states = {start: None}
    frontier = [start]
    while frontier:
        new = dict.fromkeys(later for state in frontier for later in after(state))
        frontier = [state for state in new if state not in states]
        states |= dict.fromkeys(frontier)
    return tuple(states)


def fewest_actions(
    start: State, after: Callable[[State], Iterable[State]], ended: Callable[[State], bool]
) -> int:
    """How many actions it takes to end an episode well."""
    seen, frontier, depth = {start}, [start], 0
    while frontier:
        depth += 1
        new = dict.fromkeys(later for state in frontier for later in after(state))
        if any(ended(state) for state in new):
            return depth
        frontier = [state for state in new if state not in seen]
        seen.update(frontier)
    raise AssertionError("no sequence of actions ends an episode well")


@dataclass(frozen=True)
class Table:
    """A task as arrays [state, slot]; state 0 is the start, state index S stands for success."""

    steps: NDArray[np.int64]
    following: NDArray[np.int64]
    reward: NDArray[np.float64]
    offered: NDArray[np.bool_]
    """Which slots may be chosen; the entries elsewhere mean nothing."""

    @property
    def states(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class RandomPlay:
    """What uniformly random offered actions lead to under a step limit, exactly."""

    success: float
    mean_return: float
    succeeded_at: set[int]
    """The episode lengths at which the goal can be reached."""
    truncated_at: set[int]


def random_play(table: Table, limit: int, discount: float) -> RandomPlay:
    """Push the distribution over states forward through the primitive steps."""
    succeeds = table.following == table.states
    uniform = table.offered / table.offered.sum(axis=1, keepdims=True)
    mass = np.zeros((limit, table.states))
    mass[0, 0] = 1.0
    success, mean_return = 0.0, 0.0
    succeeded_at, truncated_at = set[int](), set[int]()
    for step in range(limit):
        chance = mass[step, :, None] * uniform
        mean_return += discount**step * float((chance * table.reward).sum())
        success += float(chance[succeeds].sum())
        later = step + table.steps
        possible = chance > 0
        succeeded_at.update(later[possible & succeeds].tolist())
        truncated_at.update(later[possible & ~succeeds & (later >= limit)].tolist())
        on = possible & ~succeeds & (later < limit)
        np.add.at(mass, (later[on], table.following[on]), chance[on])
    return RandomPlay(success, mean_return, succeeded_at, truncated_at)


def best_return(table: Table, limit: int, discount: float) -> float:
    """The largest return of one episode under the limit, by backward induction over the steps."""
    value = np.zeros((limit + table.steps.max(), table.states + 1))
    for step in reversed(range(limit)):
        ahead = value[step + table.steps, table.following]
        total = table.reward + discount**table.steps * ahead
        value[step, :-1] = np.where(table.offered, total, -np.inf).max(axis=1)
    return float(value[0, 0])
