"""The kitchen's words: a prompt tells exactly the facts, and the actions follow from the prompt."""

import pytest
from kitchen_search import reachable

from poad.envs.kitchen.rules import TOMATO_LETTUCE_SALAD, TOMATO_SALAD, Kitchen, State
from poad.envs.kitchen.text import see, view
from poad.envs.text_world import View

BOTH = pytest.mark.parametrize(
    "kitchen", [TOMATO_SALAD, TOMATO_LETTUCE_SALAD], ids=["tomato", "tomato-lettuce"]
)


def views(kitchen: Kitchen) -> list[View]:
    return [view(kitchen, state) for state in reachable(kitchen)]


def at_first_board(
    hand: str | None, first: str | None, cuts: tuple[int, ...] = (0, 0, 0), *bowl: str
) -> View:
    return view(TOMATO_LETTUCE_SALAD, State((1, 1), hand, (first, None), cuts, bowl))


@pytest.mark.parametrize(
    ("kitchen", "prompts", "lists"), [(TOMATO_SALAD, 21, 6), (TOMATO_LETTUCE_SALAD, 787, 39)]
)
def test_there_are_as_many_prompts_and_offers_as_documented(
    kitchen: Kitchen, prompts: int, lists: int
):
    assert len({v.prompt for v in views(kitchen)}) == prompts
    assert len({v.actions for v in views(kitchen)}) == lists


@BOTH
def test_prompts_are_equal_exactly_if_the_facts_are(kitchen: Kitchen):
    pairs = {(see(kitchen, state), view(kitchen, state).prompt) for state in reachable(kitchen)}
    assert len(pairs) == len({f for f, _ in pairs}) == len({prompt for _, prompt in pairs})


@BOTH
def test_offered_actions_are_a_function_of_the_prompt(kitchen: Kitchen):
    pairs = {(v.prompt, v.actions) for v in views(kitchen)}
    assert len(pairs) == len({prompt for prompt, _ in pairs})


@BOTH
def test_offered_actions_are_distinct_and_none_is_a_prefix_of_another(kitchen: Kitchen):
    for _, actions in views(kitchen):
        assert len(actions) == len(kitchen.macros)
        assert all(action == action.strip(" .") for action in actions)
        starts = [(a, b) for a in actions for b in actions if b.startswith(a)]
        assert starts == [(a, a) for a in actions]


@BOTH
def test_prompts_are_short_and_an_action_continues_them(kitchen: Kitchen):
    for prompt, _ in views(kitchen):
        assert prompt.endswith("Next, you should")
        assert "  " not in prompt
        assert len(prompt) < 256


def test_the_first_prompts():
    assert view(TOMATO_SALAD, TOMATO_SALAD.start) == (
        "Deliver a bowl of only chopped tomato. There is one cutting board. "
        "You see a tomato. You hold nothing. Next, you should",
        ("get the tomato", "get the bowl", "go to the board", "deliver nothing", "chop nothing"),
    )
    assert view(TOMATO_LETTUCE_SALAD, TOMATO_LETTUCE_SALAD.start) == (
        "Deliver a bowl of only chopped tomato and lettuce. There are two cutting boards. "
        "You see a tomato, a lettuce and an onion. You hold nothing. Next, you should",
        (
            *("get the tomato", "get the lettuce", "get the onion", "get the empty bowl"),
            *("go to the first board", "go to the second board"),
            *("deliver nothing", "chop nothing"),
        ),
    )


def test_a_prompt_with_both_boards_taken():
    state = State((2, 1), "onion", ("bowl", "tomato"), (3, 3, 0), ("lettuce",))
    assert view(TOMATO_LETTUCE_SALAD, state).prompt == (
        "Deliver a bowl of only chopped tomato and lettuce. There are two cutting boards. "
        "The first board holds a bowl of lettuce. The second board holds chopped tomato. "
        "You are at the second board and hold raw onion. Next, you should"
    )


def test_the_order_of_plating_is_hidden():
    one = at_first_board("bowl", None, (3, 3, 0), "tomato", "lettuce")
    assert one == at_first_board("bowl", None, (3, 3, 0), "lettuce", "tomato")
    assert "a bowl of tomato and lettuce" in one.prompt


def test_a_board_out_of_view_reads_like_an_empty_one():
    out_of_view, in_view = (3, 3), (3, 1)  # no home is in view from either
    empty = State(in_view, "bowl", (None,), (0,), ())
    taken = State(out_of_view, "bowl", ("tomato",), (0,), ())
    assert view(TOMATO_SALAD, empty) == view(TOMATO_SALAD, taken)
    assert view(TOMATO_SALAD, empty) != view(TOMATO_SALAD, taken._replace(agent=in_view))


@pytest.mark.parametrize("bowl", [(), ("onion",)])
def test_with_the_bowl_in_hand_all_food_goes_into_it(bowl: tuple[str, ...]):
    actions = at_first_board("bowl", None, (0, 0, 3 * len(bowl)), *bowl).actions
    assert actions[:3] == tuple(
        f"add the {food} to the bowl" for food in ("tomato", "lettuce", "onion")
    )
    assert actions[4:7] == (
        "put the bowl on the first board",
        "put the bowl on the second board",
        "deliver the dish",
    )


@pytest.mark.parametrize(
    ("hand", "first"), [("bowl", None), (None, "bowl")], ids=["in hand", "on a board"]
)
def test_the_bowl_is_called_empty_unless_a_filled_one_is_in_view(
    hand: str | None, first: str | None
):
    assert at_first_board(hand, first).actions[3] == "get the empty bowl"
    assert at_first_board(hand, first, (3, 0, 0), "tomato").actions[3] == "get the bowl"
    far = State((5, 5), None, ("bowl", None), (3, 0, 0), ("tomato",))
    assert view(TOMATO_LETTUCE_SALAD, far).actions[3] == "get the empty bowl"


def test_raw_food_is_put_on_a_board_and_chopped_food_is_not_mentioned():
    raw, chopped = at_first_board("onion", None), at_first_board("onion", None, (0, 0, 3))
    assert raw.actions[4:7] == (
        "put the onion on the first board",
        "put the onion on the second board",
        "deliver the dish",
    )
    assert chopped.actions[4:7] == (
        "go to the first board",
        "go to the second board",
        "deliver the dish",
    )


@pytest.mark.parametrize("hand", [None, "onion"])
@pytest.mark.parametrize("cuts", [0, 3])
def test_bare_food_on_the_board_in_front_is_offered_for_chopping(hand: str | None, cuts: int):
    assert at_first_board(hand, "lettuce", (0, cuts, 0)).actions[7] == "chop the lettuce"
    assert at_first_board(hand, None).actions[7] == "chop nothing"
    assert at_first_board(hand, "bowl").actions[7] == "chop nothing"
    elsewhere = State((2, 1), hand, ("lettuce", None), (0, cuts, 0), ())
    assert view(TOMATO_LETTUCE_SALAD, elsewhere).actions[7] == "chop nothing"
