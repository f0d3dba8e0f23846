"""The desk as an environment: what it shows, what it pays, and when it ends."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st
from tooldesk_search import desk

from poad.config import ModelConfig
from poad.envs.check import check_env
from poad.envs.contract import CheckedWorld
from poad.envs.registry import make
from poad.envs.tooldesk.desk import Call
from poad.envs.tooldesk.families import FAMILIES, TRAIN, UNSEEN
from poad.envs.tooldesk.rules import CONTRIBUTED, SUCCEEDED
from poad.errors import ConfigError
from poad.lm.loading import load_model

VARIANTS: list[dict[str, Any]] = [
    {},
    {"families": "unseen", "reward": "steps"},
    {"families": "all", "masked": True, "reward": "steps"},
    {"families": "cancel,refund", "arguments": "open", "show_tools": "full"},
    {"unfit": 1.0, "distractors": 3, "customers": 2},
    {"customers": 16, "max_steps": 3, "show_tools": "names"},
]
Played = list[tuple[str, float, bool, bool, dict[str, Any]]]


def play(env: Any, actions: Any) -> Played:
    """Take actions until the episode ends."""
    seen = []
    for action in actions:
        seen.append(env.step(action))
        if seen[-1][2] or seen[-1][3]:
            break
    return seen


def at_random(env: Any, dice: random.Random) -> str:
    """A call drawn from what the grammar says, tools first."""
    function = dice.choice(env.toolbox.grammar["tools"])["function"]
    arguments = {}
    for name, schema in function["parameters"]["properties"].items():
        if schema["type"] == "integer":
            arguments[name] = dice.randint(schema["minimum"], schema["maximum"])
        else:
            arguments[name] = dice.choice(schema.get("enum", [False, True]))
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_the_contract_holds_whatever_the_arguments(arguments: dict[str, Any]):
    check_env(lambda: make("poad/ToolDesk-v0", **arguments), episodes=6)


@pytest.mark.parametrize(
    "arguments", [each for each in VARIANTS if "arguments" not in each], ids=str
)
def test_random_calls_are_valid_and_equal_calls_give_equal_episodes(arguments: dict[str, Any]):
    one, other = (make("poad/ToolDesk-v0", **arguments) for _ in range(2))
    checked, dice = CheckedWorld(one), random.Random(1)
    for seed in range(25):
        prompt = checked.reset(seed).prompt
        assert other.reset(seed=seed)[0] == prompt
        over = False
        while not over:
            action = at_random(one.unwrapped, dice)
            assert action in one.action_space
            happened, again = checked.step(action), other.step(action)
            over = happened.terminated or happened.truncated
            assert "invalid_action" not in happened.info
            assert happened.info["measures"]["valid"] == 1.0
            assert happened.prompt in one.observation_space
            assert again == (happened.prompt, *happened[2:5], dict(happened.info))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_solution_succeeds_and_its_arguments_stand_in_the_prompts(family: str):
    """So no memory is needed: whoever reads the last prompt knows what to write."""
    for seed in range(15):
        env = desk(seed, families=family, reward="steps")
        prompt, _ = env.reset(seed=seed)
        rewards, happened = [], {}
        for action, call in zip(env.solution(), env.task.plan, strict=True):
            words = set(re.findall(r"\w+", prompt))
            free = {"any", "False", "True"}
            assert {str(value) for value in call.arguments} - free <= words
            prompt, reward, terminated, _, happened = env.step(action)
            rewards.append(reward)
            assert terminated == (call == env.task.plan[-1])
        paid = SUCCEEDED * len(env.task.plan) + CONTRIBUTED * len(env.task.needed)
        assert sum(rewards) == pytest.approx(1 + paid)
        told = happened["episode"]
        assert told == {"r": pytest.approx(1 + paid), "l": len(env.task.plan), "success": True}


def test_info_tells_the_goal_the_family_and_the_same_grammar_all_along():
    env = make("poad/ToolDesk-v0", families="cancel").unwrapped
    prompt, info = env.reset(seed=3)
    assert info.keys() == {"action_grammar", "goal", "family", "duration"}
    assert f"Goal: {info['goal']}\n" in prompt
    assert info["family"] == "cancel"
    after = env.step("hum a tune")[4]
    assert after["action_grammar"] is info["action_grammar"]
    assert after["goal"] == info["goal"]


def test_what_was_paid_for_is_told_and_where_it_came_from():
    env = desk(1, families="cancel")
    seen = play(env, env.solution())
    used = [(info["measures"]["contributed"], info["sources"]) for *_, info in seen]
    # The id of the order is used by the third call, so the fourth call adds the price only.
    assert used == [(0.0, ()), (1.0, (1,)), (1.0, (2,)), (1.0, (2, 3)), (1.0, (4,))]
    assert all(info["measures"]["succeeded"] == 1.0 for *_, info in seen)
    assert [reward for _, reward, *_ in seen] == [0, 0, 0, 0, 1]


def test_step_grained_rewards_pay_at_the_step_where_it_happens():
    env = desk(1, families="cancel", reward="steps")
    once, again = env.solution()[0], env.solution()[0]
    assert env.step(once)[1] == SUCCEEDED
    assert env.step(again)[1] == 0
    assert env.step("hum a tune")[1] == 0
    assert env.step(env.solution()[1])[1] == pytest.approx(SUCCEEDED + CONTRIBUTED)


def test_a_text_that_is_no_call_takes_a_step_and_is_explained():
    env = desk(0, families="status", max_steps=3)
    prompt, reward, terminated, truncated, info = env.step("hum a tune")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["invalid_action"] == "hum a tune"
    assert "Last: that was no call. That is no JSON.\n" in prompt
    assert info["measures"] == {"valid": 0.0, "succeeded": 0.0, "contributed": 0.0}
    prompt, *_, info = env.step('{"name": "get_order", "arguments": {"order_id": "O99"}}')
    assert "order_id of get_order must be one of: O1, " in prompt
    assert "invalid_action" in info
    *_, truncated, info = env.step("\ud800")
    assert truncated
    assert info["episode"] == {"r": 0.0, "l": 3, "success": False}
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step("x")


def test_an_error_of_the_desk_is_told_and_is_no_invalid_action():
    env = desk(0, families="redirect", arguments="open")
    prompt, *_, info = env.step('{"name": "get_order", "arguments": {"order_id": "\u00d899"}}')
    assert "Last: get_order ?99 failed. No such order was found.\n" in prompt
    assert "invalid_action" not in info
    assert env.step(env.solution()[0])[4]["measures"]["succeeded"] == 1.0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(), min_size=10, max_size=10), st.sampled_from(VARIANTS))
def test_no_text_makes_the_world_raise(texts: list[str], arguments: dict[str, Any]):
    env = desk(0, **arguments)
    for prompt, reward, *_ in play(env, texts):
        assert prompt in env.observation_space
        assert reward == 0


@pytest.mark.parametrize("family", [*TRAIN, *UNSEEN])
def test_masked_the_same_seed_is_the_same_episode_in_other_words(family: str):
    plain = desk(0, families=family, unfit=0.3, reward="steps", show_tools="none")
    masked = desk(0, families=family, unfit=0.3, reward="steps", masked=True, show_tools="none")
    dice = random.Random(0)
    for seed in range(8):
        first, _ = plain.reset(seed=seed)
        assert masked.reset(seed=seed)[0] == first
        assert masked.task == plain.task
        over = False
        while not over:
            call = dice.choice([plain.toolbox.read(at_random(plain, dice)), *plain.task.plan])
            here, there = (env.step(env.toolbox.write(call)) for env in (plain, masked))
            over = here[2] or here[3]
            assert here[1:4] == there[1:4]
            assert here[4]["measures"] == there[4]["measures"]
            names = plain.toolbox.shown[call.tool].name, masked.toolbox.shown[call.tool].name
            assert here[0].replace(f"Last: {names[0]} ", f"Last: {names[1]} ") == there[0]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"unfit": 0.5}, {"distractors": 3}, {"distractors": 0, "customers": 7}],
    ids=str,
)
def test_the_prompt_determines_the_grammar(arguments: dict[str, Any]):
    env = desk(families="stock,status,redirect,undo", **arguments)
    grammars: dict[str, Any] = {}
    for seed in range(400):
        prompt, info = env.reset(seed=seed)
        assert grammars.setdefault(prompt, info["action_grammar"]) == info["action_grammar"]
    assert len(grammars) < 400  # so some prompts came twice


def test_in_a_share_of_the_episodes_no_tool_fits():
    for env, share in ((desk(), 0.0), (desk(masked=True), 0.2), (desk(unfit=0.5), 0.5)):
        unfit = 0
        for seed in range(400):
            env.reset(seed=seed)
            unfit += env.task.family == "unfit"
            if env.task.family == "unfit" and seed < 100:
                assert play(env, env.solution())[-1][4]["episode"]["success"]
        assert abs(unfit / 400 - share) < (0.08 if share else 1e-9)


def test_the_seed_draws_all_families_of_a_group_and_equal_tasks_with_more_distractors():
    env = desk()
    seen = {env.reset(seed=seed)[1]["family"] for seed in range(200)}
    assert seen == set(TRAIN)
    few = desk(distractors=1)
    for seed in range(20):
        env.reset(seed=seed)
        few.reset(seed=seed)
        assert few.task == env.task
        assert few.toolbox.shown.keys() <= env.toolbox.shown.keys()


def test_what_is_shown_of_the_tools_depends_on_what_the_agent_could_know():
    def first(**arguments: Any) -> str:
        return desk(0, **arguments).reset(seed=0)[0]

    assert "find_customer" not in first()
    assert first(unfit=0.1).startswith("Tools: find_customer, ")
    assert first(distractors=1).startswith("Tools: ")
    assert "(order_id: order) shows carrier and day." in first(show_tools="full")
    masked = first(masked=True)
    assert ": order) shows carrier and day." in masked
    assert "order_id" not in masked
    assert "Tools" not in first(masked=True, show_tools="none")


def test_the_manual_counts_the_calls_of_the_largest_tool():
    page = type(desk()).__doc__ or ""
    for customers in (4, 16):
        size = 1
        for choices in desk(customers=customers).toolbox.shown["open_ticket"].choices:
            size *= len(choices)
        assert f"{size:,}" in page
    for family in FAMILIES:
        assert f"`{family}`" in page


@pytest.mark.parametrize(("arguments", "most"), [({}, 120), ({"masked": True}, 420)])
def test_prompts_and_calls_are_short_for_the_embedded_model(arguments: dict[str, Any], most: int):
    codec = load_model(ModelConfig(name="tiny-tooldesk")).codec
    env, dice = desk(families="all", **arguments), random.Random(2)
    for seed in range(60):
        prompt, _ = env.reset(seed=seed)
        for _ in range(10):
            action = at_random(env, dice)
            assert len(codec.prompt(prompt)) <= most
            assert len(codec.action(action)) <= 80 < env.free_text.max_tokens
            prompt, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break


def test_solutions_are_those_of_the_plan():
    env = desk(2, families="close")
    assert [env.toolbox.read(action) for action in env.solution()] == list(env.task.plan)
    assert (
        env.toolbox.write(Call("answer", ("R1",)))
        == '{"name": "answer", "arguments": {"reference": "R1"}}'
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"families": "trian"}, "There is no family of tasks 'trian'. Did you mean 'train'"),
        ({"families": ["stock"]}, "families must be a text such as 'stock,status', got"),
        ({"reward": "step"}, "reward must be one of final, steps, got 'step'"),
        ({"arguments": "closed"}, "arguments must be one of finite, open, got 'closed'"),
        ({"show_tools": "all"}, "show_tools must be one of auto, none, names, full, got 'all'"),
        ({"unfit": 1.5}, "unfit must be a share from 0 to 1, got 1.5"),
        ({"unfit": float("nan")}, "unfit must be a share from 0 to 1, got nan"),
        ({"distractors": -1}, "distractors must not be negative, got -1"),
        ({"customers": 1}, "customers must be from 2 to 16, got 1"),
        ({"customers": 17}, "customers must be from 2 to 16, got 17"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        make("poad/ToolDesk-v0", **arguments)
