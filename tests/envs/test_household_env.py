"""The household as an environment: limits, endings, info, and strings that are not offered."""

from typing import Any, cast

import pytest
from household_search import reachable, shortest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.envs.check import check_env
from poad.envs.household.env import HouseholdEnv
from poad.envs.household.tasks import TASKS
from poad.envs.household.text import distractor_pool, slot_strings, view
from poad.envs.registry import make

BEST = {"poad/FoodPreparation-v0": 6, "poad/Laundry-v0": 6, "poad/Entertainment-v0": 11}
NONSENSE = "hum a tune"
REGISTERED = {
    "FoodPreparation": "food_preparation",
    "Cheese": "cheese",
    "Hamburger": "hamburger",
    "ApplePie": "apple_pie",
    "Pizza": "pizza",
    "WashingPlate": "washing_plate",
    "Laundry": "laundry",
    "Entertainment": "entertainment",
    "EntertainmentSparseText": "entertainment_sparse_text",
    "EntertainmentAllActions": "entertainment_all_actions",
}


def household(env_id: str = "poad/FoodPreparation-v0", **kwargs: int) -> HouseholdEnv:
    env = make(env_id, **kwargs)
    env.reset(seed=0)
    return cast(HouseholdEnv, env.unwrapped)


def act(env: HouseholdEnv, slot: int):
    return env.step(slot_strings(env.task)[slot])


def test_the_registered_names_choose_the_tasks():
    for name, task in REGISTERED.items():
        assert household(f"poad/{name}-v0").task is TASKS[task]
    assert set(REGISTERED.values()) == set(TASKS)


@pytest.mark.parametrize("env_id", BEST)
def test_the_best_episode_terminates_with_success(env_id: str):
    env = household(env_id)
    way = shortest(env.task.house)[0]
    for slot in way[:-1]:
        _, reward, terminated, truncated, info = act(env, slot)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert info == {"admissible_actions": view(env.task, env.state).actions, "duration": 1}
    _, reward, terminated, truncated, info = act(env, way[-1])
    assert (reward, terminated, truncated) == (1.0, True, False)
    steps = BEST[env_id]
    assert info["episode"] == {"r": pytest.approx(0.95 ** (steps - 1)), "l": steps, "success": True}


def test_the_limit_truncates_without_reward():
    env = household()
    for _ in range(49):
        assert env.step(NONSENSE)[1:4] == (0.0, False, False)
    *outcome, info = env.step(NONSENSE)
    assert outcome[1:] == [0.0, False, True]
    assert info["episode"] == {"r": 0.0, "l": 50, "success": False}


@pytest.mark.parametrize("env_id", BEST)
def test_a_goal_reached_on_the_last_step_is_a_success(env_id: str):
    env = household(env_id)
    for _ in range(50 - BEST[env_id]):
        env.step(NONSENSE)
    *before, last = shortest(env.task.house)[0]
    for slot in before:
        act(env, slot)
    _, reward, terminated, truncated, info = act(env, last)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["episode"] == {"r": pytest.approx(0.95**49), "l": 50, "success": True}


@pytest.mark.parametrize("action", [NONSENSE, "", "take the cheese", "Take the pancake", "4"])
def test_a_string_of_no_slot_fails_and_is_named(action: str):
    env = household()
    before = env.state
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["duration"], info["invalid_action"]) == (1, action)
    assert env.state == before


def test_a_string_that_is_not_offered_acts_and_is_named():
    env = household()
    for slot in (4, 6, 5, 8, 7):
        act(env, slot)
    prompt, *_, info = env.step("take the pancake")  # out of the microwave: never offered
    assert info["invalid_action"] == "take the pancake"
    assert "You hold the pancake." in prompt
    *_, info = env.step("open the microwave")  # offered, and fails
    assert "invalid_action" not in info
    assert "You hold the pancake." in prompt


def test_in_the_variant_with_all_actions_every_string_is_offered():
    env = household("poad/EntertainmentAllActions-v0")
    for action in slot_strings(env.task)[:15]:
        assert "invalid_action" not in env.step(action)[4]


@pytest.mark.parametrize("env_id", ["poad/FoodPreparation-v0", "poad/Entertainment-v0"])
def test_distractors_are_offered_and_always_fail(env_id: str):
    check_env(lambda: make(env_id, distractors=97), episodes=3)
    env = household(env_id, distractors=97)
    prompt, info = env.reset()
    assert len(info["admissible_actions"]) > 100
    for state in reachable(env.task.house)[:12]:
        for action in view(env.task, state, 97).actions[-97:]:
            env.reset()
            env.state = state
            *_, reward, terminated, truncated, info = env.step(action)
            assert (reward, terminated, truncated) == (0.0, False, False)
            assert "invalid_action" not in info
            assert env.state == state
    elsewhere = set(distractor_pool(env.task)) - set(view(env.task, env.state, 97).actions)
    assert env.step(min(elsewhere))[4]["invalid_action"] == min(elsewhere)
    assert prompt == view(env.task, env.task.house.start).prompt


@pytest.mark.parametrize("distractors", [-1, 129])
def test_too_many_distractors_are_an_error(distractors: int):
    with pytest.raises(ValueError, match=f"from 0 to 128 in this task, got {distractors}"):
        household(distractors=distractors)


def test_max_steps_moves_the_limit():
    env = household(max_steps=2)
    assert env.step(NONSENSE)[3] is False
    assert env.step(NONSENSE)[3] is True
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        household(max_steps=0)


def test_an_unknown_task_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'ironing'; known: food_preparation, cheese,"):
        HouseholdEnv(task="ironing")


def test_the_numeric_observation_follows_the_state():
    env = household()
    assert env.numeric_observation() == [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    for slot in (4, 6, 5, 8, 7):
        act(env, slot)
    assert env.numeric_observation() == [1, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1]
    assert all(type(bit) is int for bit in env.numeric_observation())
    env = household("poad/Entertainment-v0")
    for slot in (4, 9, 0, 6, 11, 7, 13, 8, 15):
        act(env, slot)
    assert env.numeric_observation() == [
        *(0, 0, 0, 1),
        *(1, 0, 0, 1),  # the chips, on the coffee table
        *(0, 0, 0, 0),  # the milk, in the kitchen
        *(1, 0, 1, 1),  # the TV
        *(1, 1, 1),  # the sofa
        *(1, 0),  # the coffee table
    ]


@pytest.mark.parametrize("env_id", ["poad/FoodPreparation-v0", "poad/Entertainment-v0"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_return_of_an_episode_is_the_sum_of_its_rewards_for_any_actions(
    env_id: str, data: st.DataObject
):
    env = household(env_id, max_steps=data.draw(st.integers(1, 50)))
    known = (*slot_strings(env.task), NONSENSE)
    way = iter(shortest(env.task.house)[0]) if data.draw(st.booleans()) else iter(())
    info: dict[str, Any] = env.reset()[1]
    total, steps = 0.0, 0
    while "episode" not in info:
        slot = next(way, None)
        action = known[slot] if slot is not None else data.draw(st.sampled_from(known))
        offered = info["admissible_actions"]
        prompt, reward, terminated, truncated, info = env.step(action)
        total, steps = total + 0.95**steps * reward, steps + 1
        assert prompt in env.observation_space
        assert reward == float(terminated)
        assert not (terminated and truncated)
        assert truncated == (steps == env.max_steps and not terminated)
        assert info.get("invalid_action", action) == action
        assert ("invalid_action" in info) == (action not in offered)
        assert ("episode" in info) == (terminated or truncated)
    assert info["episode"] == {"r": pytest.approx(total), "l": steps, "success": total > 0}
