"""The rules of an episode: what a call leads to, whether it succeeds, and what it contributes.

Everything is a pure function of a task and a state, so that tests can search over it.
"""

from typing import Final, NamedTuple

from poad.envs.tooldesk.desk import ENDINGS, TOOLS, Call, Desk, Outcome, Row, run
from poad.envs.tooldesk.families import Fact
from poad.envs.tooldesk.tasks import Task, kind_of

SUCCEEDED: Final = 0.05
"""The pay for a call that succeeds, in step-grained rewards."""
CONTRIBUTED: Final = 0.05
"""The pay for a found fact when it is first used by a call that succeeds."""

_ENDING: Final = frozenset(tool.name for tool in ENDINGS)


class State(NamedTuple):
    """The state of an episode, apart from its length."""

    desk: Desk
    done: frozenset[Call] = frozenset()
    """The changes that were asked for and made."""
    found: frozenset[Fact] = frozenset()
    """The needed facts that calls have returned."""
    used: frozenset[Fact] = frozenset()
    """The needed facts that were found and have been used."""
    over: bool = False
    success: bool = False


class Move(NamedTuple):
    """What a call leads to."""

    state: State
    outcome: Outcome
    succeeded: float
    """1 if the call gave what was asked. Between 0 and 1 for a change of the right kind that was
    not asked for: the share of its right arguments."""
    flow: frozenset[Fact]
    """The facts that a successful call took from earlier results."""
    contributed: int
    """The number of facts in `flow` that no successful call had used before."""

    @property
    def pay(self) -> float:
        """The step-grained pay, beside the reward of the answer."""
        return SUCCEEDED * self.succeeded + CONTRIBUTED * self.contributed


def start(task: Task) -> State:
    """Return the state that the episode begins with."""
    return State(task.desk)


def advance(task: Task, state: State, call: Call) -> Move:
    """Carry out a call."""
    outcome = run(state.desk, call)
    found = state.found | (facts(call, outcome.rows) & task.needed)
    if call.tool in _ENDING:
        known = task.asked is None or task.asked in state.found
        success = call == task.plan[-1] and known and state.done == task.changes
        after = state._replace(over=True, success=success)
        succeeded = float(success)
    elif outcome.changed:
        asked = call in task.changes - state.done
        succeeded = 1.0 if asked else _share(task, state, call)
        done = state.done | ({call} if asked else frozenset())
        after = State(outcome.desk, done, found, state.used, over=not asked)
    else:
        succeeded = float(found > state.found)
        after = state._replace(found=found)
    flow = _flow(state, task, call) if succeeded == 1.0 else frozenset[Fact]()
    after = after._replace(used=state.used | flow)
    return Move(after, outcome, succeeded, flow, len(flow - state.used))


def facts(call: Call, rows: tuple[Row, ...]) -> frozenset[Fact]:
    """List what the rows tell that a call returned. An id that was an argument is nothing new."""
    fields = [(row.subject, field) for row in rows for field, _ in row.fields]
    ids = [(row.subject, "id") for row in rows if row.subject not in call.arguments]
    return frozenset(Fact(*each) for each in fields + ids)


def _flow(state: State, task: Task, call: Call) -> frozenset[Fact]:
    """List the found facts whose values stand in the arguments of their kind."""
    kinds = [parameter.kind for parameter in TOOLS[call.tool].parameters]
    kinds = [task.kind if kind == "value" else kind for kind in kinds]
    given = set(zip(kinds, call.arguments, strict=True))
    return frozenset(fact for fact in state.found if (kind_of(fact), task.value(fact)) in given)


def _share(task: Task, state: State, call: Call) -> float:
    """The largest share of arguments that agree with a change of this kind that is asked for."""
    asked = [each.arguments for each in task.changes - state.done if each.tool == call.tool]
    shares = [sum(a == b for a, b in zip(call.arguments, each, strict=True)) for each in asked]
    return max(shares, default=0) / len(call.arguments)
