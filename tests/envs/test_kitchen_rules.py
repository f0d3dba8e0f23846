"""The kitchen's rules: every row of the macro-action tables, and the numbers they add up to."""

import json
from pathlib import Path

import numpy as np
import pytest
from kitchen_search import (
    best_forever,
    best_return,
    fewest_macros,
    random_play,
    reachable,
    run,
    slots,
    table,
    transitions,
)

from poad.envs.kitchen.rules import (
    BOARDS,
    DISCOUNT,
    TOMATO_LETTUCE_SALAD,
    TOMATO_SALAD,
    Cell,
    Kitchen,
    Macro,
    State,
    Transition,
    carry_out,
    numeric_observation,
    transition,
)
from poad.envs.kitchen.text import view

BOTH = pytest.mark.parametrize(
    "kitchen", [TOMATO_SALAD, TOMATO_LETTUCE_SALAD], ids=["tomato", "tomato-lettuce"]
)
BEST = {TOMATO_SALAD: "024013", TOMATO_LETTUCE_SALAD: "0471573106"}
CONFORMANCE = Path(__file__).parents[3] / "shared/conformance/kitchen_tomato_salad.json"

# Cells where the cook stands to reach things.
FOODS, ONION, BOWL, BOARD_1, BOARD_2, COUNTER = (1, 5), (2, 5), (5, 5), (1, 1), (2, 1), (3, 1)


def scene(
    agent: Cell,
    hand: str | None = None,
    board_1: str | None = None,
    board_2: str | None = None,
    chopped: tuple[str, ...] = (),
    bowl: tuple[str, ...] = (),
) -> State:
    """A state of the tomato-lettuce kitchen."""
    cuts = tuple(3 * (food in chopped or food in bowl) for food in TOMATO_LETTUCE_SALAD.foods)
    return State(agent, hand, (board_1, board_2), cuts, bowl)


def do(state: State, verb: str, item: str = "", board: int = 1) -> Transition:
    """Carry out a macro-action in the tomato-lettuce kitchen; boards are 1 and 2 here."""
    wanted = Macro(verb, item, board - 1)  # pyright: ignore[reportArgumentType]
    return transition(TOMATO_LETTUCE_SALAD, state, TOMATO_LETTUCE_SALAD.macros.index(wanted))


def test_macro_actions_come_in_slot_order():
    def names(kitchen: Kitchen) -> list[str]:
        return [f"{m.verb} {m.item or m.board}" for m in kitchen.macros]

    assert names(TOMATO_SALAD) == ["get tomato", "get bowl", "go 0", "deliver 0", "chop 0"]
    assert names(TOMATO_LETTUCE_SALAD) == [
        *("get tomato", "get lettuce", "get onion", "get bowl"),
        *("go 0", "go 1", "deliver 0", "chop 0"),
    ]


# Getting food


@pytest.mark.parametrize(
    "state",
    [
        scene(FOODS, "tomato"),
        scene(BOARD_1, "tomato", chopped=("tomato",)),
        scene(BOARD_1, "bowl", bowl=("tomato",)),
    ],
)
def test_getting_food_that_is_in_hand_idles(state: State):
    done = do(state, "get", "tomato")
    assert (done.state, done.moves) == (state, "S")


@pytest.mark.parametrize(
    ("start", "board", "moves", "end"),
    [
        (FOODS, 1, "LLLS", (1, 2)),
        (FOODS, 2, "DLLLS", (2, 2)),
        (ONION, 1, "ULLLS", (1, 2)),
        (ONION, 2, "LLLS", (2, 2)),
        (BOARD_1, 1, "S", BOARD_1),
        (COUNTER, 1, "S", COUNTER),
    ],
)
def test_getting_food_from_a_bowl_on_a_board_walks_until_the_board_is_seen(
    start: Cell, board: int, moves: str, end: Cell
):
    bowl_on = ("bowl", None) if board == 1 else (None, "bowl")
    state = scene(start, None, *bowl_on, bowl=("tomato",))
    done = do(state, "get", "tomato")
    assert (done.moves, done.state) == (moves, state._replace(agent=end))


def test_no_other_walks_stop_early():
    walks = {
        (state.agent, kitchen.boards[state.boards.index("bowl")]): transition(kitchen, state, a)
        for kitchen in (TOMATO_SALAD, TOMATO_LETTUCE_SALAD)
        for state in reachable(kitchen)
        if "bowl" in state.boards
        for a, macro in enumerate(kitchen.macros)
        if macro.verb == "get" and macro.item in state.bowl
    }
    long = {key: done.moves for key, done in walks.items() if len(done.moves) > 1}
    assert long == {
        (FOODS, BOARDS[0]): "LLLS",
        (FOODS, BOARDS[1]): "DLLLS",
        (ONION, BOARDS[0]): "ULLLS",
        (ONION, BOARDS[1]): "LLLS",
    }
    assert all(done.moves == "S" for key, done in walks.items() if key not in long)


def test_getting_food_at_home_with_an_empty_hand_takes_it():
    done = do(scene(BOARD_1), "get", "lettuce")
    assert (done.moves, done.state) == ("RRRRR", scene(FOODS, "lettuce"))


@pytest.mark.parametrize("hand", ["tomato", "bowl"])
def test_getting_food_at_home_with_a_full_hand_bumps_without_effect(hand: str):
    done = do(scene(BOARD_1, hand), "get", "onion")
    assert (done.moves, done.state) == ("DRRRRR", scene(ONION, hand))


@pytest.mark.parametrize("hand", [None, "lettuce", "bowl"])
def test_getting_raw_food_from_a_board_only_walks_there(hand: str | None):
    done = do(scene(COUNTER, hand, "tomato"), "get", "tomato")
    assert (done.moves, done.state) == ("UU", scene(BOARD_1, hand, "tomato"))
    again = do(done.state, "get", "tomato")
    assert (again.moves, again.state) == ("S", done.state)


def test_getting_chopped_food_from_a_board():
    chopped = ("tomato",)
    empty_hand = do(scene(COUNTER, None, "tomato", chopped=chopped), "get", "tomato")
    assert empty_hand.moves == "UUL"
    assert empty_hand.state == scene(BOARD_1, "tomato", chopped=chopped)
    with_bowl = do(scene(COUNTER, "bowl", "tomato", chopped=chopped), "get", "tomato")
    assert with_bowl.moves == "UUL"
    assert with_bowl.state == scene(BOARD_1, "bowl", bowl=chopped)
    with_food = do(scene(COUNTER, "lettuce", "tomato", chopped=chopped), "get", "tomato")
    assert with_food.moves == "UUL"
    assert with_food.state == scene(BOARD_1, "lettuce", "tomato", chopped=chopped)


# Getting the bowl


def test_getting_the_bowl_in_hand_idles():
    done = do(scene(FOODS, "bowl", bowl=("onion",)), "get", "bowl")
    assert (done.moves, done.state) == ("S", scene(FOODS, "bowl", bowl=("onion",)))


@pytest.mark.parametrize(
    ("before", "moves", "after"),
    [
        (scene(FOODS), "DDDDD", scene(BOWL, "bowl")),
        (scene(FOODS, "tomato"), "DDDDS", scene(BOWL, "tomato")),
        (
            scene(BOARD_1, "tomato", chopped=("tomato",)),
            "DDDDRRRRDD",
            scene(BOWL, "bowl", bowl=("tomato",)),
        ),
    ],
    ids=["empty hand", "raw food", "chopped food"],
)
def test_getting_the_bowl_at_home(before: State, moves: str, after: State):
    done = do(before, "get", "bowl")
    assert (done.moves, done.state) == (moves, after)


@pytest.mark.parametrize(
    ("before", "moves", "after"),
    [
        (
            scene(COUNTER, None, None, "bowl", bowl=("onion",)),
            "UL",
            scene(BOARD_2, "bowl", bowl=("onion",)),
        ),
        (scene(COUNTER, "tomato", None, "bowl"), "US", scene(BOARD_2, "tomato", None, "bowl")),
        (
            scene(COUNTER, "tomato", None, "bowl", ("tomato",), ("onion",)),
            "ULS",
            scene(BOARD_2, "bowl", chopped=("tomato",), bowl=("onion", "tomato")),
        ),
    ],
    ids=["empty hand", "raw food", "chopped food"],
)
def test_getting_the_bowl_from_a_board(before: State, moves: str, after: State):
    done = do(before, "get", "bowl")
    assert (done.moves, done.state) == (moves, after)


# Going to a board


@pytest.mark.parametrize("there", [None, "tomato", "bowl"])
def test_going_to_a_board_empty_handed_never_takes_or_cuts(there: str | None):
    done = do(scene(COUNTER, None, there), "go")
    assert (done.moves, done.state) == ("UU", scene(BOARD_1, None, there))
    again = do(done.state, "go")
    assert (again.moves, again.state) == ("S", done.state)


@pytest.mark.parametrize(
    ("hand", "chopped", "bowl"),
    [
        ("tomato", (), ()),
        ("tomato", ("tomato",), ()),
        ("bowl", (), ()),
        ("bowl", (), ("lettuce", "tomato")),
    ],
)
def test_going_to_an_empty_board_puts_down_the_held_item(
    hand: str, chopped: tuple[str, ...], bowl: tuple[str, ...]
):
    done = do(scene(FOODS, hand, chopped=chopped, bowl=bowl), "go", board=2)
    assert done.moves == "DLLLLL"
    assert done.state == scene(BOARD_2, None, None, hand, chopped, bowl)


@pytest.mark.parametrize(("hand", "there"), [("bowl", "tomato"), ("tomato", "bowl")])
def test_going_to_a_board_merges_chopped_food_and_bowl_in_the_hand(hand: str, there: str):
    done = do(scene(COUNTER, hand, there, chopped=("tomato",), bowl=("onion",)), "go")
    assert done.moves == "UUL"
    assert done.state == scene(BOARD_1, "bowl", bowl=("onion", "tomato"))


@pytest.mark.parametrize(
    ("hand", "there", "chopped"),
    [
        ("bowl", "tomato", ()),
        ("tomato", "bowl", ()),
        ("tomato", "lettuce", ()),
        ("tomato", "lettuce", ("tomato",)),
        ("tomato", "lettuce", ("lettuce",)),
        ("tomato", "lettuce", ("tomato", "lettuce")),
    ],
)
def test_going_to_a_taken_board_otherwise_changes_nothing(
    hand: str, there: str, chopped: tuple[str, ...]
):
    done = do(scene(COUNTER, hand, there, chopped=chopped), "go")
    assert (done.moves, done.state) == ("UUL", scene(BOARD_1, hand, there, chopped=chopped))


# Chopping


@pytest.mark.parametrize(
    ("food", "pay"), [("tomato", 0.199), ("lettuce", 0.199), ("onion", -0.001)]
)
def test_chopping_takes_three_cuts_and_is_rewarded_for_foods_of_the_recipe(food: str, pay: float):
    done = do(scene(BOARD_2, None, None, food), "chop")
    assert done.moves == "LLL"
    assert done.rewards == (-0.001, -0.001, pay)
    assert done.state == scene(BOARD_2, None, None, food, (food,))


@pytest.mark.parametrize("hand", ["lettuce", "bowl"])
def test_chopping_with_a_full_hand_wastes_three_steps(hand: str):
    state = scene(BOARD_1, hand, "tomato")
    done = do(state, "chop")
    assert (done.moves, done.state) == ("LLL", state)
    assert done.rewards == (-0.001,) * 3


@pytest.mark.parametrize(
    "state",
    [
        scene(FOODS),
        scene(COUNTER, None, "tomato"),
        scene(BOARD_1),
        scene(BOARD_1, None, None, "tomato"),
        scene(BOARD_1, None, "tomato", chopped=("tomato",)),
        scene(BOARD_1, None, "bowl"),
    ],
)
def test_chopping_anything_else_idles(state: State):
    done = do(state, "chop")
    assert (done.moves, done.state, done.rewards) == ("S", state, (-0.001,))


# Delivering


def test_delivering_nothing_walks_to_the_counter_and_then_bumps_without_effect():
    done = do(scene(BOARD_1), "deliver")
    assert (done.moves, done.state) == ("DD", scene(COUNTER))
    again = do(done.state, "deliver")
    assert (again.moves, again.state, again.rewards) == ("L", done.state, (-0.001,))


@pytest.mark.parametrize("bowl", [("tomato", "lettuce"), ("lettuce", "tomato")])
def test_the_right_dish_is_served_in_any_order_of_plating(bowl: tuple[str, ...]):
    done = do(scene(BOARD_2, "bowl", bowl=bowl), "deliver")
    assert done.moves == "DL"
    assert done.rewards == (-0.001, 0.999)
    assert done.state == scene(COUNTER, bowl=bowl)._replace(served=True)


@pytest.mark.parametrize(
    "state",
    [
        scene(BOARD_2, "tomato"),
        scene(BOARD_2, "tomato", chopped=("tomato",)),
        scene(BOARD_2, "bowl"),
        scene(BOARD_2, "bowl", bowl=("tomato",)),
        scene(BOARD_2, "bowl", bowl=("tomato", "onion", "lettuce")),
    ],
)
def test_a_wrong_delivery_sends_everything_home_raw(state: State):
    done = do(state, "deliver")
    assert done.moves == "DL"
    assert done.rewards == (-0.001, -0.101)
    assert done.state == scene(COUNTER)


def test_a_wrong_delivery_does_not_move_other_items():
    state = scene(BOARD_2, "tomato", "onion", "bowl", ("tomato", "onion"), ("lettuce",))
    after = scene(COUNTER, None, "onion", "bowl", ("onion",), ("lettuce",))
    assert do(state, "deliver").state == after


def test_food_sent_home_pays_again_when_chopped():
    done = run(TOMATO_SALAD, "024 03 024")
    assert done[2].rewards[-1] == 0.199
    assert done[4].rewards[-1] == -0.101
    assert done[7].rewards[-1] == 0.199


# Rewards


def test_rewards_are_discounted_per_primitive_step_within_a_macro_action():
    two_steps = transition(TOMATO_SALAD, TOMATO_SALAD.start, 0)
    assert two_steps.rewards == (-0.001, -0.001)
    assert two_steps.reward == -0.00199
    chop = run(TOMATO_SALAD, "024")[-1]
    assert chop.reward == 0.0 + 1.0 * -0.001 + DISCOUNT * -0.001 + DISCOUNT * DISCOUNT * 0.199


@BOTH
def test_primitive_rewards_take_four_values(kitchen: Kitchen):
    values = {reward for done in transitions(kitchen) for reward in done.rewards}
    assert values == {-0.001, -0.001 + 0.2, -0.001 + 1.0, -0.001 + -0.1}


# What all states together must be


@pytest.mark.parametrize(
    ("kitchen", "states", "unordered", "observations", "numbers"),
    [(TOMATO_SALAD, 24, 24, 21, 18), (TOMATO_LETTUCE_SALAD, 1301, 1156, 801, 26)],
    ids=["tomato", "tomato-lettuce"],
)
def test_how_many_states_and_numeric_observations_there_are(
    kitchen: Kitchen, states: int, unordered: int, observations: int, numbers: int
):
    found = reachable(kitchen)
    assert len(found) == states
    assert len({s._replace(bowl=tuple(sorted(s.bowl))) for s in found}) == unordered
    vectors = {tuple(numeric_observation(kitchen, s)) for s in found}
    assert len(vectors) == observations
    assert {len(v) for v in vectors} == {numbers}


@BOTH
def test_everything_is_in_exactly_one_place(kitchen: Kitchen):
    for state in reachable(kitchen):
        held = [item for item in (state.hand, *state.boards, *state.bowl) if item is not None]
        assert len(held) == len(set(held))
        assert "bowl" in held or not state.bowl
        for food, cuts in zip(kitchen.foods, state.cuts, strict=True):
            assert cuts in (0, 3)
            assert cuts == 3 or food not in state.bowl
            assert cuts == 0 or food in held


def test_between_macro_actions_the_cook_stands_next_to_an_item_or_counter():
    first = {(1, 4), FOODS, BOWL, BOARD_1, COUNTER}
    assert {s.agent for s in reachable(TOMATO_SALAD)} == first
    more = {ONION, BOARD_2, (1, 2), (2, 2)}
    assert {s.agent for s in reachable(TOMATO_LETTUCE_SALAD)} == first | more


@pytest.mark.parametrize(("kitchen", "longest"), [(TOMATO_SALAD, 7), (TOMATO_LETTUCE_SALAD, 6)])
def test_macro_actions_take_1_to_10_steps(kitchen: Kitchen, longest: int):
    steps = [len(done.moves) for done in transitions(kitchen)]
    assert (min(steps), max(steps)) == (1, 10)
    assert max(len(done.moves) for done in transitions(kitchen) if done.state.served) == longest


def test_the_numeric_observation_hides_what_is_out_of_view():
    one_hot = [0, 0, 0, 1, 0, 0, 0]
    out_of_view = [0] * 3
    start = numeric_observation(TOMATO_LETTUCE_SALAD, TOMATO_LETTUCE_SALAD.start)
    assert start == [0, 5, 0, 1, 6, 0, 2, 6, 0, *[0] * 8, 1, 4, *one_hot]
    at_board = scene(BOARD_1, "bowl", "tomato", None, ("tomato",), ("lettuce",))
    assert numeric_observation(TOMATO_LETTUCE_SALAD, at_board) == [
        *(1, 0, 3),  # the tomato on the first board
        *(1, 1, 3),  # the lettuce in the bowl in the hand
        *out_of_view,  # the onion at home
        *(1, 1, 1, 0, 2, 0, 3, 0, 1, 1),  # bowl, boards, delivery counter, cook
        *one_hot,
    ]


# What play adds up to


@pytest.mark.parametrize(
    ("kitchen", "macros", "steps", "episode_return", "undiscounted", "rewards"),
    [
        (TOMATO_SALAD, 6, 28, 0.920518092564195, 1.172, 1.1102837966825794),
        (TOMATO_LETTUCE_SALAD, 10, 45, 0.9476564569165644, 1.355, 1.328144663805684),
    ],
    ids=["tomato", "tomato-lettuce"],
)
def test_the_best_episode(
    kitchen: Kitchen,
    macros: int,
    steps: int,
    episode_return: float,
    undiscounted: float,
    rewards: float,
):
    done = run(kitchen, BEST[kitchen])
    moves = "".join(t.moves for t in done)
    assert done[-1].state.served
    assert len(done) == macros == fewest_macros(kitchen)
    assert len(moves) == steps
    assert carry_out(kitchen, kitchen.start, moves).reward == episode_return
    assert best_return(kitchen) == pytest.approx(episode_return, abs=1e-12)
    assert sum(r for t in done for r in t.rewards) == pytest.approx(undiscounted, abs=1e-12)
    assert sum(t.reward for t in done) == pytest.approx(rewards, abs=1e-14)


@pytest.mark.parametrize(
    ("kitchen", "success", "mean_return", "last_success"),
    [(TOMATO_SALAD, 0.44196, -0.09641, 206), (TOMATO_LETTUCE_SALAD, 0.01019, -0.22797, 205)],
    ids=["tomato", "tomato-lettuce"],
)
def test_uniformly_random_macro_actions_have_the_known_success_rate(
    kitchen: Kitchen, success: float, mean_return: float, last_success: int
):
    play = random_play(kitchen)
    assert play.success == pytest.approx(success, abs=5e-6)
    assert play.mean_return == pytest.approx(mean_return, abs=5e-6)
    assert max(play.succeeded_at) == last_success
    assert play.truncated_at == set(range(200, 210))


@BOTH
def test_throwing_away_pays_only_if_the_discount_is_per_macro_action(kitchen: Kitchen):
    per_macro = np.ones_like(table(kitchen).reward)
    per_step = DISCOUNT ** table(kitchen).steps
    farming = best_forever(kitchen, 0.99 * per_macro)
    assert len(farming) == 40  # never serves the dish,
    assert farming.count(str(len(slots(kitchen)) - 1)) > 4  # but keeps chopping
    for discount in (per_step, 0.95 * per_macro):
        assert run(kitchen, best_forever(kitchen, discount))[-1].state.served
    at_once = run(kitchen, best_forever(kitchen, per_step))
    assert sum(len(t.moves) for t in at_once) == sum(
        len(t.moves) for t in run(kitchen, BEST[kitchen])
    )


@pytest.mark.skipif(not CONFORMANCE.exists(), reason="the shared transition table is not here")
def test_the_tomato_salad_agrees_with_the_shared_transition_table():
    rows = json.loads(CONFORMANCE.read_text())["states"]
    states, queue = {0: TOMATO_SALAD.start}, [0]
    prompts: dict[int, set[str]] = {}
    for number in queue:
        row, state = rows[number], states[number]
        assert numeric_observation(TOMATO_SALAD, state) == row["vector"]
        prompts.setdefault(row["prompt_class"], set()).add(view(TOMATO_SALAD, state).prompt)
        assert [entry["slot"] for entry in row["actions"]] == list(slots(TOMATO_SALAD))
        for entry in row["actions"]:
            done = transition(TOMATO_SALAD, state, entry["slot"])
            assert done.moves == entry["moves"]
            assert len(done.moves) == entry["steps"]
            assert list(done.rewards) == entry["rewards"]
            assert done.reward == entry["reward"]
            assert done.state.served == (entry["next"] == "DONE")
            if not done.state.served:
                if entry["next"] not in states:
                    queue.append(entry["next"])
                assert states.setdefault(entry["next"], done.state) == done.state
    assert len(states) == len(rows) == len(set(states.values()))
    assert all(len(same) == 1 for same in prompts.values())
    assert len(set.union(*prompts.values())) == len(prompts)
