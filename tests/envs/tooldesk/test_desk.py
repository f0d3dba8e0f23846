"""The desk's tools: what they return, what they change, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tooldesk_search import drawn

from poad.envs.tooldesk import desk as desks
from poad.envs.tooldesk.desk import (
    ANY,
    CHANGES,
    ENDINGS,
    LOOKUPS,
    REFERENCES,
    TOOLS,
    Call,
    Customer,
    Desk,
    Order,
    Ticket,
    reference,
    run,
    values,
)

DESK = Desk(
    customers=(
        Customer("C1", "Ada", "Ulm", "German"),
        Customer("C2", "Ben", "Bern", "French"),
        Customer("C3", "Ada", "Cork", "English"),
    ),
    orders=(
        Order("O1", "C1", "lamp", 4, "open", "Ulm", "Heron", "Monday"),
        Order("O2", "C1", "chair", 7, "packed", "Bern", "Stork", "Friday"),
        Order("O3", "C2", "lamp", 2, "shipped", "Bern", "Falcon", "Tuesday"),
        Order("O4", "C3", "vase", 9, "delivered", "Cork", "Heron", "Thursday"),
    ),
    tickets=(Ticket("T1", "C1", "delay"), Ticket("T2", "C2", "damage", open=False)),
    stores=(("lamp", "north"), ("chair", "east"), ("vase", "west")),
    salt=0,
)
LOOKING = [tool.name for tool in LOOKUPS]
CHANGING = [tool.name for tool in CHANGES]


def seen(tool: str, *arguments: Any) -> dict[str, dict[str, Any]]:
    return {row.subject: dict(row.fields) for row in run(DESK, Call(tool, arguments)).rows}


@st.composite
def calls(draw: st.DrawFn, tools: list[str]) -> tuple[Desk, Call]:
    """An admissible call at some desk."""
    family = draw(st.sampled_from(["status", "undo", "complaint"]))
    desk = drawn(family, draw(st.integers(0, 50))).desk
    tool = TOOLS[draw(st.sampled_from(tools))]
    choices = [(ANY,) * p.filters + values(desk, p.kind) for p in tool.parameters]
    return desk, Call(tool.name, tuple(draw(st.sampled_from(each)) for each in choices))


def test_there_are_twelve_tools_and_two_that_end_with_one_to_eight_parameters():
    assert (len(LOOKUPS) + len(CHANGES), len(ENDINGS), len(TOOLS)) == (12, 2, 14)
    sizes = [len(tool.parameters) for tool in TOOLS.values()]
    assert (min(sizes), max(sizes)) == (1, 8)
    for tool in TOOLS.values():
        names = [parameter.name for parameter in tool.parameters]
        assert len(set(names)) == len(names)


def test_look_ups_return_the_fields_that_they_say():
    assert seen("find_customer", "Ada", "Cork") == {"C3": {"name": "Ada", "city": "Cork"}}
    assert list(seen("find_customer", "Ada", ANY)) == ["C1", "C3"]
    assert seen("get_customer", "C2") == {"C2": {"city": "Bern", "language": "French"}}
    assert seen("find_orders", "C1", "chair", ANY) == {"O2": {"customer": "C1", "item": "chair"}}
    assert list(seen("find_orders", "C1", ANY, "open")) == ["O1"]
    order = {"customer": "C3", "item": "vase", "status": "delivered", "price": 9}
    assert seen("get_order", "O4") == {"O4": order}
    assert seen("track_order", "O3") == {"O3": {"carrier": "Falcon", "day": "Tuesday"}}
    assert seen("check_stock", "chair") == {"chair": {"store": "east"}}
    assert seen("find_tickets", "C1", ANY) == {"T1": {"customer": "C1", "topic": "delay"}}


@given(calls(LOOKING))
def test_look_ups_change_nothing_and_return_records_or_an_error(case: tuple[Desk, Call]):
    desk, call = case
    outcome = run(desk, call)
    assert outcome.desk is desk
    assert not outcome.changed
    assert bool(outcome.rows) != bool(outcome.error)


@given(calls([name for name in LOOKING if TOOLS[name].parameters[-1].filters]))
def test_a_filter_keeps_some_of_the_records_that_any_keeps(case: tuple[Desk, Call]):
    desk, call = case
    filters = [parameter.filters for parameter in TOOLS[call.tool].parameters]
    pairs = zip(filters, call.arguments, strict=True)
    wide = call._replace(arguments=tuple(ANY if f else a for f, a in pairs))
    assert set(run(desk, call).rows) <= set(run(desk, wide).rows)


@given(calls(CHANGING))
def test_a_change_writes_one_record_and_is_confirmed_or_it_is_refused(case: tuple[Desk, Call]):
    desk, call = case
    after, rows, error, changed = run(desk, call)
    if error:
        assert (after, rows, changed) == (desk, (), False)
        assert error.endswith(".")
        return
    assert changed
    ((confirmed, fields),) = rows
    assert confirmed == reference(desk, call)
    written = set(after.orders + after.tickets) - set(desk.orders + desk.tickets)
    assert [record.id for record in written] == [dict(fields)["confirms"]]
    assert after._replace(orders=desk.orders, tickets=desk.tickets) == desk


@given(calls(CHANGING))
def test_no_change_can_be_made_twice(case: tuple[Desk, Call]):
    desk, call = case
    assert not run(run(desk, call).desk, call).changed


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("track_order", "O1"), "O1 is open, so no carrier has it."),
        (("change_address", "O3", "Ulm"), "O3 is shipped, so it cannot be redirected."),
        (("change_address", "O1", "Ulm"), "O1 goes to Ulm already."),
        (("cancel_order", "O2", 7), "O2 is packed, so it cannot be cancelled."),
        (("cancel_order", "O1", 5), "5 is not the price of O1."),
        (("refund_order", "O1", 4, "card"), "O1 is open, so it cannot be refunded."),
        (("refund_order", "O4", 8, "card"), "8 is not the price of O4."),
        (("close_ticket", "T2", "solved"), "T2 is closed already."),
        (("close_ticket", "T3", "solved"), "No such ticket was found."),
        (("find_tickets", "C2", ANY), "No such ticket was found."),
    ],
)
def test_what_cannot_be_done_is_an_error_that_says_why(call: tuple[Any, ...], said: str):
    assert run(DESK, Call(call[0], call[1:])).error == said


@pytest.mark.parametrize("name", TOOLS)
def test_unknown_words_are_errors_too(name: str):
    unknown: dict[str, Any] = {"price": 3, "yes": True}
    arguments = tuple(unknown.get(each.kind, "?") for each in TOOLS[name].parameters)
    outcome = run(DESK, Call(name, arguments))
    assert outcome.desk is DESK
    assert bool(outcome.error) == (name not in ("answer", "decline"))


def test_changes_are_seen_by_later_look_ups():
    opened = run(
        DESK, Call("open_ticket", ("C2", "O3", "delay", "low", "Heron", "Monday", "?", True))
    )
    found = run(opened.desk, Call("find_tickets", ("C2", ANY)))
    assert [row.subject for row in found.rows] == ["T3"]
    cancelled = run(DESK, Call("cancel_order", ("O1", 4)))
    (row,) = run(cancelled.desk, Call("get_order", ("O1",))).rows
    assert dict(row.fields)["status"] == "cancelled"


def test_references_depend_on_the_call_and_the_desk_and_on_nothing_else():
    some = [Call("cancel_order", (f"O{n}", 4)) for n in range(60)]
    assert {reference(DESK, call) for call in some} == set(REFERENCES)
    assert len({reference(DESK._replace(salt=salt), some[0]) for salt in range(60)}) == 6
    other = DESK._replace(tickets=())
    assert [reference(other, call) for call in some] == [reference(DESK, call) for call in some]


def test_values_depend_on_the_number_of_records_alone():
    assert values(DESK, "name") == desks.NAMES
    assert values(DESK, "ticket") == ("T1", "T2", "T3")
    assert values(DESK, "order") == ("O1", "O2", "O3", "O4")
    assert values(DESK, "status") == desks.STATUSES
    for seed in range(20):
        task = drawn("status", seed)
        assert [each.id for each in task.desk.customers] == list(values(task.desk, "customer"))
        assert [each.id for each in task.desk.orders] == list(values(task.desk, "order"))
