"""Finding and opening worlds by name."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from sandbox_here import needs_sandbox

from poad.envs.check import check_env
from poad.envs.registry import known_worlds, make, register_worlds, world_arguments
from poad.envs.text_world import TextWorld
from poad.errors import ConfigError, WorldError

PROGRAMS = "poad/DataScience-v0"
PLAYABLE = [
    pytest.param(env_id, marks=needs_sandbox if env_id == PROGRAMS else ())
    for env_id, _ in known_worlds()
]
DRAWN = ("poad/Order-v0", "poad/ToolDesk-v0")
"""Worlds whose seed draws what the agent is to do."""
LIMITS = {PROGRAMS: "tries", "poad/Order-v0": "turns"}
"""What an episode's length is called, where it is not `max_steps`."""

MODULE = """
import gymnasium
from poad.envs.kitchen.env import KitchenEnv

class Mine(KitchenEnv):
    def __init__(self, level: "Level", *, hint: str = "none", **kwargs):
        super().__init__(**kwargs)
        self.level, self.hint = level, hint

class Strict(KitchenEnv):
    def __init__(self, level: int, salt: float = 0.5):
        super().__init__()

gymnasium.register("mine/Kitchen-v0", entry_point=Mine, kwargs={"task": "tomato_salad"})
gymnasium.register("mine/Strict-v3", entry_point=Strict)
"""


@pytest.fixture(scope="module", autouse=True)
def open_sandbox() -> Iterator[None]:
    """Copies of a world that runs programs share its workers while one of them is open."""
    env = make(PROGRAMS)
    yield
    env.close()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_worlds.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_worlds"
    sys.modules.pop("my_worlds", None)
    for env_id in ("mine/Kitchen-v0", "mine/Strict-v3"):
        gymnasium.registry.pop(env_id, None)


def test_known_worlds_can_be_made_by_name_and_have_a_one_line_summary():
    ids = [env_id for env_id, _ in known_worlds()]
    assert len(set(ids)) == len(ids) >= 12
    for env_id, summary in known_worlds():
        env = make(env_id)
        assert isinstance(env, gymnasium.Env)
        env.close()
        assert summary
        assert "\n" not in summary


@pytest.mark.parametrize("env_id", PLAYABLE)
def test_our_worlds_keep_the_contract(env_id: str):
    aliased = env_id == "poad/EntertainmentSparseText-v0"
    said = check_env(env_id, aliased=aliased)
    assert bool(said) == aliased
    env = make(env_id)
    check_env(env, aliased=aliased, seed=7, episodes=3)
    env.close()


def test_the_one_aliased_world_fails_the_check_unless_aliased_is_set():
    with pytest.raises(WorldError, match="a function of the prompt, unless aliased=True"):
        check_env("poad/EntertainmentSparseText-v0")


@pytest.mark.parametrize("env_id", PLAYABLE)
def test_our_worlds_have_a_manual_page_and_those_with_states_show_them_as_numbers(env_id: str):
    env = make(env_id).unwrapped
    first, _ = env.reset(seed=0)
    page = type(env).__doc__ or ""
    assert env_id in page
    for title in ("Actions", "Observation", "Rewards", "Episode end", "Arguments"):
        assert f"## {title}" in page
    assert all(f"`{name}`" in page for name in world_arguments(env_id))
    if isinstance(env, TextWorld):
        numbers = env.numeric_observation()
        assert {type(number) for number in numbers} == {int}
    if env_id not in DRAWN:
        assert env.reset(seed=1)[0] == first  # a seed changes nothing
    env.close()


@pytest.mark.parametrize("env_id", PLAYABLE)
def test_our_worlds_never_go_on_after_an_end(env_id: str):
    env = make(env_id, **{LIMITS.get(env_id, "max_steps"): 1})
    env.reset()
    assert True in env.step("hum a tune")[2:4]
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step("hum a tune")
    env.close()


def test_registering_again_changes_nothing():
    before = dict(gymnasium.registry)
    register_worlds()  # a warning would be an error here
    assert dict(gymnasium.registry) == before


def test_arguments_are_those_that_the_name_does_not_fix():
    assert world_arguments("poad/TomatoSalad-v0") == {"max_steps": (int, 200)}
    both = {"max_steps": (int, 50), "distractors": (int, 0)}
    assert world_arguments("poad/EntertainmentAllActions-v0") == both
    assert vars(make("poad/TomatoSalad-v0", max_steps=9).unwrapped)["max_steps"] == 9


def test_a_world_of_ones_own_is_imported_by_its_module(module: str):
    env = make(f"{module}:mine/Kitchen-v0", level=3, max_steps=7)
    assert vars(env.unwrapped)["level"] == 3
    assert vars(env.unwrapped)["max_steps"] == 7
    arguments = world_arguments(f"{module}:mine/Kitchen-v0")
    assert list(arguments) == ["level", "hint"]
    assert arguments["level"][1] is inspect.Parameter.empty
    assert arguments["hint"][1] == "none"


def test_the_error_for_an_unknown_name_suggests_close_ones_and_lists_the_known():
    with pytest.raises(ConfigError) as caught:
        make("poad/TomatoSald-v0")
    assert "no world 'poad/TomatoSald-v0'. Did you mean 'poad/TomatoSalad-v0'" in str(caught.value)
    assert all(env_id in str(caught.value) for env_id, _ in known_worlds())


def test_a_missing_module_or_a_module_without_the_world_is_named(module: str):
    with pytest.raises(ConfigError, match=r"'mine/Kitchn-v0'\. Did you mean 'mine/Kitchen-v0'"):
        make(f"{module}:mine/Kitchn-v0")
    with pytest.raises(ConfigError, match="Cannot import 'no_such_module' to find the world"):
        make("no_such_module:mine/Kitchen-v0")


def test_the_error_for_an_unknown_argument_lists_the_known_ones(module: str):
    with pytest.raises(ConfigError, match=r"no argument 'max_step'\. Did you mean 'max_steps'"):
        make("poad/TomatoSalad-v0", max_step=9)
    with pytest.raises(ConfigError, match="no argument 'task'"):
        make("poad/TomatoSalad-v0", task="tomato_lettuce_salad")
    with pytest.raises(ConfigError, match="It takes: level, salt"):
        make(f"{module}:mine/Strict-v3", level=1, pepper=2)


class Refused:
    """A constructor that fails as it is told to."""

    def __init__(self, error: Exception):
        raise error


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (
            ValueError("level 7: there are 3"),
            r"Cannot make mine/Refused-v0 with .*: level 7: there",
        ),
        (TypeError("level is text"), r"Cannot make mine/Refused-v0 with .*: level is text$"),
        (
            ConnectionRefusedError("no server"),
            r"ConnectionRefusedError: no server \(.*, line \d+\)",
        ),
    ],
)
def test_a_constructor_that_fails_is_explained_in_one_sentence(error: Exception, explained: str):
    gymnasium.register("mine/Refused-v0", entry_point=Refused)  # pyright: ignore
    try:
        with pytest.raises(ConfigError, match=explained) as caught:
            make("mine/Refused-v0", error=error)
        assert caught.value.__cause__ is not None
    finally:
        del gymnasium.registry["mine/Refused-v0"]


def test_a_world_without_an_entry_point_cannot_be_made():
    gymnasium.register("mine/Vector-v0", vector_entry_point="nowhere:Nothing")
    try:
        with pytest.raises(ConfigError, match="without an entry point"):
            make("mine/Vector-v0")
    finally:
        del gymnasium.registry["mine/Vector-v0"]
