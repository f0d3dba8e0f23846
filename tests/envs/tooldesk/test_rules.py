"""The rules of an episode: chances of a random agent, and what step-grained rewards pay for."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tooldesk_search import Best, all_calls, box, drawn, random_success

from poad.envs.tooldesk.desk import ANY, Call
from poad.envs.tooldesk.families import FAMILIES, Fact
from poad.envs.tooldesk.rules import CONTRIBUTED, SUCCEEDED, Move, State, advance, start
from poad.envs.tooldesk.tasks import Task, draw_unfit

MOST = 10
ASKING = ("stock", "status", "arrival", "language", "named_status")


def walk(task: Task, *calls: Call) -> State:
    state = start(task)
    for call in calls:
        state = advance(task, state, call).state
    return state


def all_of_it(task: Task) -> float:
    """The largest pay of an episode, beside the reward of the answer."""
    return SUCCEEDED * len(task.plan) + CONTRIBUTED * len(task.needed)


# --- a random agent ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_agent_succeeds_rarely_and_distractors_never_help(family: str):
    task = drawn(family, 3, customers=2)
    numbers = (0, 3, 12) if family in ("status", "close", "undo") else (0, 6)
    chances = [random_success(task, box(task, number), MOST) for number in numbers]
    assert chances == sorted(chances, reverse=True)
    assert 0 < chances[-1] < chances[0] < (0.2 if family in ASKING else 0.02)


@pytest.mark.parametrize(("family", "chance"), [("status", 1.8e-3), ("close", 8.1e-4)])
def test_the_chances_that_the_manual_tells_are_exact(family: str, chance: float):
    task = drawn(family)
    assert random_success(task, box(task), MOST) == pytest.approx(chance, rel=0.03)


@pytest.mark.parametrize("family", ["language", "arrival"])
def test_played_at_random_the_success_rate_agrees_with_the_exact_chance(family: str):
    task = drawn(family, 1, customers=2)
    toolbox = box(task, 4)
    dice, shown = random.Random(0), list(toolbox.shown.values())
    episodes, won = 4000, 0
    for _ in range(episodes):
        state = start(task)
        for _ in range(MOST):
            tool = dice.choice(shown)
            arguments = tuple(dice.choice(choices) for choices in tool.choices)
            state = advance(task, state, Call(tool.tool.name, arguments)).state
            if state.over:
                break
        won += state.success
    exact = random_success(task, toolbox, MOST)
    assert abs(won / episodes - exact) < 4 * math.sqrt(exact * (1 - exact) / episodes)


# --- endings ---


@pytest.mark.parametrize("family", FAMILIES)
def test_an_episode_succeeds_by_the_right_answer_after_all_changes_only(family: str):
    task = drawn(family, 5)
    right = task.plan[-1]
    assert walk(task, *task.plan).success
    if task.changes:
        early = walk(task, *[call for call in task.plan if call not in task.changes])
        assert early.over
        assert not early.success
    for call in all_calls(box(task), "answer", "decline"):
        ended = walk(task, *task.plan[:-1], call)
        assert ended.over
        assert ended.success == (call == right)
    assert not walk(task, right).success  # a guess, even if it is right
    blind = walk(task, *[call for call in task.plan if call in task.changes], right)
    assert blind.success == bool(task.changes)  # ids may be guessed, since errors are the desk's


def test_a_change_that_nobody_asked_for_ends_the_episode_and_an_error_does_not():
    task = drawn("close", 2)
    change = next(iter(task.changes))
    refused = Call("close_ticket", (f"T{len(task.desk.tickets) + 1}", "solved"))
    assert not walk(task, refused).over
    for wrong in all_calls(box(task), "close_ticket"):
        if wrong not in (change, refused):
            move = advance(task, start(task), wrong)
            same = [a == b for a, b in zip(wrong.arguments, change.arguments, strict=True)]
            if move.outcome.changed:
                assert move.state.over
                assert not move.state.success
                assert move.succeeded == sum(same) / 2
    once = walk(task, change)
    assert not once.over
    assert not walk(task, change, change).over  # the second one is refused


def test_mistaken_details_are_paid_by_the_share_of_right_arguments():
    task = drawn("complaint", 4)
    (change,) = task.changes
    for place in range(8):
        others = list(all_calls(box(task), "open_ticket"))
        wrong = next(
            call
            for call in others
            if [a == b for a, b in zip(call.arguments, change.arguments, strict=True)]
            == [i != place for i in range(8)]
        )
        move = advance(task, walk(task, *task.plan[:3]), wrong)
        assert (move.succeeded, move.contributed, move.state.over) == (7 / 8, 0, True)


# --- what is paid for ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shortest_solution_collects_everything_that_is_paid(family: str):
    for seed in range(10):
        task = drawn(family, seed)
        state, paid = start(task), 0.0
        for call in task.plan:
            move = advance(task, state, call)
            state, paid = move.state, paid + move.pay
        assert paid == pytest.approx(all_of_it(task))
        assert paid < 1


@settings(deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 30), st.randoms(use_true_random=False))
def test_pay_is_bounded_and_no_call_is_paid_twice(family: str, seed: int, dice: random.Random):
    task = drawn(family, seed)
    toolbox = box(task)
    state, paid = start(task), 0.0
    for _ in range(40):
        tool = dice.choice(list(toolbox.shown.values()))
        call = Call(tool.tool.name, tuple(dice.choice(choices) for choices in tool.choices))
        call = dice.choice([call, dice.choice(task.plan[:-1])])  # so that something is found
        move = advance(task, state, call)
        assert 0 <= move.succeeded <= 1
        assert move.state.used <= move.state.found | state.found <= task.needed
        paid += move.pay
        state = move.state
        if state.over:
            break
        again = advance(task, state, call)
        assert again.succeeded < 1 or again.state.over
        assert again.contributed == 0
    assert paid <= all_of_it(task) + 1e-9


def test_a_guess_that_succeeds_has_taken_nothing_from_earlier_calls():
    task = drawn("cancel", 0)
    find_customer, find_orders, get_order, cancel, _ = task.plan
    customer, order = find_orders.arguments[0], get_order.arguments[0]
    guessed = advance(task, start(task), cancel)
    assert (guessed.succeeded, guessed.flow) == (1.0, frozenset())
    # An id that the agent names itself is not found out by the call that repeats it.
    looked = advance(task, start(task), get_order)
    assert looked.state.found == {Fact(str(order), "price")}
    bought = advance(task, looked.state, cancel)
    assert bought.flow == {Fact(str(order), "price")}
    state = walk(task, find_customer)
    move = advance(task, state, find_orders)
    assert move.flow == {Fact(str(customer), "id")}
    assert move.contributed == 1


def test_a_look_up_without_use_is_not_paid():
    task = drawn("arrival", 1)
    used = {call.arguments[0] for call in task.plan}
    for call in all_calls(
        box(task), "check_stock", "find_customer", "get_customer", "find_tickets"
    ):
        assert advance(task, start(task), call).pay == 0
    for call in all_calls(box(task), "track_order", "get_order"):
        move = advance(task, start(task), call)
        assert bool(move.pay) == (call.tool == "track_order" and call.arguments[0] in used)
    wide = Call("find_orders", (task.plan[0].arguments[0], ANY, ANY))
    assert advance(task, start(task), wide).pay == SUCCEEDED  # another way to the same id


def test_if_no_tool_fits_only_saying_so_is_paid():
    task = next(
        unfit
        for seed in range(20)
        if (unfit := draw_unfit(np.random.default_rng(seed), drawn("arrival"))).without
    )
    toolbox = box(task)
    assert task.without not in toolbox.shown
    for call in all_calls(toolbox):
        if call.tool != "open_ticket":
            move = advance(task, start(task), call)
            assert move.state.success == (call.tool == "decline")
            assert move.pay == (SUCCEEDED if call.tool == "decline" else 0)


SMALL = [(family, 0) for family in FAMILIES if "complaint" not in family] + [
    ("status", 12),
    ("complaint", 0),
]


@pytest.mark.parametrize(("family", "distractors"), SMALL)
def test_every_best_policy_for_step_grained_rewards_solves_the_task(family, distractors):
    """An exact search over all calls, by an agent that knows all records."""
    task = drawn(family, 1, customers=2)
    toolbox, first = box(task, distractors), start(task)
    for gamma in (1.0, 0.99, 0.9) if distractors == 0 and family != "complaint" else (1.0,):
        best = Best(task, toolbox, steps=True, gamma=gamma)
        for limit in range(max(2, len(task.changes) + 1), len(task.plan) + 2):
            assert best.surely(first, limit)
        if gamma == 1:
            most = 1 + all_of_it(task)
            assert best.value(first, len(task.plan)) == pytest.approx(most)
            assert best.value(first, len(task.plan) + 1) == pytest.approx(most)
            assert best.value(first, len(task.plan) - 1) < most - SUCCEEDED / 2


def test_pay_for_every_look_up_would_fail_that_search(monkeypatch: pytest.MonkeyPatch):
    hackable = property(lambda move: 0.6 * bool(move.outcome.rows and not move.outcome.changed))
    monkeypatch.setattr(Move, "pay", hackable)
    task = drawn("cancel", 1, customers=2)
    assert not Best(task, box(task, 0), steps=True, gamma=1.0).surely(start(task), 2)
