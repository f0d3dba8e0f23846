"""Search over the rules of the service desk, for the tests that count and optimize."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from poad.envs.registry import make
from poad.envs.tooldesk.calls import Toolbox
from poad.envs.tooldesk.desk import ANY, TOOLS, Call, Value
from poad.envs.tooldesk.rules import Move, State, advance, start
from poad.envs.tooldesk.tasks import Task, draw_task, kind_of


def desk(seed: int = 0, **arguments: Any) -> Any:
    """An open world, after the reset with this seed."""
    env = make("poad/ToolDesk-v0", **arguments).unwrapped
    env.reset(seed=seed)
    return env


def drawn(family: str, seed: int = 0, customers: int = 4) -> Task:
    """A task of a family."""
    return draw_task(np.random.default_rng(seed), family, customers)


def box(task: Task, distractors: int = 12, seed: int = 0, **kwargs: bool) -> Toolbox:
    """The tools of a task, by their own names."""
    settings = {"masked": False, "opened": False} | kwargs
    return Toolbox(task, distractors, **settings, rng=np.random.default_rng(seed))


def all_calls(toolbox: Toolbox, *tools: str) -> Iterator[Call]:
    """Every admissible call, or every one of some tools."""
    for name, shown in toolbox.shown.items():
        if not tools or name in tools:
            yield from (Call(name, arguments) for arguments in product(*shown.choices))


def random_success(task: Task, toolbox: Toolbox, limit: int) -> float:
    """The success probability of a uniformly random agent, exactly, by trying every call."""
    state = start(task)
    states, mass, success = {_key(task, state): state}, {_key(task, state): 1.0}, 0.0
    chances: dict[Key, tuple[dict[Key, float], float]] = {}
    for _ in range(limit):
        later: dict[Key, float] = {}
        for key, there in mass.items():
            if key not in chances:
                chances[key] = _one_call(task, toolbox, states[key], states)
            onward, won = chances[key]
            success += there * won
            for after, chance in onward.items():
                later[after] = later.get(after, 0.0) + there * chance
        mass = later
    return success


Key = tuple[frozenset[Call], bool]
"""The changes made, and whether the answer was found. Success depends on nothing else."""


def _key(task: Task, state: State) -> Key:
    return state.done, task.asked in state.found


def _one_call(
    task: Task, toolbox: Toolbox, state: State, states: dict[Key, State]
) -> tuple[dict[Key, float], float]:
    """The chances of what is known and done after one call, and that of success."""
    onward, won = dict[Key, float](), 0.0
    for name, shown in toolbox.shown.items():
        size = np.prod([len(choices) for choices in shown.choices])
        chance = 1.0 / (len(toolbox.shown) * float(size))
        for call in all_calls(toolbox, name):
            after = advance(task, state, call).state
            if after.over:
                won += chance * after.success
            else:
                key = _key(task, after)
                states.setdefault(key, after)
                onward[key] = onward.get(key, 0.0) + chance
    return onward, won


def told(task: Task) -> set[tuple[str, Value]]:
    """The values that the goal tells, each with its kind. Of what is needed it tells nothing."""
    found_out = {(kind_of(fact), task.value(fact)) for fact in task.needed}
    return {
        (task.kind if parameter.kind == "value" else parameter.kind, value)
        for call in task.plan
        for parameter, value in zip(TOOLS[call.tool].parameters, call.arguments, strict=True)
    } - found_out


def fewest_calls(task: Task, toolbox: Toolbox) -> int:
    """How many calls an agent needs that only uses what it was told, by breadth-first search.

    It knows what the goal tells and what calls returned, each with its kind.
    """
    frontier = {(start(task), frozenset(told(task)))}
    seen = set(frontier)
    for calls in range(1, 10):
        after = set()
        for state, known in frontier:
            for call in _grounded(task, toolbox, known):
                move = advance(task, state, call)
                if move.state.success:
                    return calls
                if not move.state.over:
                    after.add((move.state, known | _learned(move)))
        frontier = after - seen
        seen |= frontier
    raise AssertionError(f"{task.family} cannot be solved")


def _grounded(task: Task, toolbox: Toolbox, known: frozenset[tuple[str, Value]]) -> Iterator[Call]:
    for name, shown in toolbox.shown.items():
        sets = []
        for parameter, choices in zip(shown.tool.parameters, shown.choices, strict=True):
            kind = task.kind if parameter.kind == "value" else parameter.kind
            sets.append([v for v in choices if v == ANY or (kind, v) in known])
        yield from (Call(name, arguments) for arguments in product(*sets))


def _learned(move: Move) -> set[tuple[str, Value]]:
    ids = {"C": "customer", "O": "order", "T": "ticket", "R": "reference"}
    learned: set[tuple[str, Value]] = set()
    for row in move.outcome.rows:
        learned.add((ids.get(row.subject[0], "item"), row.subject))
        learned |= set(row.fields)
    return learned


class Best:
    """The best policies of an agent that knows everything, by dynamic programming.

    Args:
        task: the task.
        toolbox: its tools.
        steps: True for step-grained rewards.
        gamma: the discount per call.
    """

    def __init__(self, task: Task, toolbox: Toolbox, steps: bool, gamma: float) -> None:
        self.task, self.steps, self.gamma = task, steps, gamma
        self._calls = list(all_calls(toolbox))
        self.value = cache(self._value)
        self.surely = cache(self._surely)
        self._effects = cache(self._effects_of)

    def _effects_of(self, done: frozenset[Call], state: State) -> list[Call]:
        """One call of each effect that calls can have with these changes made.

        Effects depend on the facts found and used only through set operations. So two calls that
        agree if nothing was found, and if everything was, agree in between.
        """
        none = state._replace(found=frozenset(), used=frozenset())
        every = none._replace(found=self.task.needed)
        found: dict[object, Call] = {}
        for call in self._calls:
            moves = [advance(self.task, before, call) for before in (none, every)]
            effect = tuple((m.state, m.succeeded, m.flow, m.contributed) for m in moves)
            found.setdefault(tuple((e[0][1:] if e[0].over else e[0], *e[1:]) for e in effect), call)
        return list(found.values())

    def _options(self, state: State, left: int) -> list[tuple[float, State]]:
        bare = State(state.desk, state.done)
        options = []
        for call in self._effects(state.done, bare):
            move = advance(self.task, state, call)
            reward = float(move.state.success) + (move.pay if self.steps else 0.0)
            ahead = 0.0 if move.state.over else self.value(move.state, left - 1)
            options.append((reward + self.gamma * ahead, move.state))
        return options

    def _value(self, state: State, left: int) -> float:
        """The best return from a state with so many calls left."""
        return max(value for value, _ in self._options(state, left)) if left else 0.0

    def _surely(self, state: State, left: int) -> bool:
        """True if every best policy solves the task."""
        if state.over or not left:
            return state.success
        best = self.value(state, left) - 1e-9
        options = self._options(state, left)
        return all(self.surely(after, left - 1) for value, after in options if value >= best)
