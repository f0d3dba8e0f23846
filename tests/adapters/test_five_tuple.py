"""Gymnasium's environments, and objects like them, in words."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from poad.adapters.words import WORDS
from poad.envs import (
    CheckedWorld,
    FreeText,
    check_env,
    docstring_of,
    free_text_of,
    inner_of,
    make,
    world_arguments,
)
from poad.envs.registry import full_name
from poad.errors import ConfigError, WorldError, explained


class Counter:
    """Count to three. No seed, no spaces, no base class."""

    free_text = FreeText(stop=("!",), max_tokens=2)

    def __init__(self, goal: int = 3, name: str = "anybody") -> None:
        self.goal, self.name = goal, name

    def reset(self) -> str:
        self.count = 0
        return f"{self.name} is at 0."

    def step(self, action: str) -> tuple[Any, ...]:
        self.count += action == "more"
        done = self.count == self.goal or action == "stop"
        info = {"is_success": self.count == self.goal, "TimeLimit.truncated": action == "stop"}
        return f"{self.name} is at {self.count}.", -1.0, done, info


class Numbers(gymnasium.Env[Any, Any]):
    """Five values, numbered actions from 1, and arrays to look at."""

    observation_space = gymnasium.spaces.Box(0, 9, (2,))
    action_space = gymnasium.spaces.Discrete(2, start=1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = np.array([0, self.np_random.integers(2, 4)])
        return self.at, {"goal": "reach it"}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.at = np.array([self.at[0] + action - 1, self.at[1]])
        over = self.at[0] == self.at[1]
        return self.at, np.float32(over), over, over, {"measures": {"at": float(self.at[0])}}


class Silent:
    """Actions are numbers, which nothing declares."""

    def reset(self) -> str:
        return "Press a button."

    def step(self, action: Any) -> tuple[Any, ...]:
        return f"You pressed {action!r}.", 0, False, {}


class Thoughtful(Counter):
    """A text world in all but name, with everything that one may have."""

    step_discount = 0.75
    heard: str | None = None

    def prepare(self, action: str) -> None:
        self.heard = action

    def memory(self) -> list[str | None]:
        return [self.heard]

    def load_memory(self, memory: list[str | None]) -> None:
        (self.heard,) = memory


class Namesake(Counter):
    """Has something else by these names."""

    memory = 512
    step_discount = "none"


def tell(observation: Any, env: Any) -> str:
    return f"You are at {observation[0]} of {observation[1]}, {type(env).__name__}."


def mumble(observation: Any, env: Any) -> Any:
    return observation


def quick(reward: float, terminated: bool, info: Any) -> bool:
    return terminated and info["measures"]["at"] == 2


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """This file as a module that a user would name."""
    found = ModuleType("users_module", "")
    vars(found).update({k: v for k, v in globals().items() if not k.startswith("_")})
    found.broken = 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_module", found)
    return "users_module"


ACTIONS = ["stay", "go on"]


@pytest.mark.parametrize("name", WORDS)
def test_toy_text_has_words(name: str) -> None:
    world = make(f"gymnasium:{name}")
    prompt, info = world.reset(seed=0)
    assert info["admissible_actions"] == WORDS[name].actions
    assert len(prompt.split()) > 8
    assert full_name(world) == f"gymnasium:{name}"
    check_env(lambda: make(f"gymnasium:{name}"), episodes=5)
    world.close()


def test_words_say_where_one_is() -> None:
    lake = make("gymnasium:FrozenLake-v1", is_slippery=False)
    lake.reset(seed=0)
    assert "row 2, column 1" in lake.step("go down")[0]
    for action in ("go down", "go right", "go right", "go down"):
        lake.step(action)
    text, reward, terminated, truncated, info = lake.step("go right")
    assert "row 4, column 4" in text
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["episode"] == {"r": 1.0, "l": 6, "success": True}

    field = make("gymnasium:CliffWalking-v1")
    assert "row 4, column 1" in field.reset(seed=0)[0]
    for action in ("go up", *["go right"] * 11):
        assert "episode" not in field.step(action)[-1]
    *_, info = field.step("go down")
    assert info["episode"] == {"r": -13.0, "l": 13, "success": True}

    large = make("gymnasium:FrozenLake8x8-v1", is_slippery=False)
    large.reset(seed=0)
    assert "8 rows and 8 columns. You stand in row 2, column 1" in large.step("go down")[0]


def test_a_taxi_is_a_success_when_the_passenger_has_arrived() -> None:
    town = make("gymnasium:Taxi-v4")
    first = next(p for p in (town.reset(seed=s)[0] for s in range(500)) if "at the red" in p)
    assert "wants to go to the" in first
    taxi: Any = inner_of(town)
    # Row 0, column 0, aboard (4), to the red stand (0): dropping off arrives.
    taxi.s = taxi.encode(0, 0, 4, 0)
    text, reward, terminated, _, info = town.step("drop off the passenger")
    assert (reward, terminated) == (20.0, True)
    assert info["episode"]["success"] is True
    assert "red stand" in text


def test_blackjack_is_told_with_aces() -> None:
    table = make("gymnasium:Blackjack-v1")
    texts = [table.reset(seed=seed)[0] for seed in range(60)]
    assert any("an ace that counts eleven" in text for text in texts)
    assert any("dealer shows an ace" in text for text in texts)
    assert all(text.startswith("Your cards add up to ") for text in texts)


def test_numbers_need_words_and_get_them(module: str) -> None:
    gymnasium.register("Numbers-v0", Numbers)  # pyright: ignore[reportArgumentType]
    try:
        with pytest.raises(ConfigError, match=r"observations in Box\(.*describe=my_module:func"):
            make("gymnasium:Numbers-v0")
        with pytest.raises(ConfigError, match="2 numbered actions and no words"):
            make("gymnasium:Numbers-v0", describe=f"{module}:tell")
        told = {"describe": f"{module}:tell", "actions": ACTIONS}
        world = make("gymnasium:Numbers-v0", **told, success=f"{module}:quick")
        prompt, info = world.reset(seed=1)
        assert prompt.startswith("You are at 0 of ")
        assert info["goal"] == "reach it"
        assert world.step("stay")[0] == prompt
        text, *_, info = world.step("go on")
        assert text.startswith("You are at 1 of ")
        assert info["measures"] == {"at": 1.0}
        check_env(lambda: make("gymnasium:Numbers-v0", **told, max_steps=4))
        # It has no limit of its own.
        assert vars(world)["max_steps"] == 200
    finally:
        del gymnasium.registry["Numbers-v0"]


def test_both_flags_count_as_terminated_and_success_may_be_a_function(module: str) -> None:
    told = {"describe": f"{module}:tell", "actions": ACTIONS, "success": f"{module}:quick"}
    world = make(f"object:{module}:Numbers", **told)
    outcomes = set()
    for seed in range(8):
        text, _ = world.reset(seed=seed)
        goal = int(text.split(",")[0].split()[-1])
        steps = [world.step("go on") for _ in range(goal)]
        *_, terminated, truncated, info = steps[-1]
        assert (terminated, truncated) == (True, False)
        assert info["episode"]["success"] is (goal == 2)
        outcomes.add(goal)
    assert outcomes == {2, 3}


def test_an_object_needs_neither_a_seed_nor_five_values(module: str) -> None:
    world = make(f"object:{module}:Counter", goal=2, name="Ann")
    prompt, info = world.reset(seed=3)
    assert prompt == "Ann is at 0."
    assert info["notes"] == ("Counter.reset takes no seed, so episodes may not repeat.",)
    assert world.step("more") == ("Ann is at 1.", -1.0, False, False, {})
    *_, terminated, truncated, info = world.step("more")
    assert (terminated, truncated) == (True, False)
    assert info["episode"] == {"r": -2.0, "l": 2, "success": True}
    world.reset()
    *_, terminated, truncated, info = world.step("stop")  # the old gym's way to say truncated
    assert (terminated, truncated) == (False, True)
    assert info["episode"]["success"] is False
    check_env(lambda: make(f"object:{module}:Counter", max_steps=5))
    assert free_text_of(f"object:{module}:Counter") == Counter.free_text
    assert docstring_of(world) == Counter.__doc__


def test_numbers_are_named_by_actions_and_texts_are_offered_by_choices(module: str) -> None:
    world = make(f"object:{module}:Silent", actions=["red", "blue"])
    assert world.reset(seed=0)[1]["admissible_actions"] == ("red", "blue")
    assert world.step("blue")[0] == "You pressed 1."
    world = make(f"object:{module}:Silent", choices=["red", "blue"])
    assert world.reset(seed=0)[1]["admissible_actions"] == ("red", "blue")
    assert world.step("blue")[0] == "You pressed 'blue'."
    world = make(f"object:{module}:Silent")
    world.reset(seed=0)
    assert world.step("anything")[0] == "You pressed 'anything'."


def test_the_arguments_are_the_adapters_and_any_others_go_on(module: str) -> None:
    assert list(world_arguments(f"object:{module}:Counter")) == [
        "describe",
        "actions",
        "choices",
        "success",
        "max_steps",
    ]
    with pytest.raises(ConfigError, match="unexpected keyword argument 'gaol'"):
        make(f"object:{module}:Counter", gaol=2)
    with pytest.raises(ConfigError, match="is_slipery"):
        make("gymnasium:FrozenLake-v1", is_slipery=False)


def test_a_world_of_ours_passes_through(module: str) -> None:
    one, other = make("gymnasium:poad/Cheese-v0"), make("poad/Cheese-v0")
    prompt, info = one.reset(seed=0)
    assert (prompt, info["admissible_actions"]) == (
        (shown := other.reset(seed=0))[0],
        shown[1]["admissible_actions"],
    )
    action = info["admissible_actions"][0]
    assert one.step(action)[:4] == other.step(action)[:4]
    check_env(lambda: make("gymnasium:poad/Cheese-v0"), episodes=3)


def test_what_a_text_world_may_have_is_found_behind_the_adapter(module: str) -> None:
    world = CheckedWorld(make(f"object:{module}:Thoughtful"))
    assert (world.step_discount, world.prepares) == (0.75, True)
    world.reset(1)
    world.prepare("more")
    assert world.memory() == ["more"]
    world.load_memory(["less"])
    assert world.memory() == ["less"]
    plain = CheckedWorld(make(f"object:{module}:Namesake"))
    assert (plain.step_discount, plain.prepares, plain.memory()) == (None, False, None)
    numbered = CheckedWorld(make(f"object:{module}:Thoughtful", actions=["less", "more"]))
    assert not numbered.prepares


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("gymnasium:Taxi-v3", {}, "Please use `Taxi-v4` instead"),
        ("gymnasium:FrozenLake-v2", {}, "no environment 'FrozenLake-v2'. Did you mean 'FrozenLak"),
        ("gymnasium:nowhere:Some-v0", {}, "Cannot import what .* No module named 'nowhere'"),
        ("gymnasium:Pendulum-v1", {"describe": "users_module:tell"}, "actions in Box"),
        ("gymnasium:FrozenLake-v1", {"actions": ["a", "b"]}, "4 numbered actions and 2 words"),
        ("gymnasium:FrozenLake-v1", {"actions": "up"}, "list of distinct texts, not 'up'"),
        ("gymnasium:FrozenLake-v1", {"actions": ["a", "a", "b", "c"]}, "distinct texts"),
        ("gymnasium:FrozenLake-v1", {"actions": [["a"], "b"]}, "distinct texts"),
        ("gymnasium:FrozenLake-v1", {"choices": ["a"]}, "here they are numbers"),
        ("gymnasium:poad/Cheese-v0", {"actions": ["a"]}, "has actions that are texts"),
        ("object:users_module:Counter", {"choices": "up"}, "list of distinct texts, not 'up'"),
        ("gymnasium:FrozenLake-v1", {"describe": "tell"}, "describe=my_module:name"),
        ("gymnasium:FrozenLake-v1", {"describe": 7}, "describe=my_module:name"),
        ("gymnasium:FrozenLake-v1", {"success": "nowhere:won"}, "success=nowhere:won"),
        ("object:nowhere:World", {}, "Cannot import 'nowhere' for object:nowhere:World"),
        ("object:users_module:Conter", {}, "'Conter' does not exist.*Did you mean 'Counter'"),
        ("object:users_module:broken", {}, "'broken' is not callable"),
        ("object:users_module:dict", {}, "'dict' does not exist"),
        ("object:users_module:ModuleType", {"name": "x"}, "has no method reset"),
        ("object:users_module", {}, "incomplete.*object:MODULE:NAME"),
        ("object:", {}, "incomplete"),
        ("gymnasium:", {}, "incomplete.*gymnasium:ID"),
    ],
)
def test_what_cannot_be_opened_is_told_in_a_sentence(
    module: str, name: str, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        make(name, **arguments)


def test_observations_that_are_no_text_are_refused_where_they_are_shown(module: str) -> None:
    class Seven(Counter):
        def reset(self) -> Any:
            return 7

    sys.modules[module].Seven = Seven  # type: ignore[attr-defined]
    world = CheckedWorld(make(f"object:{module}:Seven"))
    with pytest.raises(ConfigError, match="Seven shows 7, and an agent reads text"):
        world.reset(0)
    world = CheckedWorld(make(f"object:{module}:Seven", describe=f"{module}:mumble"))
    with pytest.raises(WorldError, match="describe returned 7; it must return a string"):
        world.reset(0)


def test_an_error_of_the_users_code_is_told_with_its_line(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "wet_floor.py").write_text(
        "class World:\n"
        "    def reset(self, seed):\n"
        "        return 'a hall'\n"
        "    def step(self, action):\n"
        "        raise OSError('the floor is wet')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    world = CheckedWorld(make("object:wet_floor:World"))
    world.reset(2)
    with pytest.raises(OSError, match="wet") as caught:
        world.step("walk")
    told = explained(caught.value)
    assert told is not None
    assert "wet_floor.py, line 5, in step" in told
    assert "'object:wet_floor:World', seed 2, action 1 ('walk')" in told
    assert told.endswith("or actions=[go left, go right] if they are the numbers 0 and 1.")
    world = CheckedWorld(make("object:wet_floor:World", choices=["walk", "run"]))
    world.reset(2)
    with pytest.raises(OSError, match="wet") as caught:
        world.step("walk")
    assert "Nothing offers actions" not in str(explained(caught.value))


def test_the_check_says_what_a_world_lacks_and_nothing_else(module: str) -> None:
    class Nine(Counter):
        def reset(self) -> Any:
            return 9

    sys.modules[module].Nine = Nine  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"^Nine shows 9, and an agent reads text\. Say how"):
        check_env(f"object:{module}:Nine")
