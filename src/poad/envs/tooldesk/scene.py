"""The records of an episode, drawn at random, and what a request picks from them."""

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np

from poad.envs.tooldesk import desk as desks
from poad.envs.tooldesk.desk import CITIES, ITEMS, NAMES, Customer, Desk, Order, Ticket

MOST_CUSTOMERS: Final = len(NAMES)

Thing = TypeVar("Thing")


class Scene:
    """A desk in the making, from which a family picks what its request is about."""

    def __init__(self, rng: np.random.Generator, customers: int) -> None:
        self._rng = rng
        self.desk = _draw_desk(rng, customers)

    def pick(self, things: Sequence[Thing]) -> Thing:
        """Draw one of several things."""
        return things[int(self._rng.integers(len(things)))]

    def order(self, *statuses: str) -> Order:
        """Draw an order, and give it one of these statuses."""
        order = self.pick(self.desk.orders)
        order = order._replace(status=self.pick(statuses or desks.STATUSES))
        self._put(order)
        return order

    def ticket(self) -> Ticket:
        """Draw a ticket."""
        return self.pick(self.desk.tickets)

    def customer(self, id: str) -> Customer:
        """Look a customer up."""
        return next(each for each in self.desk.customers if each.id == id)

    def other_city(self, *than: str) -> str:
        """Draw a city that is none of these."""
        return self.pick([city for city in CITIES if city not in than])

    def send(self, order: Order, city: str) -> Order:
        """Let an order go to this city."""
        order = order._replace(city=city)
        self._put(order)
        return order

    def _put(self, order: Order) -> None:
        orders = tuple(order if each.id == order.id else each for each in self.desk.orders)
        self.desk = self.desk._replace(orders=orders)


def _draw_desk(rng: np.random.Generator, customers: int) -> Desk:
    """Draw the records: two customers share their name if there are three or more."""

    def some(pool: Sequence[Thing], number: int) -> list[Thing]:
        return [pool[i] for i in rng.permutation(len(pool))[:number].tolist()]

    def pick(pool: Sequence[Thing]) -> Thing:
        return pool[int(rng.integers(len(pool)))]

    twins = customers >= 3
    names = some(NAMES, customers - twins)
    homes = [pick(CITIES) for _ in range(customers)]
    if twins:
        names.append(names[0])
        homes[-1] = pick([city for city in CITIES if city != homes[0]])
    ids = rng.permutation(customers).tolist()
    people = sorted(
        Customer(f"C{ids[i] + 1}", names[i], homes[i], pick(desks.LANGUAGES))
        for i in range(customers)
    )
    buyers = [each.id for each in people] + [pick(people).id for _ in range(2)]
    bought = {each.id: iter(some(ITEMS, len(ITEMS))) for each in people}
    orders = tuple(
        Order(
            f"O{number}",
            buyer := buyers[i],
            next(bought[buyer]),
            pick(desks.PRICES),
            pick(desks.STATUSES),
            pick(CITIES),
            pick(desks.CARRIERS),
            pick(desks.DAYS),
        )
        for number, i in enumerate(rng.permutation(len(buyers)).tolist(), 1)
    )
    complaints = [(each.id, topic) for each in people for topic in desks.TOPICS]
    drawn = rng.permutation(len(complaints))[:customers].tolist()
    tickets = tuple(Ticket(f"T{n}", *complaints[i]) for n, i in enumerate(drawn, 1))
    stores = tuple((item, pick(desks.STORES)) for item in ITEMS)
    salt = int(rng.integers(2**31))
    return Desk(tuple(people), orders, tickets, stores, salt)
