"""The household's rules: every row of the action tables, and the numbers they add up to."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from household_search import (
    DISCOUNT,
    LIMIT,
    dead_ends,
    endings,
    merged,
    observations,
    reachable,
    run,
    shortest,
    slots,
    table,
    transitions,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from search import Table, best_return, fewest_actions, random_play

from poad.envs.household.rules import (
    HAND,
    HOME,
    House,
    State,
    Transition,
    fits,
    observe,
    offered,
    reached,
    transition,
)
from poad.envs.household.tasks import CHORE, EVENING, TASKS
from poad.envs.household.text import view

BOTH = pytest.mark.parametrize("house", [CHORE, EVENING], ids=["chore", "evening"])
EITHER_WAY = pytest.mark.parametrize("every", [False, True], ids=["offered", "every action"])
CONFORMANCE = Path(__file__).parents[3] / "shared/conformance/household_food_preparation.json"
K, BA, BE, L = "kitchen", "bathroom", "bedroom", "living room"
ROOM_OF_SLOT = (L, K, BA, BE)


def chore(
    room: str = K, place: str = HOME, near: str = "", open: bool = False, recorded: str = ""
) -> State:
    """A state of a chore. `near` lists what is near, separated by blanks."""
    active = frozenset({"appliance"} if open else ())
    return State(room, (place,), (recorded,), frozenset(near.split()), active)


def evening(
    room: str = K,
    chips: str = HOME,
    milk: str = HOME,
    near: str = "",
    on: bool = False,
    recorded: tuple[str, str] = ("", ""),
    sitting: bool = False,
    seated: bool = False,
    facing: str = "",
) -> State:
    """A state of the evening."""
    active = frozenset({"tv"} if on else ())
    near_set = frozenset(near.split())
    return State(room, (chips, milk), recorded, near_set, active, sitting, seated, facing)


def only(item: str, place: str) -> tuple[str, str]:
    """Places of chips and milk, one of them moved."""
    return (place, HOME) if item == "chips" else (HOME, place)


def do(state: State, slot: int) -> Transition:
    """Try a slot, in the house whose state this is."""
    return transition(CHORE if len(state.places) == 1 else EVENING, state, slot)


def fails(state: State, slot: int) -> bool:
    return do(state, slot) == Transition(state, False)


def gives(before: State, slot: int, after: State) -> bool:
    return do(before, slot) == Transition(after, True)


# Walking


@pytest.mark.parametrize("slot", range(4))
@pytest.mark.parametrize("room", [K, BA, BE, L])
def test_walking_to_a_room_leaves_all_but_the_held_items(room: str, slot: int):
    to = ROOM_OF_SLOT[slot]
    assert gives(chore(room, open=True), slot, chore(to, open=True))
    assert gives(chore(near="item appliance", place="appliance"), slot, chore(to, "appliance"))
    held = chore(room, HAND, "item", recorded=BA)
    assert gives(held, slot, chore(to, HAND, "item", recorded=room))
    before = evening(room, HAND, "table", "chips", on=True, recorded=(BE, ""), facing="tv")
    after = evening(to, HAND, "table", "chips", on=True, recorded=(room, ""))
    assert gives(before, slot, after)


def test_walking_to_the_current_room_resets_what_is_near():
    assert gives(chore(near="item"), 1, chore())
    assert gives(evening(L, near="tv"), 0, evening(L))


@pytest.mark.parametrize("slot", range(9))
def test_a_sitting_agent_cannot_walk(slot: int):
    state = evening(L, HAND, "table", "chips sofa", True, (L, ""), True, True, "tv")
    assert fails(state, slot)
    assert do(state._replace(sitting=False), slot).succeeded


# Food preparation, row by row


def test_walking_to_the_item():
    assert gives(chore(near="appliance"), 4, chore(near="item"))
    inside = chore(place="appliance", open=True)
    assert gives(inside, 4, chore(place="appliance", near="item appliance", open=True))
    assert fails(chore(place="appliance"), 4)  # behind the shut door
    assert fails(chore(BA), 4)


@pytest.mark.parametrize("recorded", [K, BA, BE, L])
@pytest.mark.parametrize("room", [K, BA, BE, L])
def test_walking_to_the_held_item_leads_to_the_room_recorded_for_it(room: str, recorded: str):
    before = chore(room, HAND, "item appliance" if room == K else "item", recorded=recorded)
    assert gives(before, 4, chore(recorded, HAND, "item", recorded=room))


def test_the_teleport_quirk_goes_back_and_forth():
    assert run(CHORE, 4, 6, 0, 1) == chore(K, HAND, "item", recorded=L)
    assert run(CHORE, 4, 6, 0, 1, 4) == chore(L, HAND, "item", recorded=K)
    assert run(CHORE, 4, 6, 0, 1, 4, 4) == chore(K, HAND, "item", recorded=L)
    assert 4 in slots(CHORE, run(CHORE, 4, 6, 0, 1))
    at_appliance = run(CHORE, 4, 6, 0, 1, 5)
    assert at_appliance == chore(K, HAND, "item appliance", recorded=K)
    assert gives(at_appliance, 4, chore(K, HAND, "item", recorded=K))


def test_walking_to_the_appliance():
    assert gives(chore(near="item"), 5, chore(near="appliance"))
    assert gives(chore(place="appliance"), 5, chore(place="appliance", near="item appliance"))
    held = chore(K, HAND, "item", recorded=BE)
    assert gives(held, 5, chore(K, HAND, "item appliance", recorded=K))
    assert fails(chore(L), 5)


def test_grabbing_the_item():
    assert gives(chore(near="item"), 6, chore(K, HAND, "item", recorded=K))
    inside = chore(place="appliance", near="item appliance", open=True)
    assert gives(inside, 6, chore(K, HAND, "item appliance", True, K))
    assert fails(chore(), 6)
    assert fails(chore(near="appliance"), 6)
    assert fails(chore(K, HAND, "item", recorded=BA), 6)
    assert fails(inside._replace(active=frozenset()), 6)


def test_putting_the_item_into_the_appliance():
    before = chore(K, HAND, "item appliance", True, K)
    assert gives(before, 7, chore(place="appliance", near="item appliance", open=True))
    assert fails(before._replace(active=frozenset()), 7)
    assert fails(before._replace(near=frozenset({"item"})), 7)
    assert fails(chore(near="item appliance", open=True), 7)


@pytest.mark.parametrize(("place", "near"), [(HOME, ""), (HAND, "item "), ("appliance", "item ")])
def test_opening_and_closing_the_appliance(place: str, near: str):
    recorded = K if place == HAND else ""
    shut = chore(K, place, near + "appliance", recorded=recorded)
    opened = chore(K, place, near + "appliance", True, recorded)
    assert gives(shut, 8, opened)
    assert gives(opened, 9, shut)
    assert fails(shut, 9)
    assert fails(opened, 8)
    assert fails(shut._replace(near=shut.near - {"appliance"}), 8)
    assert fails(opened._replace(near=opened.near - {"appliance"}), 9)


# Entertainment, row by row


@pytest.mark.parametrize(("slot", "item"), [(4, "chips"), (5, "milk")])
def test_walking_to_chips_or_milk(slot: int, item: str):
    assert gives(evening(near="chips milk"), slot, evening(near=item))
    assert fails(evening(BA), slot)
    assert fails(evening(L), slot)
    on_table = only(item, "table")
    assert gives(evening(L, *on_table), slot, evening(L, *on_table, f"{item} table"))
    assert fails(evening(K, *on_table), slot)


@pytest.mark.parametrize("room", [K, BA, L])
def test_walking_to_held_chips_leads_to_the_room_recorded_for_them(room: str):
    before = evening(room, HAND, HAND, "chips milk", recorded=(BE, L))
    assert gives(before, 4, evening(BE, HAND, HAND, "chips milk", recorded=(room, room)))
    assert gives(before, 5, evening(L, HAND, HAND, "chips milk", recorded=(room, room)))


@pytest.mark.parametrize(("slot", "fixture"), [(6, "table"), (7, "tv"), (8, "sofa")])
def test_walking_to_table_tv_or_sofa(slot: int, fixture: str):
    before = evening(L, HAND, "table", "chips table", recorded=(K, ""), facing="tv")
    assert gives(before, slot, evening(L, HAND, "table", f"chips {fixture}", recorded=(L, "")))
    for room in (K, BA, BE):
        assert fails(evening(room), slot)


@pytest.mark.parametrize(("slot", "item"), [(9, "chips"), (10, "milk")])
def test_grabbing_chips_or_milk(slot: int, item: str):
    def held(room: str, near: str) -> State:
        recorded = (room, "") if item == "chips" else ("", room)
        return evening(room, *only(item, HAND), near, recorded=recorded)

    assert gives(evening(near=item), slot, held(K, item))
    assert fails(evening(), slot)
    assert fails(held(K, item), slot)
    assert fails(evening(L), slot)
    on_table = only(item, "table")  # within reach from beside the table
    assert gives(evening(L, *on_table, "table"), slot, held(L, f"{item} table"))
    assert gives(evening(L, *on_table, f"{item} table"), slot, held(L, f"{item} table"))
    assert fails(evening(L, *on_table, "sofa"), slot)


def test_the_second_item_goes_into_the_other_hand():
    one = evening(K, HAND, HOME, "chips milk", recorded=(L, ""))
    assert gives(one, 10, evening(K, HAND, HAND, "chips milk", recorded=(L, K)))


@pytest.mark.parametrize(("slot", "which"), [(11, 0), (12, 1)])
def test_putting_chips_or_milk_on_the_table(slot: int, which: int):
    before = evening(L, HAND, HAND, "chips milk table", recorded=(K, K))
    places, recorded = [HAND, HAND], [K, K]
    places[which], recorded[which] = "table", ""
    after = before._replace(places=tuple(places), recorded=tuple(recorded))
    assert gives(before, slot, after)
    assert fails(after, slot)
    assert fails(before._replace(near=frozenset({"chips", "milk", "sofa"})), slot)


@pytest.mark.parametrize("chips", [HOME, HAND, "table"])
def test_switching_the_tv_takes_a_free_hand(chips: str):
    near = "chips tv" if chips == HAND else "tv"
    recorded = (L if chips == HAND else "", "")
    off, on = (evening(L, chips, HOME, near, power, recorded) for power in (False, True))
    assert gives(off, 13, on)
    assert gives(on, 14, off)
    assert fails(on, 13)
    assert fails(off, 14)
    both = evening(L, HAND, HAND, "chips milk tv", recorded=(L, L))
    assert fails(both, 13)
    assert fails(both._replace(active=frozenset({"tv"})), 14)
    assert fails(evening(L, near="sofa"), 13)


def test_sitting_down_and_standing_up():
    before = evening(L, near="sofa", on=True)
    sits = evening(L, near="sofa", on=True, sitting=True, seated=True, facing="tv")
    stands = sits._replace(sitting=False)
    assert gives(before, 15, sits)
    assert gives(sits, 16, stands)
    assert gives(stands, 15, sits)
    assert fails(sits, 15)
    assert fails(before, 16)
    assert fails(evening(L, near="tv"), 15)


def test_an_agent_that_stood_up_counts_as_seated_for_the_rest_of_the_episode():
    state = run(EVENING, 0, 8, 15, 16, 7)
    sat_on = EVENING.observed.index(next(f for f in EVENING.observed if f.relation == "seated"))
    assert not state.sitting
    assert state.facing == ""
    assert observe(EVENING, state)[sat_on] == 1
    assert observe(EVENING, do(state, 1).state)[sat_on] == 0  # out of view
    assert observe(EVENING, run(EVENING, 0, 8, 15, 16, 7, 1, 0))[sat_on] == 1
    assert slots(EVENING, run(EVENING, 0, 8, 15, 16)) == (1, 2, 3)


# Goals


@pytest.mark.parametrize("open", [False, True])
@pytest.mark.parametrize("place", [HOME, HAND, "appliance"])
@pytest.mark.parametrize("room", [K, BA, BE, L])
def test_a_chore_is_complete_when_the_item_is_shut_in(room: str, place: str, open: bool):
    near = "item" if place == HAND else ""
    done = reached(CHORE, chore(room, place, near, open, BA if place == HAND else ""))
    assert done == (room == K and place == "appliance" and not open)


@pytest.mark.parametrize("chips", [HOME, HAND, "table"])
@pytest.mark.parametrize("milk", [HOME, HAND, "table"])
def test_the_evening_is_complete_with_both_items_at_hand_or_on_the_table(chips: str, milk: str):
    near = " ".join(name for name, p in (("chips", chips), ("milk", milk)) if p == HAND)
    state = evening(L, chips, milk, f"{near} sofa", True, (L, L), True, True, "tv")
    assert reached(EVENING, state) == (HOME not in (chips, milk))
    assert not reached(EVENING, state._replace(active=frozenset()))
    assert not reached(EVENING, state._replace(facing=""))
    assert not reached(EVENING, state._replace(seated=False))


@EITHER_WAY
def test_the_last_action_of_a_chore_is_to_close_and_of_the_evening_to_sit_down(every: bool):
    for house, last in ((CHORE, 9), (EVENING, 15)):
        final = [a for _, a, done in transitions(house, every) if reached(house, done.state)]
        assert set(final) == {last}


def test_the_final_states_of_the_evening_are_known():
    ends = {True: Counter[tuple[str, ...]](), False: Counter[tuple[str, ...]]()}
    for every, count in ends.items():
        count.update(state.places for state in endings(EVENING, every))
    assert set(ends[True]) == set(itertools.product((HAND, "table"), repeat=2))
    assert set(ends[False]) == set(ends[True]) - {("table", "table")}


# What is offered


def evening_offers(bits: tuple[int, ...]) -> list[int]:
    """What is offered in the evening, from the published situations."""
    k, ba, be, _ = bits[:4]
    (see_c, near_c, has_c, lies_c), (see_m, near_m, has_m, lies_m) = bits[4:8], bits[8:12]
    near_tv, tv_on, near_sofa, seated, near_table = (bits[i] for i in (13, 15, 17, 18, 20))
    if ba or be:
        return [0, 1, 3] if ba else [0, 1, 2]
    if k:
        more: list[int] = []
        if see_c and see_m:
            more += [] if has_c else [9] if near_c else [4]
            more += [] if has_m else [10] if near_m else [5]
        elif see_c and not has_c:
            more = [9] if near_c else [5]
        elif see_m and not has_m:
            more = [10] if near_m else [4]
        return sorted([0, 2, 3, *more])
    if near_table:
        if not (has_c or has_m):
            return [1, 2, 3]
        both = has_c and has_m
        chips, milk = has_c and (both or not lies_m), has_m and (both or not lies_c)
        return [1, 2, 3, 7, 8] + [11] * bool(chips) + [12] * bool(milk)
    if near_tv:
        return [1, 2, 3, 6, 8] + ([] if tv_on else [13, 14])
    if near_sofa:
        if seated:
            return [1, 2, 3]
        return [1, 2, 3, 6, 7] + ([15, 16] if tv_on else [])
    return [1, 2, 3, 6, 7, 8]


def test_the_evening_offers_the_published_actions():
    for bits in observations(EVENING, every=True):
        assert list(offered(EVENING, bits)) == evening_offers(bits)


@pytest.mark.parametrize(
    ("before", "listed"),
    [
        ((2,), (0, 1, 3)),
        ((3,), (0, 1, 2)),
        ((0,), (1, 2, 3)),
        ((), (0, 2, 3, 4, 5)),
        ((4,), (0, 2, 3, 5, 6)),
        ((5,), (0, 2, 3, 4, 8, 9)),
        ((5, 8), (0, 2, 3, 4, 8, 9)),
        ((4, 6), (0, 2, 3, 4, 5)),
        ((4, 6, 5), (0, 2, 3, 4, 7, 8, 9)),
        ((4, 6, 5, 8, 7), (0, 2, 3, 8, 9)),
        ((4, 6, 5, 8, 7, 0, 1), (0, 2, 3, 4, 5)),
    ],
)
def test_a_chore_offers_the_published_actions(before: tuple[int, ...], listed: tuple[int, ...]):
    assert slots(CHORE, run(CHORE, *before)) == listed


@BOTH
def test_exactly_one_pattern_fits_every_observation(house: House):
    for bits in observations(house, every=True):
        assert sum(fits(pattern, bits) for pattern in house.offers) == 1


@pytest.mark.parametrize(("before", "absent"), [((4, 9, 0, 6, 11), 4), ((5, 10, 0, 6, 12), 5)])
def test_in_the_kitchen_with_one_item_on_the_table_the_walk_to_it_is_offered_but_fails(
    before: tuple[int, ...], absent: int
):
    state = run(EVENING, *before, 1)
    assert slots(EVENING, state) == (0, 2, 3, absent)  # as published
    assert fails(state, absent)
    other = 9 - absent
    assert do(state, other).succeeded
    assert slots(EVENING, do(state, other).state) == (0, 2, 3, other + 5)


def test_the_offered_actions_that_fail_are_known():
    chore_fails = Counter(a for _, a, done in transitions(CHORE) if not done.succeeded)
    assert set(chore_fails) == {7, 8, 9}
    assert chore_fails.total() == 6
    kinds = Counter[str]()
    for state, slot, done in transitions(EVENING):
        if done.succeeded:
            assert done.state != state
            continue
        if slot in (4, 5):
            item = state.places[slot - 4]
            kinds["absent"] += state.room == K and item == "table"
        kinds["off already"] += slot == 14 and not state.active
        kinds["stands already"] += slot == 16 and not state.sitting
        kinds["hands full"] += slot == 13 and state.places == (HAND, HAND)
        kinds["sits"] += slot in (1, 2, 3) and state.sitting
        kinds["all"] += 1
    assert kinds.pop("all") == kinds.total() == 36
    assert all(kinds.values())


def test_the_one_offered_action_that_succeeds_without_an_effect():
    idle = {(s, a) for s, a, done in transitions(CHORE) if done.succeeded and done.state == s}
    assert idle == {(chore(K, HAND, "item", open, K), 4) for open in (False, True)}


def test_the_tv_cannot_be_turned_off_by_offered_actions():
    assert not any(s.active and not done.state.active for s, _, done in transitions(EVENING))


# What all states together must be


@pytest.mark.parametrize(
    ("house", "every", "states", "moves", "seen", "ends"),
    [
        (CHORE, True, 52, 510, 19, 1),
        (CHORE, False, 46, 177, 19, 1),
        (EVENING, True, 576, 9724, 213, 4),
        (EVENING, False, 222, 933, 100, 3),
    ],
)
def test_there_are_as_many_states_transitions_and_observations_as_documented(
    house: House, every: bool, states: int, moves: int, seen: int, ends: int
):
    assert len(reachable(house, every)) == states
    assert len(transitions(house, every)) == moves
    assert len(observations(house, every)) == seen
    assert len({observe(house, state) for state in endings(house, every)}) == ends
    assert len(endings(house, every)) == ends


@pytest.mark.parametrize(("house", "states", "moves"), [(CHORE, 34, 141), (EVENING, 136, 603)])
def test_the_number_of_states_that_behave_differently_is_known(
    house: House, states: int, moves: int
):
    one_of_each = {number: state for state, number in merged(house).items()}
    assert len(one_of_each) == states
    assert sum(len(slots(house, state)) for state in one_of_each.values()) == moves


def hidden(house: House) -> Counter[tuple[int, ...]]:
    """How many differently behaving states share each observation."""
    number_and_bits = {(n, observe(house, state)) for state, n in merged(house).items()}
    return Counter(bits for _, bits in number_and_bits)


def test_the_observation_of_a_chore_hides_known_states():
    for bits, classes in hidden(CHORE).items():
        holds, near_appliance = bits[6], bits[8]
        if not bits[0]:
            assert classes == (2 if holds else 3)
        else:
            assert classes == (4 if holds and not near_appliance else 1)


def test_the_observation_of_the_evening_hides_known_states():
    for bits, classes in hidden(EVENING).items():
        held = bits[6] + bits[10]
        if bits[1] or bits[2]:
            assert classes == (6, 4, 2)[held]
        elif bits[0]:
            assert classes == 2
        else:
            assert classes <= 3


def test_the_dead_ends_are_known():
    assert dead_ends(CHORE) == dead_ends(CHORE, every=True) == dead_ends(EVENING, every=True)
    assert dead_ends(EVENING, every=True) == set()
    dead = dead_ends(EVENING)
    assert len(dead) == 37
    for state in dead:
        too_early = state.sitting and HOME in state.places
        unreachable = "table" in state.places and HOME in state.places
        assert too_early or unreachable
    for state in set(reachable(EVENING)) - dead:
        assert not (state.sitting and HOME in state.places)
        assert not ("table" in state.places and HOME in state.places)


# What play adds up to


@BOTH
@EITHER_WAY
def test_the_best_episode(house: House, every: bool):
    length = {CHORE: 6, EVENING: 11}[house]
    ways = shortest(house, every)
    assert {len(way) for way in ways} == {length}
    assert len(ways) == {CHORE: 1, EVENING: 8}[house]
    value = {CHORE: 0.773781, EVENING: 0.598737}[house]
    best = best_return(table(house, every), LIMIT, DISCOUNT)
    assert best == pytest.approx(value, abs=5e-7)
    assert best == pytest.approx(DISCOUNT ** (length - 1), abs=1e-12)
    start, after = (
        house.start,
        lambda state: (transition(house, state, slot).state for slot in slots(house, state, every)),
    )
    assert fewest_actions(start, after, lambda state: reached(house, state)) == length


@pytest.mark.parametrize("task", ["food_preparation", "entertainment", "entertainment_sparse_text"])
def test_the_prompt_determines_an_optimal_action(task: str):
    house = TASKS[task].house
    policies = []
    for way in shortest(house):
        prompts = [view(TASKS[task], run(house, *way[:step])).prompt for step in range(len(way))]
        policies.append(len(set(zip(prompts, way, strict=True))) == len(set(prompts)))
    assert any(policies)


@pytest.mark.parametrize(
    ("house", "success", "mean_return", "shortest_success"),
    [(CHORE, 0.0150, 0.00288, 6), (EVENING, 0.0030, 0.00043, 11)],
)
def test_uniformly_random_offered_actions_have_the_known_success_rate(
    house: House, success: float, mean_return: float, shortest_success: int
):
    play = random_play(table(house), LIMIT, DISCOUNT)
    assert play.success == pytest.approx(success, abs=5e-5)
    assert play.mean_return == pytest.approx(mean_return, abs=5e-6)
    assert (min(play.succeeded_at), max(play.succeeded_at)) == (shortest_success, LIMIT)
    assert play.truncated_at == {LIMIT}


@pytest.mark.parametrize(
    ("house", "distractors", "success"),
    [
        (CHORE, 2, 5.37e-3),
        (CHORE, 5, 2.06e-3),
        (CHORE, 10, 7.8e-4),
        (EVENING, 10, 1.44e-5),
        (EVENING, 100, 4.42e-12),
    ],
)
def test_every_distractor_wastes_a_step(house: House, distractors: int, success: float):
    offers = table(house)
    more = len(offers.steps), distractors
    stay = np.broadcast_to(np.arange(offers.states)[:, None], more)
    lost = Table(
        np.hstack([offers.steps, np.ones(more, dtype=np.int64)]),
        np.hstack([offers.following, stay]),
        np.hstack([offers.reward, np.zeros(more)]),
        np.hstack([offers.offered, np.ones(more, dtype=bool)]),
    )
    assert random_play(lost, LIMIT, DISCOUNT).success == pytest.approx(success, rel=0.01)


def test_offering_all_actions_makes_the_evening_hard():
    play = random_play(table(EVENING, every=True), LIMIT, DISCOUNT)
    assert play.success == pytest.approx(2.6e-6, rel=0.02)


# Laws of any sequence of actions


def perceived(house: House, state: State) -> dict[tuple[str, str], int]:
    bits = observe(house, state)
    return {(f.relation, f.thing): bit for f, bit in zip(house.observed, bits, strict=True)}


@BOTH
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_action_keeps_the_state_consistent(house: House, data: st.DataObject):
    every_slot = st.integers(0, len(house.slots) - 1)
    state = house.start
    for slot in data.draw(st.lists(every_slot, max_size=60)):
        before = state
        state, succeeded = transition(house, before, slot)
        action = house.slots[slot]
        assert succeeded or state == before
        sees = perceived(house, state)
        assert sum(observe(house, state)[:4]) == 1
        for item, place, was, room in zip(
            house.items, state.places, before.places, state.recorded, strict=True
        ):
            held = place == HAND
            assert sees["hold", item] == held
            assert not held or (sees["see", item] and sees["near", item])
            assert bool(room) == held
            assert place == was or action.verb == ("grab" if held else "put")
            own_room = "kitchen" if place in (HOME, "appliance") else "living room"
            assert held or not sees["see", item] or state.room == own_room
        if action.verb in ("enter", "approach") and succeeded:
            assert state.facing == ""
            assert action.verb == "enter" or action.thing in state.near
        assert all(house.fixtures[x].room == state.room for x in state.near & house.fixtures.keys())


# The shared table


@pytest.mark.skipif(not CONFORMANCE.exists(), reason="the shared transition table is not here")
def test_food_preparation_agrees_with_the_shared_transition_table():
    told = json.loads(CONFORMANCE.read_text())
    rows, task = told["states"], TASKS["food_preparation"]
    arrows = {(row[0], row[1]): row[2:] for row in told["transitions"]}
    states, queue = {0: CHORE.start}, [0]
    prompts: dict[int, set[str]] = {}
    for number in queue:
        row, state = rows[number], states[number]
        bits = observe(CHORE, state)
        assert list(bits) == row["vector"]
        assert list(offered(CHORE, bits)) == row["offered"]
        assert reached(CHORE, state) == row["terminal"]
        assert (state in reachable(CHORE)) == row["reachable_by_offered"]
        if row["reachable_by_offered"]:
            prompts.setdefault(row["prompt_class"], set()).add(view(task, state).prompt)
        for slot in slots(CHORE, state, every=True):
            following, reward, ended, listed, succeeded = arrows.pop((number, slot))
            done = transition(CHORE, state, slot)
            assert done.succeeded == bool(succeeded)
            assert reached(CHORE, done.state) == bool(ended) == bool(reward)
            assert (slot in offered(CHORE, bits)) == bool(listed)
            if following not in states:
                queue.append(following)
            assert states.setdefault(following, done.state) == done.state
    assert not arrows
    assert len(states) == len(rows) == len(set(states.values())) == 52
    assert all(len(same) == 1 for same in prompts.values())
    assert len(set.union(*prompts.values())) == len(prompts) == 18
