"""The household's words: what each prompt tells and hides, and the actions that go with it."""

from collections import defaultdict

import pytest
from household_search import observations, reachable, run, slots

from poad.envs.household.rules import ROOMS, observe
from poad.envs.household.tasks import TASKS
from poad.envs.household.text import distractor_pool, slot_strings, view
from poad.envs.text_world import View

EACH_TASK = pytest.mark.parametrize("name", TASKS)
CHORES = [name for name, task in TASKS.items() if task.style == "chore"]
EVENING_GOAL = "Watch TV on the sofa with the chips and the milk."


def views(name: str, every: bool = False) -> list[View]:
    return [view(TASKS[name], state) for state in reachable(TASKS[name].house, every)]


def prompt(name: str, *before: int) -> str:
    """What is read after trying these slots, without the goal and the ending."""
    task = TASKS[name]
    text = view(task, run(task.house, *before)).prompt
    return text.removeprefix(task.goal + " ").removesuffix(" Next, you should")


def rest(name: str, *before: int) -> str:
    """The same without the sentence about the rooms."""
    return prompt(name, *before).partition("living room. ")[2]


@pytest.mark.parametrize(
    ("name", "prompts", "pairs"),
    [
        *((chore, 18, 18) for chore in CHORES),
        ("entertainment", 92, 92),
        ("entertainment_sparse_text", 59, 60),
    ],
)
def test_there_are_as_many_prompts_and_pairs_of_prompt_and_offer_as_documented(
    name: str, prompts: int, pairs: int
):
    assert len({v.prompt for v in views(name)}) == prompts
    assert len(set(views(name))) == pairs


@EACH_TASK
def test_offered_actions_are_a_function_of_the_prompt_except_in_the_sparse_text(name: str):
    lists = defaultdict[str, set[tuple[str, ...]]](set)
    for v in views(name, every=True):
        lists[v.prompt].add(v.actions)
    aliased = [text for text, offered in lists.items() if len(offered) > 1]
    if name != "entertainment_sparse_text":
        assert aliased == []
    else:
        assert aliased == [
            f"{EVENING_GOAL} You are in the living room at the sofa. "
            "You hold nothing. Next, you should"
        ]


@EACH_TASK
def test_prompts_are_functions_of_the_observation(name: str):
    task = TASKS[name]
    pairs = {
        (observe(task.house, state), view(task, state)) for state in reachable(task.house, True)
    }
    assert len(pairs) == len(observations(task.house, every=True))


@EACH_TASK
def test_prompts_are_short_and_an_action_continues_them(name: str):
    for text, _ in views(name, every=True):
        assert text.startswith(TASKS[name].goal)
        assert text.endswith("Next, you should")
        assert "  " not in text
        assert len(text) < 256


@EACH_TASK
def test_a_task_has_one_string_per_slot_and_none_is_a_prefix_of_another(name: str):
    strings = (*slot_strings(TASKS[name]), *distractor_pool(TASKS[name]))
    assert len(slot_strings(TASKS[name])) == len(TASKS[name].house.slots)
    assert all(action == action.strip(" .") for action in strings)
    assert [(a, b) for a in strings for b in strings if b.startswith(a)] == [
        (a, a) for a in strings
    ]


@EACH_TASK
def test_the_offered_strings_are_those_of_the_offered_slots(name: str):
    task = TASKS[name]
    for state in reachable(task.house):
        if listed := slots(task.house, state):
            assert view(task, state).actions == tuple(slot_strings(task)[slot] for slot in listed)


# Food preparation, and what is told like it


def test_the_words_of_food_preparation():
    task = TASKS["food_preparation"]
    assert view(task, task.house.start) == (
        "Heat up the pancake in the microwave. "
        "There are a kitchen, a bathroom, a bedroom and a living room. You are in the kitchen. "
        "You see the pancake and the shut microwave. You hold nothing. Next, you should",
        (
            *("go to the living room", "go to the bathroom", "go to the bedroom"),
            *("go to the pancake", "go to the microwave"),
        ),
    )
    assert slot_strings(task) == (
        *("go to the living room", "go to the kitchen", "go to the bathroom", "go to the bedroom"),
        *("go to the pancake", "go to the microwave", "take the pancake"),
        *("put the pancake into the microwave", "open the microwave", "close the microwave"),
    )


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ((2,), "You are in the bathroom. You hold nothing."),
        ((4, 6, 3), "You are in the bedroom. You hold the pancake."),
        (
            (4,),
            "You are in the kitchen at the pancake. "
            "You see the pancake and the shut microwave. You hold nothing.",
        ),
        (
            (5, 8),
            "You are in the kitchen at the microwave. "
            "You see the pancake and the open microwave. You hold nothing.",
        ),
        (
            (4, 6),
            "You are in the kitchen. "
            "You see the pancake and the shut microwave. You hold the pancake.",
        ),
        (
            (4, 6, 5),
            "You are in the kitchen at the microwave. "
            "You see the pancake and the shut microwave. You hold the pancake.",
        ),
        (
            (4, 6, 5, 8, 7, 9),
            "You are in the kitchen at the microwave. "
            "You see the shut microwave with the pancake in it. You hold nothing.",
        ),
    ],
)
def test_the_prompts_of_a_chore(before: tuple[int, ...], told: str):
    rooms = "There are a kitchen, a bathroom, a bedroom and a living room. "
    assert prompt("food_preparation", *before) == rooms + told


def test_a_chore_hides_two_pairs_of_states():
    put_in = rest("food_preparation", 4, 6, 5, 8, 7)
    assert put_in == "You are in the kitchen. You see the pancake and the open microwave."
    came_back = rest("food_preparation", 4, 6, 5, 8, 7, 0, 1)
    assert came_back == put_in + " You hold nothing."
    assert came_back == rest("food_preparation", 5, 8, 0, 1)  # with the pancake on the table


@pytest.mark.parametrize("name", CHORES)
def test_all_chores_have_the_same_prompts_about_other_things(name: str):
    task, known = TASKS[name], TASKS["food_preparation"]
    item, appliance = task.words["item"], task.words["appliance"]

    def renamed(text: str) -> str:
        text = text.replace(known.goal, task.goal)
        return text.replace("pancake", item).replace("microwave", appliance)

    assert task.house is known.house
    for state in reachable(task.house, every=True):
        was = view(known, state)
        assert view(task, state) == (renamed(was.prompt), tuple(map(renamed, was.actions)))
    assert (
        task.goal
        == {
            "food_preparation": "Heat up the pancake in the microwave.",
            "cheese": "Heat up the cheese in the microwave.",
            "hamburger": "Heat up the hamburger in the microwave.",
            "apple_pie": "Heat up the apple pie in the microwave.",
            "pizza": "Heat up the pizza in the microwave.",
            "washing_plate": "Wash the dishes in the dishwasher.",
            "laundry": "Wash the clothes in the washing machine.",
        }[name]
    )


# Entertainment


def test_the_words_of_entertainment():
    task = TASKS["entertainment"]
    assert task.goal == EVENING_GOAL
    assert slot_strings(task) == (
        *("go to the living room", "go to the kitchen", "go to the bathroom", "go to the bedroom"),
        *("go to the chips", "go to the milk", "go to the coffee table", "go to the TV"),
        *("go to the sofa", "take the chips", "take the milk", "put the chips on the coffee table"),
        *("put the milk on the coffee table", "turn on the TV", "turn off the TV"),
        *("sit down on the sofa", "stand up from the sofa"),
    )
    all_actions = TASKS["entertainment_all_actions"]
    assert {v.actions for v in views("entertainment_all_actions")} == {slot_strings(all_actions)}


IN_KITCHEN = "You are in the kitchen"
IN_LIVING_ROOM = "You are in the living room"


@pytest.mark.parametrize(
    ("before", "told", "sparse"),
    [
        ((), f"{IN_KITCHEN}. You see the chips and the milk. You hold nothing.", None),
        (
            (4,),
            f"{IN_KITCHEN} at the chips. You see the chips and the milk. You hold nothing.",
            None,
        ),
        ((4, 9), f"{IN_KITCHEN}. You see the chips and the milk. You hold the chips.", None),
        ((4, 9, 2), "You are in the bathroom. You hold the chips.", None),
        ((4, 9, 0, 6, 11, 1), f"{IN_KITCHEN}. You see the milk. You hold nothing.", None),
        (
            (0,),
            f"{IN_LIVING_ROOM}. The TV is off. You hold nothing.",
            f"{IN_LIVING_ROOM}. You hold nothing.",
        ),
        ((0, 7), f"{IN_LIVING_ROOM} at the TV. The TV is off. You hold nothing.", None),
        ((0, 7, 13), f"{IN_LIVING_ROOM} at the TV. The TV is on. You hold nothing.", None),
        (
            (0, 7, 13, 8),
            f"{IN_LIVING_ROOM} at the sofa. The TV is on. You hold nothing.",
            f"{IN_LIVING_ROOM} at the sofa. You hold nothing.",
        ),
        (
            (0, 7, 13, 8, 15),
            f"{IN_LIVING_ROOM} at the sofa. The TV is on. You sit on the sofa. You hold nothing.",
            None,
        ),
        ((4, 9, 0, 8), f"{IN_LIVING_ROOM} at the sofa. The TV is off. You hold the chips.", None),
        (
            (4, 9, 0, 6, 11),
            f"{IN_LIVING_ROOM} at the coffee table. The coffee table holds the chips. "
            "The TV is off. You hold nothing.",
            f"{IN_LIVING_ROOM} at the coffee table. You hold nothing.",
        ),
        (
            (4, 9, 5, 10, 0, 6, 11),
            f"{IN_LIVING_ROOM} at the coffee table. The coffee table holds the chips. "
            "The TV is off. You hold the milk.",
            f"{IN_LIVING_ROOM} at the coffee table. The coffee table holds the chips. "
            "You hold the milk.",
        ),
        (
            (4, 9, 5, 10, 0, 6, 11, 1, 0),
            f"{IN_LIVING_ROOM}. The coffee table holds the chips. The TV is off. "
            "You hold the milk.",
            f"{IN_LIVING_ROOM}. You hold the milk.",
        ),
        (
            (4, 9, 5, 10, 0, 6, 11, 7, 13, 8, 15),
            f"{IN_LIVING_ROOM} at the sofa. The coffee table holds the chips. The TV is on. "
            "You sit on the sofa. You hold the milk.",
            None,
        ),
        (
            (4, 9, 5, 10, 0, 6, 11, 12),
            f"{IN_LIVING_ROOM} at the coffee table. "
            "The coffee table holds the chips and the milk. The TV is off. You hold nothing.",
            f"{IN_LIVING_ROOM} at the coffee table. You hold nothing.",
        ),
        ((0, 8, 15, 16, 7), f"{IN_LIVING_ROOM} at the TV. The TV is off. You hold nothing.", None),
    ],
)
def test_the_prompts_of_the_evening(before: tuple[int, ...], told: str, sparse: str | None):
    assert prompt("entertainment", *before) == told
    assert prompt("entertainment_all_actions", *before) == told
    assert prompt("entertainment_sparse_text", *before) == (sparse or told)


def test_near_the_sofa_an_agent_that_stood_up_reads_that_it_sits():
    assert "You sit on the sofa." in prompt("entertainment", 0, 8, 15, 16)


def test_the_evening_hides_only_which_items_are_near():
    """Observations that read the same differ in "near" an item that was just put down."""
    task = TASKS["entertainment"]
    same = defaultdict[str, set[tuple[int, ...]]](set)
    for state in reachable(task.house):
        bits = list(observe(task.house, state))
        for item in (5, 9):
            bits[item] = bits[item] if bits[0] else 0
        same[view(task, state).prompt].add(tuple(bits))
    assert all(len(seen) == 1 for seen in same.values())


# Distractors


@pytest.mark.parametrize(("name", "count"), [("laundry", 128), ("entertainment", 271)])
def test_distractors_are_made_of_the_words_of_the_household(name: str, count: int):
    task = TASKS[name]
    pool = distractor_pool(task)
    assert len(pool) == len(set(pool)) == count
    household = (
        word for t in TASKS.values() for action in slot_strings(t) for word in action.split()
    )
    assert {word for phrase in pool for word in phrase.split()} <= set(household)
    nouns = (*ROOMS, *task.words.values())
    assert all(any(noun in phrase for noun in nouns) for phrase in pool)


def test_distractors_follow_the_offered_actions_and_depend_on_the_prompt_alone():
    task = TASKS["food_preparation"]
    chosen = {}
    for state in reachable(task.house):
        plain, more = view(task, state), view(task, state, 97)
        assert more.prompt == plain.prompt
        assert more.actions[: len(plain.actions)] == plain.actions
        assert len(set(more.actions)) == len(plain.actions) + 97 >= 100
        assert view(task, state, 3).actions == more.actions[: len(plain.actions) + 3]
        extra = more.actions[len(plain.actions) :]
        assert chosen.setdefault(plain.prompt, extra) == extra
    assert len(set(chosen.values())) == len(chosen)
    # The same on every machine and in every process.
    assert chosen[view(task, task.house.start).prompt][0] == "go from the kitchen to the bedroom"
