"""The kitchen as an environment: limits, endings, info, and its place in Gymnasium."""

import random
from typing import cast

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from kitchen_search import reachable

from poad.envs.kitchen.env import KitchenEnv
from poad.envs.kitchen.text import view
from poad.envs.registry import make

WORLDS = ("poad/TomatoSalad-v0", "poad/TomatoLettuceSalad-v0")
BEST = {"poad/TomatoSalad-v0": "024013", "poad/TomatoLettuceSalad-v0": "0471573106"}
EACH_WORLD = pytest.mark.parametrize("env_id", WORLDS)
IDLE = "hum a tune"


def kitchen(env_id: str = WORLDS[0], **kwargs: int) -> KitchenEnv:
    env = make(env_id, **kwargs)
    env.reset(seed=0)
    return cast(KitchenEnv, env.unwrapped)


def act(env: KitchenEnv, slot: str):
    """Take the offered action at a slot."""
    return env.step(view(env.kitchen, env.state).actions[int(slot)])


def play(env: KitchenEnv, slots: str, until: int = 0) -> None:
    """Take the actions at these slots, then idle until so many primitive steps have passed."""
    passed = 0
    for slot in slots:
        passed += act(env, slot)[4]["duration"]
    for _ in range(passed, until):
        assert env.step(IDLE)[2:4] == (False, False)


@EACH_WORLD
def test_the_best_episode_terminates_with_success(env_id: str):
    env = kitchen(env_id)
    play(env, BEST[env_id][:-1])
    prompt, reward, terminated, truncated, info = act(env, BEST[env_id][-1])
    assert (terminated, truncated) == (True, False)
    assert prompt in env.observation_space
    assert reward > 0.9
    r = {WORLDS[0]: 0.920518092564195, WORLDS[1]: 0.9476564569165644}[env_id]
    steps = {WORLDS[0]: 28, WORLDS[1]: 45}[env_id]
    assert info["episode"] == {"r": r, "l": steps, "success": True}


@EACH_WORLD
def test_every_reset_gives_the_same_state(env_id: str):
    env = kitchen(env_id)
    first = env.reset(seed=1)
    play(env, BEST[env_id][:4])
    assert env.reset(seed=2, options={}) == first
    assert env.state == env.kitchen.start


def test_a_step_reports_its_duration_and_the_next_offered_actions():
    env = kitchen()
    prompt, info = env.reset()
    assert info == {"admissible_actions": view(env.kitchen, env.kitchen.start).actions}
    prompt, reward, *_, info = env.step("get the bowl")
    assert reward == -0.0058519850598999995
    assert info == {"admissible_actions": view(env.kitchen, env.state).actions, "duration": 6}
    assert prompt == view(env.kitchen, env.state).prompt


@pytest.mark.parametrize("action", [IDLE, "", "get the lettuce", "Get the tomato", "0"])
def test_a_string_that_is_not_offered_is_one_idle_step(action: str):
    env = kitchen()
    before = env.state
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (-0.001, False, False)
    assert (info["duration"], info["invalid_action"]) == (1, action)
    assert env.state == before


def test_the_limit_truncates_at_its_step():
    env = kitchen()
    play(env, "", until=199)
    _, _, terminated, truncated, info = env.step(IDLE)
    assert (terminated, truncated) == (False, True)
    assert info["episode"]["l"] == 200
    assert info["episode"]["success"] is False
    assert info["episode"]["r"] == pytest.approx(-0.001 * (1 - 0.99**200) / 0.01, abs=1e-12)


def test_a_macro_action_that_exceeds_the_limit_is_completed_and_rewarded():
    env = kitchen()
    play(env, "0240", until=199)  # the chopped tomato is in hand; the bowl is far away
    _, reward, terminated, truncated, info = act(env, "1")
    assert (terminated, truncated, info["duration"]) == (False, True, 10)
    assert info["episode"]["l"] == 209
    assert reward == pytest.approx(-0.001 * (1 - 0.99**10) / 0.01, abs=1e-15)
    assert env.state.hand == "bowl"
    assert env.state.bowl == ("tomato",)


@pytest.mark.parametrize(
    ("env_id", "before", "last"),
    [("poad/TomatoSalad-v0", "02401", 206), ("poad/TomatoLettuceSalad-v0", "0471573102", 205)],
)
def test_a_right_delivery_that_exceeds_the_limit_terminates(env_id: str, before: str, last: int):
    env = kitchen(env_id)
    play(env, before, until=199)
    _, reward, terminated, truncated, info = act(env, BEST[env_id][-1])
    assert (terminated, truncated) == (True, False)
    assert info["episode"]["l"] == last
    assert info["episode"]["success"] is True
    assert reward > 0.9


def test_a_wrong_delivery_that_exceeds_the_limit_is_rewarded_and_truncates():
    env = kitchen()
    play(env, "0", until=199)
    _, reward, terminated, truncated, info = act(env, "3")
    assert (terminated, truncated, info["episode"]["l"]) == (False, True, 206)
    assert reward == -0.100941480149401


def test_max_steps_moves_the_limit():
    env = kitchen(max_steps=3)
    play(env, "", until=2)
    assert env.step(IDLE)[3] is True
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        KitchenEnv(max_steps=0)


def test_an_unknown_task_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'soup'; known: tomato_salad, tomato_lettuce_salad"):
        KitchenEnv(task="soup")  # pyright: ignore[reportArgumentType]


def test_stepping_before_a_reset_or_after_the_end_requires_a_reset():
    with pytest.raises(ResetNeeded, match="call reset"):
        make(WORLDS[0]).step(IDLE)
    env = kitchen(max_steps=1)
    env.step(IDLE)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(IDLE)
    env.reset()
    env.step(IDLE)


@EACH_WORLD
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_rewards_discounted_by_duration_add_up_to_the_episode_return(env_id: str, seed: int):
    env, rng = make(env_id), random.Random(seed)
    _, info = env.reset()
    total, factor, steps, ended = 0.0, 1.0, 0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(rng.choice(info["admissible_actions"]))
        total += factor * float(reward)
        factor *= 0.99 ** info["duration"]
        steps += info["duration"]
        ended = terminated or truncated
        assert ("episode" in info) == ended
    assert abs(total - info["episode"]["r"]) <= 1e-12
    assert steps == info["episode"]["l"]


@EACH_WORLD
def test_the_spaces_hold_every_prompt_and_every_offered_action(env_id: str):
    env = kitchen(env_id)
    for state in reachable(env.kitchen):
        prompt, actions = view(env.kitchen, state)
        assert prompt in env.observation_space
        assert all(action in env.action_space for action in actions)


def test_the_numeric_observation_follows_the_state():
    env = kitchen()
    assert env.numeric_observation() == [0, 5, *[0] * 7, 1, 4, 1, *[0] * 6]
    act(env, "0")
    assert env.numeric_observation() == [1, 5, *[0] * 7, 1, 5, 1, *[0] * 6]
    assert all(type(number) is int for number in env.numeric_observation())


@EACH_WORLD
def test_gymnasium_makes_and_checks_it_without_a_time_limit(env_id: str):
    env = gymnasium.make(env_id, max_steps=7)  # its passive checker warns, which is an error here
    assert env.spec is not None
    assert env.spec.max_episode_steps is None
    env.reset(seed=3)
    steps = [env.step("chop nothing") for _ in range(7)]
    assert [step[2:4] for step in steps] == [*[(False, False)] * 6, (False, True)]
    assert steps[-1][4]["episode"]["l"] == 7


def test_gymnasium_statistics_need_their_own_key():
    env = RecordEpisodeStatistics(make(WORLDS[0], max_steps=2), stats_key="statistics")
    env.reset()
    env.step(IDLE)
    *_, info = env.step(IDLE)
    assert info["statistics"]["l"] == 2
    assert info["statistics"]["r"] == pytest.approx(-0.002)
    assert info["episode"]["r"] == pytest.approx(-0.00199)
    assert 'stats_key="statistics"' in str(KitchenEnv.__doc__)
    clash = RecordEpisodeStatistics(make(WORLDS[0], max_steps=1))
    clash.reset()
    with pytest.raises(AssertionError):
        clash.step(IDLE)
