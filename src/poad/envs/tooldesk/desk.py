"""The desk: a small database of customers, orders and tickets, and the tools that work on it.

Everything is a pure function of a `Desk` and a `Call`. A tool never raises: what cannot be done is
an `Outcome` with an error.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

Value = str | int | bool
"""The value of an argument or of a field."""

ANY: Final = "any"
"""The value of a filter that keeps every record."""
NAMES: Final = (
    *("Ada", "Ben", "Cleo", "Dora", "Emil", "Finn", "Greta", "Hugo"),
    *("Ines", "Jonas", "Kira", "Leo", "Mara", "Nils", "Olga", "Paul"),
)
CITIES: Final = (
    *("Bern", "Cork", "Ghent", "Graz", "Lyon", "Oslo", "Porto", "Riga", "Turin", "Ulm"),
)
ITEMS: Final = (
    *("lamp", "chair", "table", "clock", "mirror", "carpet", "shelf", "kettle"),
    *("radio", "vase", "tent", "bike", "drum", "globe", "ladder", "sofa", "stove", "trunk"),
)
STATUSES: Final = ("open", "packed", "shipped", "delivered")
"""Statuses of an order. A cancelled or refunded order has that status instead."""
CARRIERS: Final = ("Falcon", "Heron", "Stork")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
LANGUAGES: Final = ("English", "French", "German")
STORES: Final = ("east", "north", "south", "west")
TOPICS: Final = ("damage", "delay", "invoice", "warranty")
PRIORITIES: Final = ("low", "normal", "high")
METHODS: Final = ("card", "transfer", "voucher")
OUTCOMES: Final = ("solved", "withdrawn")
PRICES: Final = tuple(range(1, 10))
REFERENCES: Final = tuple(f"R{i}" for i in range(1, 7))
"""What confirms a change is one of these."""
NO_TOOL: Final = "no tool"


class Customer(NamedTuple):
    """A customer. Two customers may share their name, and then live in different cities."""

    id: str
    name: str
    city: str
    language: str


class Order(NamedTuple):
    """An order of one item. A customer orders an item at most once."""

    id: str
    customer: str
    item: str
    price: int
    status: str
    city: str
    """Where it is sent to."""
    carrier: str
    day: str
    """When it arrives."""


class Ticket(NamedTuple):
    """A complaint."""

    id: str
    customer: str
    topic: str
    order: str = ""
    open: bool = True


class Desk(NamedTuple):
    """All records."""

    customers: tuple[Customer, ...]
    orders: tuple[Order, ...]
    tickets: tuple[Ticket, ...]
    stores: tuple[tuple[str, str], ...]
    """Each item, and the store that has it."""
    salt: int
    """Determines the references of changes."""


class Call(NamedTuple):
    """A call of a tool, with arguments in the order of its parameters."""

    tool: str
    arguments: tuple[Value, ...]


class Row(NamedTuple):
    """Some fields of a record, as a tool returns them."""

    subject: str
    """The id of the record, the name of an item, or the reference of a change."""
    fields: tuple[tuple[str, Value], ...] = ()


class Outcome(NamedTuple):
    """What a call leads to."""

    desk: Desk
    rows: tuple[Row, ...] = ()
    error: str = ""
    """Why nothing was done or found, as a sentence. Empty if all went well."""
    changed: bool = False
    """True if the call changed a record."""


class Parameter(NamedTuple):
    """A parameter of a tool."""

    name: str
    kind: str
    """What its values are; `values` lists them."""
    means: str
    filters: bool = False
    """True if it also takes `ANY`."""


class Tool(NamedTuple):
    """A tool."""

    name: str
    does: str
    parameters: tuple[Parameter, ...]
    act: Callable[..., Outcome]
    """Takes the desk, the call, and the arguments one by one."""


def values(desk: Desk, kind: str) -> tuple[Value, ...]:
    """List the values of a kind of parameter, which depend on the number of records alone.

    Ids of tickets include the one that the next ticket will have.
    """
    if kind in _FIXED:
        return _FIXED[kind]
    records = {"customer": desk.customers, "order": desk.orders, "ticket": desk.tickets}[kind]
    number = len(records) + (kind == "ticket")
    return tuple(f"{kind[0].upper()}{n}" for n in range(1, number + 1))


_FIXED: Final[Mapping[str, tuple[Value, ...]]] = {
    "name": NAMES,
    "item": ITEMS,
    "city": CITIES,
    "status": STATUSES,
    "carrier": CARRIERS,
    "day": DAYS,
    "language": LANGUAGES,
    "store": STORES,
    "topic": TOPICS,
    "priority": PRIORITIES,
    "method": METHODS,
    "outcome": OUTCOMES,
    "price": PRICES,
    "reference": REFERENCES,
    "yes": (False, True),
    "reason": (NO_TOOL,),
}
"""Kinds whose values are the same on every desk."""


def run(desk: Desk, call: Call) -> Outcome:
    """Run a call. Its arguments may be any values of the right types, also unknown ids."""
    return TOOLS[call.tool].act(desk, call, *call.arguments)


def reference(desk: Desk, call: Call) -> str:
    """Return the reference that confirms a change."""
    digest = sha256(f"{desk.salt} {call.tool} {call.arguments}".encode()).digest()
    return REFERENCES[int.from_bytes(digest[:4], "big") % len(REFERENCES)]


# --- look-ups ---


def _find_customer(desk: Desk, call: Call, name: str, city: str) -> Outcome:
    found = [each for each in desk.customers if each.name == name and city in (ANY, each.city)]
    return _rows(desk, "customer", found, "name", "city")


def _get_customer(desk: Desk, call: Call, customer_id: str) -> Outcome:
    return _rows(desk, "customer", _with(desk.customers, customer_id), "city", "language")


def _find_orders(desk: Desk, call: Call, customer_id: str, item: str, status: str) -> Outcome:
    found = [
        each
        for each in desk.orders
        if each.customer == customer_id
        and item in (ANY, each.item)
        and status in (ANY, each.status)
    ]
    return _rows(desk, "order", found, "customer", "item")


def _get_order(desk: Desk, call: Call, order_id: str) -> Outcome:
    found = _with(desk.orders, order_id)
    return _rows(desk, "order", found, "customer", "item", "status", "price")


def _track_order(desk: Desk, call: Call, order_id: str) -> Outcome:
    found = _with(desk.orders, order_id)
    if found and found[0].status not in ("shipped", "delivered"):
        return Outcome(desk, error=f"{order_id} is {found[0].status}, so no carrier has it.")
    return _rows(desk, "order", found, "carrier", "day")


def _check_stock(desk: Desk, call: Call, item: str) -> Outcome:
    rows = tuple(Row(name, (("store", store),)) for name, store in desk.stores if name == item)
    return Outcome(desk, rows, "" if rows else "No such item was found.")


def _find_tickets(desk: Desk, call: Call, customer_id: str, topic: str) -> Outcome:
    found = [
        each
        for each in desk.tickets
        if each.open and each.customer == customer_id and topic in (ANY, each.topic)
    ]
    return _rows(desk, "ticket", found, "customer", "topic")


# --- changes ---


def _change_address(desk: Desk, call: Call, order_id: str, city: str) -> Outcome:
    found = _with(desk.orders, order_id)
    if not found:
        return _rows(desk, "order", found)
    (order,) = found
    if order.status not in ("open", "packed"):
        return Outcome(desk, error=f"{order_id} is {order.status}, so it cannot be redirected.")
    if order.city == city:
        return Outcome(desk, error=f"{order_id} goes to {city} already.")
    return _changed(desk, call, order._replace(city=city))


def _cancel_order(desk: Desk, call: Call, order_id: str, price: int) -> Outcome:
    return _pay_back(desk, call, order_id, price, "open", "cancelled")


def _refund_order(desk: Desk, call: Call, order_id: str, price: int, method: str) -> Outcome:
    return _pay_back(desk, call, order_id, price, "delivered", "refunded")


def _pay_back(
    desk: Desk, call: Call, order_id: str, price: int, before: str, after: str
) -> Outcome:
    found = _with(desk.orders, order_id)
    if not found:
        return _rows(desk, "order", found)
    (order,) = found
    if order.status != before:
        return Outcome(desk, error=f"{order_id} is {order.status}, so it cannot be {after}.")
    if order.price != price:
        return Outcome(desk, error=f"{price} is not the price of {order_id}.")
    return _changed(desk, call, order._replace(status=after))


def _open_ticket(
    desk: Desk, call: Call, customer_id: str, order_id: str, topic: str, *details: Value
) -> Outcome:
    if not _with(desk.customers, customer_id):
        return _rows(desk, "customer", [])
    if not _with(desk.orders, order_id):
        return _rows(desk, "order", [])
    ticket = Ticket(_next_ticket(desk), customer_id, topic, order_id)
    if any(each[1:] == ticket[1:] for each in desk.tickets):
        return Outcome(desk, error=f"{customer_id} has such a ticket already.")
    return _changed(desk._replace(tickets=(*desk.tickets, ticket)), call, ticket)


def _close_ticket(desk: Desk, call: Call, ticket_id: str, outcome: str) -> Outcome:
    found = _with(desk.tickets, ticket_id)
    if not found:
        return _rows(desk, "ticket", found)
    (ticket,) = found
    if not ticket.open:
        return Outcome(desk, error=f"{ticket_id} is closed already.")
    return _changed(desk, call, ticket._replace(open=False))


def _end(desk: Desk, call: Call, word: str) -> Outcome:
    return Outcome(desk)


# --- helpers ---

Record = TypeVar("Record", Customer, Order, Ticket)


def _with(records: tuple[Record, ...], wanted: str) -> list[Record]:
    return [each for each in records if each.id == wanted]


def _rows(desk: Desk, kind: str, found: Sequence[Record], *fields: str) -> Outcome:
    """Return fields of records. No record at all is an error."""
    rows = [
        Row(each.id, tuple((field, getattr(each, field)) for field in fields)) for each in found
    ]
    return Outcome(desk, tuple(rows), "" if rows else f"No such {kind} was found.")


def _changed(desk: Desk, call: Call, record: Order | Ticket) -> Outcome:
    """Write a record, in the place of the one with the same id, and confirm the change."""
    confirmed = (Row(reference(desk, call), (("confirms", record.id),)),)
    if isinstance(record, Order):
        orders = tuple(record if each.id == record.id else each for each in desk.orders)
        return Outcome(desk._replace(orders=orders), confirmed, changed=True)
    tickets = tuple(record if each.id == record.id else each for each in desk.tickets)
    return Outcome(desk._replace(tickets=tickets), confirmed, changed=True)


def _next_ticket(desk: Desk) -> str:
    return f"T{len(desk.tickets) + 1}"


_CUSTOMER: Final = Parameter("customer_id", "customer", "customer")
_ORDER: Final = Parameter("order_id", "order", "order")
_PRICE: Final = Parameter("price", "price", "its price")
_TICKET: Final = Parameter("ticket_id", "ticket", "ticket")

LOOKUPS: Final = (
    Tool(
        "find_customer",
        "finds customers",
        (Parameter("name", "name", "name"), Parameter("city", "city", "city or any", True)),
        _find_customer,
    ),
    Tool("get_customer", "shows city and language", (_CUSTOMER,), _get_customer),
    Tool(
        "find_orders",
        "lists orders",
        (
            _CUSTOMER,
            Parameter("item", "item", "item or any", True),
            Parameter("status", "status", "status or any", True),
        ),
        _find_orders,
    ),
    Tool("get_order", "shows customer, item, status and price", (_ORDER,), _get_order),
    Tool("track_order", "shows carrier and day", (_ORDER,), _track_order),
    Tool("check_stock", "shows the store", (Parameter("item", "item", "item"),), _check_stock),
    Tool(
        "find_tickets",
        "lists open tickets",
        (_CUSTOMER, Parameter("topic", "topic", "topic or any", True)),
        _find_tickets,
    ),
)
"""Tools that change nothing."""

CHANGES: Final = (
    Tool(
        "change_address",
        "redirects an order that was not sent yet",
        (_ORDER, Parameter("city", "city", "new city")),
        _change_address,
    ),
    Tool("cancel_order", "cancels an open order", (_ORDER, _PRICE), _cancel_order),
    Tool(
        "refund_order",
        "pays a delivered order back",
        (_ORDER, _PRICE, Parameter("method", "method", "way of payment")),
        _refund_order,
    ),
    Tool(
        "open_ticket",
        "files a complaint",
        (
            _CUSTOMER,
            _ORDER,
            Parameter("topic", "topic", "topic"),
            Parameter("priority", "priority", "priority"),
            Parameter("carrier", "carrier", "carrier"),
            Parameter("day", "day", "day"),
            Parameter("language", "language", "language"),
            Parameter("callback", "yes", "whether to call back"),
        ),
        _open_ticket,
    ),
    Tool(
        "close_ticket",
        "closes a ticket",
        (_TICKET, Parameter("outcome", "outcome", "outcome")),
        _close_ticket,
    ),
)
"""Tools that change a record and return a reference."""

ENDINGS: Final = (
    Tool("answer", "ends with an answer", (Parameter("value", "value", "answer"),), _end),
    Tool("decline", "ends if no tool fits", (Parameter("reason", "reason", "reason"),), _end),
)
"""Tools that end the episode."""

TOOLS: Final[Mapping[str, Tool]] = {tool.name: tool for tool in (*LOOKUPS, *CHANGES, *ENDINGS)}
"""All tools by name."""
