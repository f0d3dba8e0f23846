"""The families of requests: their words, and the plans that serve them.

A plan is a sequence of calls. It says of each argument whether the goal tells it, or which fact an
earlier call must find out.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from poad.envs.tooldesk import desk as desks
from poad.envs.tooldesk.desk import ANY, Customer, Order, Value
from poad.envs.tooldesk.scene import Scene


class Fact(NamedTuple):
    """A field of a record. The field "id" stands for the record being known at all."""

    subject: str
    field: str


class Reference(NamedTuple):
    """Stands for the reference of the last change, in a plan."""


REFERENCE: Final = Reference()


Step = tuple[Value | Fact | Reference, ...]
"""A tool and its arguments: what the goal tells, or what must be found out."""


class Request(NamedTuple):
    """What a family draws: the words of its goal, and the steps of its plan before the answer."""

    words: Mapping[str, Value]
    steps: tuple[Step, ...]
    answer: Fact | Reference = REFERENCE
    also: tuple[str, ...] = ()
    """Tools that the plan takes at other desks."""


class Family(NamedTuple):
    """A kind of request."""

    goals: tuple[str, ...]
    """Several wordings."""
    kind: str
    """What the answer is."""
    draw: Callable[[Scene], Request]
    of: str = ""
    """What it is about, where the goal does not make that clear."""


def _by_name(customer: Customer) -> tuple[dict[str, Value], Step, Fact]:
    """Words for a customer, the step that finds out the id, and the id."""
    words: dict[str, Value] = {"name": customer.name, "home": customer.city}
    return words, ("find_customer", customer.name, customer.city), Fact(customer.id, "id")


def _by_item(order: Order, customer: Value | Fact) -> tuple[Step, Fact]:
    """The step that finds a customer's order, and its id."""
    return ("find_orders", customer, order.item, ANY), Fact(order.id, "id")


def _stock(scene: Scene) -> Request:
    item, _ = scene.pick(scene.desk.stores)
    return Request({"item": item}, (("check_stock", item),), Fact(item, "store"))


def _status(scene: Scene) -> Request:
    order = scene.order()
    return Request({"order": order.id}, (("get_order", order.id),), Fact(order.id, "status"))


def _redirect(scene: Scene) -> Request:
    order = scene.order("open", "packed")
    city = scene.other_city(order.city)
    return Request({"order": order.id, "city": city}, (("change_address", order.id, city),))


def _arrival(scene: Scene) -> Request:
    order = scene.order("shipped", "delivered")
    search, found = _by_item(order, order.customer)
    words = {"customer": order.customer, "item": order.item}
    return Request(words, (search, ("track_order", found)), Fact(order.id, "day"))


def _language(scene: Scene) -> Request:
    customer = scene.pick(scene.desk.customers)
    words, search, found = _by_name(customer)
    return Request(words, (search, ("get_customer", found)), Fact(customer.id, "language"))


def _close(scene: Scene) -> Request:
    ticket, outcome = scene.ticket(), scene.pick(desks.OUTCOMES)
    words = {"customer": ticket.customer, "topic": ticket.topic, "outcome": outcome}
    search = ("find_tickets", ticket.customer, ticket.topic)
    return Request(words, (search, ("close_ticket", Fact(ticket.id, "id"), outcome)))


def _undo(scene: Scene) -> Request:
    order, method = scene.order("open", "delivered"), scene.pick(desks.METHODS)
    price = Fact(order.id, "price")
    undo: Step = ("cancel_order", order.id, price)
    if order.status == "delivered":
        undo = ("refund_order", order.id, price, method)
    words = {"order": order.id, "method": method}
    steps = (("get_order", order.id), undo)
    return Request(words, steps, also=("cancel_order", "refund_order"))


def _home(scene: Scene) -> Request:
    order = scene.order("open", "packed")
    customer = scene.customer(order.customer)
    order = scene.send(order, scene.other_city(customer.city))
    steps: tuple[Step, ...] = (
        ("get_order", order.id),
        ("get_customer", Fact(order.id, "customer")),
        ("change_address", order.id, Fact(customer.id, "city")),
    )
    return Request({"order": order.id}, steps)


def _cancel(scene: Scene) -> Request:
    order = scene.order("open")
    words, first, customer = _by_name(scene.customer(order.customer))
    second, found = _by_item(order, customer)
    cancel = ("cancel_order", found, Fact(order.id, "price"))
    return Request(words | {"item": order.item}, (first, second, ("get_order", found), cancel))


def _complaint(scene: Scene) -> Request:
    order = scene.order("shipped", "delivered")
    customer = Fact(order.id, "customer")
    words, ticket = _details(scene, order, customer, order.id)
    steps = (("get_order", order.id), ("track_order", order.id), ("get_customer", customer), ticket)
    return Request(words | {"order": order.id}, steps)


def _details(
    scene: Scene, order: Order, customer: Fact, id: Value | Fact
) -> tuple[dict[str, Value], Step]:
    """Draw what a complaint says, and return its words and the step that files it."""
    topic, priority = scene.pick(desks.TOPICS), scene.pick(desks.PRIORITIES)
    callback = scene.pick((False, True))
    found = (Fact(order.id, "carrier"), Fact(order.id, "day"), Fact(order.customer, "language"))
    call = "with a callback" if callback else "without callback"
    words: dict[str, Value] = {"topic": topic, "priority": priority, "call": call}
    return words, ("open_ticket", customer, id, topic, priority, *found, callback)


def _named_status(scene: Scene) -> Request:
    order = scene.order()
    words, first, customer = _by_name(scene.customer(order.customer))
    second, found = _by_item(order, customer)
    steps = (first, second, ("get_order", found))
    return Request(words | {"item": order.item}, steps, Fact(order.id, "status"))


def _named_redirect(scene: Scene) -> Request:
    order = scene.order("open", "packed")
    words, first, customer = _by_name(scene.customer(order.customer))
    second, found = _by_item(order, customer)
    city = scene.other_city(order.city)
    steps = (first, second, ("change_address", found, city))
    return Request(words | {"item": order.item, "city": city}, steps)


def _named_close(scene: Scene) -> Request:
    ticket, outcome = scene.ticket(), scene.pick(desks.OUTCOMES)
    words, first, customer = _by_name(scene.customer(ticket.customer))
    search = ("find_tickets", customer, ticket.topic)
    close = ("close_ticket", Fact(ticket.id, "id"), outcome)
    return Request(words | {"topic": ticket.topic, "outcome": outcome}, (first, search, close))


def _two_changes(scene: Scene) -> Request:
    redirect, close = _redirect(scene), _close(scene)
    return Request({**redirect.words, **close.words}, redirect.steps + close.steps)


def _refund(scene: Scene) -> Request:
    order, method = scene.order("delivered"), scene.pick(desks.METHODS)
    words, first, customer = _by_name(scene.customer(order.customer))
    second, found = _by_item(order, customer)
    refund = ("refund_order", found, Fact(order.id, "price"), method)
    words |= {"item": order.item, "method": method}
    return Request(words, (first, second, ("get_order", found), refund))


def _named_complaint(scene: Scene) -> Request:
    order = scene.order("shipped", "delivered")
    words, first, customer = _by_name(scene.customer(order.customer))
    second, found = _by_item(order, customer)
    said, ticket = _details(scene, order, customer, found)
    steps = (first, second, ("track_order", found), ("get_customer", customer), ticket)
    return Request(words | said | {"item": order.item}, steps)


TRAIN: Final[Mapping[str, Family]] = {
    "stock": Family(
        (
            "Which store has the {item}?",
            "Where is the {item} kept?",
            "Find the store of the {item}.",
        ),
        "store",
        _stock,
    ),
    "status": Family(
        ("What is the status of {order}?", "How far is {order}?", "Find the status of {order}."),
        "status",
        _status,
    ),
    "redirect": Family(
        ("Send {order} to {city}.", "{order} must go to {city}.", "Let {order} go to {city}."),
        "reference",
        _redirect,
    ),
    "arrival": Family(
        (
            "On which day does {customer} get the {item}?",
            "{customer} asks for the day when the {item} comes.",
            "When does the {item} reach {customer}?",
        ),
        "day",
        _arrival,
    ),
    "language": Family(
        (
            "Which language does {name} from {home} speak?",
            "Find the language of {name} from {home}.",
            "In which language do we write to {name} from {home}?",
        ),
        "language",
        _language,
    ),
    "close": Family(
        (
            "Close the {topic} ticket of {customer} as {outcome}.",
            "{customer} says the {topic} ticket is {outcome}. Close it.",
            "The {topic} ticket of {customer} is {outcome}. Close it.",
        ),
        "reference",
        _close,
    ),
    "undo": Family(
        (
            "Cancel {order} if it is open, else refund it by {method}.",
            "Refund {order} by {method} if it is delivered, else cancel it.",
            "Undo {order}: cancel it while it is open, refund it by {method} if delivered.",
        ),
        "reference",
        _undo,
    ),
    "home": Family(
        (
            "Send {order} to the city of its customer.",
            "{order} must go to where its customer lives.",
            "Let {order} go to the home of its customer.",
        ),
        "reference",
        _home,
    ),
    "cancel": Family(
        (
            "{name} from {home} wants to cancel the {item}.",
            "Cancel the {item} of {name} from {home}.",
            "{name} from {home} no longer needs the {item}. Cancel it.",
        ),
        "reference",
        _cancel,
    ),
    "complaint": Family(
        (
            "File a {priority} {topic} complaint about {order} {call}.",
            "Open a {priority} {topic} ticket about {order} {call}.",
            "About {order}, file a {topic} complaint, {priority}, {call}.",
        ),
        "reference",
        _complaint,
    ),
}
"""The families to train on."""

UNSEEN: Final[Mapping[str, Family]] = {
    "named_status": Family(
        (
            "What is the status of the {item} of {name} from {home}?",
            "How far is the {item} of {name} from {home}?",
            "Find the status of the {item} that {name} from {home} ordered.",
        ),
        "status",
        _named_status,
    ),
    "named_redirect": Family(
        (
            "Send the {item} of {name} from {home} to {city}.",
            "The {item} of {name} from {home} must go to {city}.",
            "Let the {item} of {name} from {home} go to {city}.",
        ),
        "reference",
        _named_redirect,
    ),
    "named_close": Family(
        (
            "Close the {topic} ticket of {name} from {home} as {outcome}.",
            "{name} from {home} says the {topic} ticket is {outcome}. Close it.",
            "The {topic} ticket of {name} from {home} is {outcome}. Close it.",
        ),
        "reference",
        _named_close,
    ),
    "two_changes": Family(
        (
            "Send {order} to {city}. Then close the {topic} ticket of {customer} as {outcome}.",
            "{order} must go to {city}. The {topic} ticket of {customer} is {outcome}. Close it.",
            "Let {order} go to {city}. Close the {topic} ticket of {customer} as {outcome}.",
        ),
        "reference",
        _two_changes,
        " of the ticket",
    ),
    "refund": Family(
        (
            "{name} from {home} returned the {item}. Refund it by {method}.",
            "Refund the {item} of {name} from {home} by {method}.",
            "Pay {name} from {home} back for the {item} by {method}.",
        ),
        "reference",
        _refund,
    ),
    "named_complaint": Family(
        (
            "File a {priority} {topic} complaint about the {item} of {name} from {home} {call}.",
            "Open a {priority} {topic} ticket about the {item} of {name} from {home} {call}.",
            "About the {item} of {name} from {home}, file a {topic} complaint, {priority}, {call}.",
        ),
        "reference",
        _named_complaint,
    ),
}
"""The held-out families: new combinations of tools that the others use."""

FAMILIES: Final = {**TRAIN, **UNSEEN}
