"""The requests to the desk: drawn from the seed, solvable, and in as few calls as they say."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from tooldesk_search import box, drawn, fewest_calls, told

from poad.envs.tooldesk.desk import ANY, ITEMS, NO_TOOL, TOOLS, Call, run
from poad.envs.tooldesk.families import FAMILIES, TRAIN, UNSEEN
from poad.envs.tooldesk.rules import advance, start
from poad.envs.tooldesk.tasks import BEYOND, draw_unfit, named
from poad.errors import ConfigError

CALLS = {
    "stock": 2,
    "status": 2,
    "redirect": 2,
    "arrival": 3,
    "language": 3,
    "close": 3,
    "undo": 3,
    "home": 4,
    "cancel": 5,
    "complaint": 5,
    "named_status": 4,
    "named_redirect": 4,
    "named_close": 4,
    "two_changes": 4,
    "refund": 5,
    "named_complaint": 6,
}
"""The fewest calls, as the manual says."""
SAID = ("customer", "order", "name", "item", "city", "topic", "priority", "outcome", "method")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_the_manual_knows_every_family():
    assert CALLS.keys() == FAMILIES.keys() == TRAIN.keys() | UNSEEN.keys()
    assert not TRAIN.keys() & UNSEEN.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_solves_the_task_in_the_fewest_calls(family: str):
    for seed in range(6):
        for customers in (2, 4, 7):
            task = drawn(family, seed, customers)
            state = start(task)
            for call in task.plan:
                assert not state.over
                state = advance(task, state, call).state
            assert state.success
            assert len(task.plan) == CALLS[family]
    for seed in range(2):
        task = drawn(family, seed)
        assert fewest_calls(task, box(task)) == CALLS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_goal_tells_what_can_not_be_looked_up_and_nothing_else(family: str):
    for seed in range(40):
        task = drawn(family, seed)
        goal = words(task.goal)
        needed = {str(task.value(fact)) for fact in task.needed}
        assert needed
        assert not needed & goal
        assert {value for kind, value in told(task) if kind in SAID and value != ANY} <= goal
        assert task.goal.endswith(f"Answer with the {task.kind}{FAMILIES[family].of}.")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_look_up_of_a_plan_finds_what_a_later_call_takes(family: str):
    for seed in range(20):
        task = drawn(family, seed)
        state = start(task)
        for call in task.plan:
            move = advance(task, state, call)
            assert move.succeeded == 1.0
            state = move.state
        assert state.used == state.found == task.needed


@pytest.mark.parametrize("family", ["cancel", "named_status", "language", "named_close"])
def test_a_name_and_a_city_name_one_customer_but_a_name_alone_may_not(family: str):
    found = Counter()
    for seed in range(60):
        task = drawn(family, seed)
        name, city = task.plan[0].arguments
        assert len(run(task.desk, Call("find_customer", (name, city))).rows) == 1
        found[len(run(task.desk, Call("find_customer", (name, ANY))).rows)] += 1
    assert found.keys() == {1, 2}


def test_a_seed_draws_records_and_wording_and_equal_seeds_draw_equal_tasks():
    tasks = [drawn("cancel", seed) for seed in range(40)]
    assert tasks == [drawn("cancel", seed) for seed in range(40)]
    assert len({task.desk for task in tasks}) == 40
    assert len({task.goal for task in tasks}) > 35
    for family in FAMILIES.values():
        assert len(family.goals) == 3
    forms = {re.sub(r"\w+", "", task.goal) for task in tasks}
    assert len(forms) == 3
    plans = {tuple(call.tool for call in drawn("undo", seed).plan) for seed in range(20)}
    assert {plan[1] for plan in plans} == {"cancel_order", "refund_order"}


@pytest.mark.parametrize("customers", [2, 3, 4, 16])
def test_desks_have_as_many_records_as_customers_ask_for(customers: int):
    for seed in range(10):
        desk = drawn("status", seed, customers).desk
        sizes = len(desk.customers), len(desk.orders), len(desk.tickets)
        assert sizes == (customers, customers + 2, customers)
        assert len({(order.customer, order.item) for order in desk.orders}) == customers + 2
        assert len({(ticket.customer, ticket.topic) for ticket in desk.tickets}) == customers
        assert len({(each.name, each.city) for each in desk.customers}) == customers
        assert len({each.name for each in desk.customers}) == customers - (customers > 2)
        assert {item for item, _ in desk.stores} == set(ITEMS)


def test_held_out_families_combine_tools_that_are_known_in_new_ways():
    def sequences(families: object) -> set[tuple[str, ...]]:
        return {
            tuple(call.tool for call in drawn(family, seed).plan)
            for family in FAMILIES
            if family in families  # type: ignore[operator]
            for seed in range(10)
        }

    known, new = sequences(TRAIN), sequences(UNSEEN)
    assert not known & new
    assert {tool for plan in new for tool in plan} <= {tool for plan in known for tool in plan}
    assert {tool for plan in known for tool in plan} == TOOLS.keys() - {"decline"}


def test_groups_and_names_of_families():
    assert named("train") == tuple(TRAIN)
    assert named("unseen") == tuple(UNSEEN)
    assert named("all") == tuple(FAMILIES)
    assert named("cancel, status,cancel") == ("cancel", "status")
    with pytest.raises(ConfigError, match=r"no family of tasks 'cancle'. Did you mean 'cancel'"):
        named("status,cancle")
    with pytest.raises(ConfigError, match=r"Choose train, unseen, all, or some of: stock, "):
        named("")


def test_if_no_tool_fits_the_plan_is_to_say_so_at_once():
    rng = np.random.default_rng(0)
    missing, beyond = 0, set()
    for seed in range(200):
        task = drawn("cancel", seed)
        unfit = draw_unfit(rng, task)
        assert unfit.plan == (Call("decline", (NO_TOOL,)),)
        assert unfit.family == "unfit"
        assert not unfit.needed
        assert not unfit.changes
        if unfit.without:
            missing += 1
            assert unfit.without in {call.tool for call in task.plan[:-1]}
            assert unfit.goal == task.goal
        else:
            beyond.add(unfit.goal.split()[-6])
            assert unfit.goal != task.goal
        assert unfit.goal.endswith("Answer with the reference.")
    assert 70 < missing < 130
    assert len(BEYOND) == 4
