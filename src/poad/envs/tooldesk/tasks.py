"""The tasks of the desk: a request with its records, its words, and a shortest plan."""

from typing import Final, NamedTuple

import numpy as np

from poad.envs.tooldesk.desk import CHANGES, CITIES, NO_TOOL, Call, Desk, Value, run
from poad.envs.tooldesk.families import FAMILIES, TRAIN, UNSEEN, Fact, Reference
from poad.envs.tooldesk.scene import Scene
from poad.errors import ConfigError, did_you_mean

BEYOND: Final = (
    *("{name} from {home} wants a new password.", "Print the invoice of {order}."),
    *("Book a taxi to {city} for {name}.", "Delete the account of {name} from {home}."),
)
"""Requests that no tool of the desk serves."""

_CHANGING: Final = frozenset(tool.name for tool in CHANGES)
_IDS: Final = {"C": "customer", "O": "order", "T": "ticket", "R": "reference"}


def kind_of(fact: Fact) -> str:
    """Return the kind of a fact's value."""
    return _IDS[fact.subject[0]] if fact.field == "id" else fact.field


class Task(NamedTuple):
    """A request to the desk."""

    family: str
    goal: str
    desk: Desk
    plan: tuple[Call, ...]
    """A shortest solution for an agent that knows only what it was told. It ends the episode."""
    needed: frozenset[Fact]
    """What the arguments of the plan depend on, apart from the goal."""
    kind: str
    """What an answer is: a kind of value."""
    tools: frozenset[str]
    """The tools that this kind of request takes."""
    asked: Fact | None = None
    """What an answer tells. It must have been found out. None if no tool fits."""
    without: str = ""
    """The one of them that is missing at this desk, if any."""

    @property
    def changes(self) -> frozenset[Call]:
        """The changes that the request asks for."""
        return frozenset(call for call in self.plan if call.tool in _CHANGING)

    def value(self, fact: Fact) -> Value:
        """Look a fact up in the records that the episode begins with."""
        if fact.field == "id":
            return fact.subject
        records = (*self.desk.customers, *self.desk.orders, *self.desk.tickets)
        for record in records:
            if record.id == fact.subject:
                return getattr(record, fact.field)
        return dict(self.desk.stores)[fact.subject]


def named(families: str) -> tuple[str, ...]:
    """List the families that a word stands for: "train", "unseen", "all", or names with commas.

    Raises:
        ConfigError: there is no such family, or this is no text.
    """
    if not isinstance(families, str):
        raise ConfigError(f"families must be a text such as 'stock,status', got {families!r}.")
    groups = {"train": TRAIN, "unseen": UNSEEN, "all": FAMILIES}
    if families in groups:
        return tuple(groups[families])
    names = tuple(name.strip() for name in families.split(","))
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(
                f"There is no family of tasks {name!r}. {did_you_mean(name, [*groups, *FAMILIES])}"
                f"Choose {', '.join(groups)}, or some of: {', '.join(FAMILIES)}."
            )
    return tuple(dict.fromkeys(names))


def draw_task(rng: np.random.Generator, family: str, customers: int) -> Task:
    """Draw a task of a family at a desk with so many customers."""
    scene = Scene(rng, customers)
    goals, kind, draw, of = FAMILIES[family]
    request = draw(scene)
    goal = scene.pick(goals).format(**request.words) + f" Answer with the {kind}{of}."
    task = Task(family, goal, scene.desk, (), frozenset(), kind, frozenset())
    facts, plan, desk = set[Fact](), list[Call](), scene.desk
    confirmed = Fact("", "id")
    for tool, *arguments in (*request.steps, ("answer", request.answer)):
        sources = [confirmed if isinstance(each, Reference) else each for each in arguments]
        facts.update(each for each in sources if isinstance(each, Fact))
        found = tuple(task.value(each) if isinstance(each, Fact) else each for each in sources)
        plan.append(Call(str(tool), found))
        desk, rows, _, changed = run(desk, plan[-1])
        confirmed = Fact(rows[0].subject, "id") if changed else confirmed
    tools = frozenset([call.tool for call in plan] + list(request.also))
    asked = confirmed if isinstance(request.answer, Reference) else request.answer
    return task._replace(plan=tuple(plan), needed=frozenset(facts), tools=tools, asked=asked)


def draw_unfit(rng: np.random.Generator, task: Task) -> Task:
    """Turn a task into one that no tool fits: a tool is missing, or the request is another."""
    plan = (Call("decline", (NO_TOOL,)),)
    unfit = task._replace(family="unfit", plan=plan, needed=frozenset(), asked=None)
    if rng.random() < 0.5:
        tools = sorted(task.tools - {"answer"})
        return unfit._replace(without=tools[int(rng.integers(len(tools)))])
    desk = task.desk
    customer = desk.customers[int(rng.integers(len(desk.customers)))]
    order = desk.orders[int(rng.integers(len(desk.orders)))]
    words = {"name": customer.name, "home": customer.city, "order": order.id}
    words["city"] = CITIES[int(rng.integers(len(CITIES)))]
    goal = BEYOND[int(rng.integers(len(BEYOND)))].format(**words)
    return unfit._replace(goal=f"{goal} Answer with the {task.kind}.")
