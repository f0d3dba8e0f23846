"""`TextAdapter` keeps the contract for whatever two methods say."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st

from poad.envs import (
    CheckedWorld,
    Form,
    FreeText,
    Grammar,
    TextAdapter,
    check_env,
    docstring_of,
    inner_of,
)
from poad.errors import ConfigError, WorldError

FLOORS = ("ground floor", "first floor", "top floor")


class Lift(TextAdapter):
    """Ride to the floor that the seed names."""

    def begin(self, seed: int) -> tuple[str, tuple[str, ...]]:
        self.floor, self.there = 0, seed % 3
        self.goal = f"Go to the {FLOORS[self.there]}."
        return self.look(), ("up", "down", "leave")

    def act(self, action: str) -> tuple[str, Any, float, bool, bool | None]:
        self.floor = min(max(self.floor + {"up": 1, "down": -1, "leave": 0}[action], 0), 2)
        left = action == "leave"
        won = left and self.floor == self.there
        return self.look(), ["up", "down", "leave"], 1.0 if won else -0.25, left, None

    def look(self) -> str:
        return f"{self.goal} You are on the {FLOORS[self.floor]}. Now"


class Scribble(TextAdapter):
    """Anything but digits is welcome."""

    free_text = FreeText(stop=(".",), max_tokens=3)

    def begin(self, seed: int) -> tuple[str, None]:
        return "Write:", None

    def act(self, action: str) -> tuple[str, None, int, bool, None]:
        self.invalid = action.isdigit()
        self.info["measures"] = {"letters": len(action)}
        return "More:", None, 0, action == "end", None


@pytest.mark.parametrize("max_steps", [1, 4, None])
def test_two_methods_make_a_text_world(max_steps: int | None) -> None:
    check_env(lambda: Lift(max_steps))
    check_env(lambda: Scribble(5))


@given(
    st.integers(0, 5),
    st.lists(st.sampled_from(["up", "down", "leave", "sing"]), max_size=8),
    st.none() | st.integers(1, 5),
)
def test_it_counts_sums_and_cuts_off(seed: int, script: list[str], limit: int | None) -> None:
    world = Lift(limit)
    prompt, info = world.reset(seed=seed)
    assert info["goal"] == f"Go to the {FLOORS[seed % 3]}."
    assert info["admissible_actions"] == ("up", "down", "leave")
    total = 0.0
    for number, action in enumerate(script, 1):
        before = prompt
        prompt, reward, terminated, truncated, info = world.step(action)
        total += reward
        if action == "sing":
            assert (prompt, reward, terminated) == (before, 0.0, False)
        assert info.get("invalid_action") == (action if action == "sing" else None)
        assert info["goal"] == f"Go to the {FLOORS[seed % 3]}."
        assert terminated == (action == "leave")
        assert truncated == (number == limit and not terminated)
        assert ("episode" in info) == (terminated or truncated)
        if "episode" in info:
            success = reward > 0
            assert info["episode"] == {"r": total, "l": number, "success": success}
            with pytest.raises(ResetNeeded, match="call reset"):
                world.step("up")
            return


def test_nothing_is_stepped_before_a_reset_or_after_a_reset_that_failed() -> None:
    class Stuck(Lift):
        def begin(self, seed: int) -> tuple[str, tuple[str, ...]]:
            if seed == 1:
                raise OSError("the lift is stuck")
            return super().begin(seed)

    world = Stuck()
    with pytest.raises(ResetNeeded):
        world.step("up")
    world.reset(seed=0)
    with pytest.raises(OSError, match="stuck"):
        world.reset(seed=1)
    with pytest.raises(ResetNeeded):
        world.step("up")


def test_a_reset_without_a_seed_draws_one() -> None:
    world = Lift()
    world.reset(seed=3)
    seen = {world.reset()[0] for _ in range(30)}
    assert len(seen) == 3
    again = Lift()
    again.reset(seed=3)
    assert seen == {again.reset()[0] for _ in range(30)}


def test_freely_written_actions_may_be_invalid_and_anything_may_go_into_info() -> None:
    world = Scribble()
    _, info = world.reset(seed=0)
    assert info == {}
    *_, info = world.step("word")
    assert info == {"measures": {"letters": 4}}
    *_, info = world.step("12")
    assert info == {"measures": {"letters": 2}, "invalid_action": "12"}
    *_, info = world.step("end")
    assert info["episode"] == {"r": 0.0, "l": 3, "success": False}


def test_a_world_may_hear_what_it_did_not_offer_and_may_cut_off_by_itself() -> None:
    class Patient(Lift):
        takes_other_actions = True

        def act(self, action: str) -> tuple[str, Any, float, bool, bool | None]:
            self.truncated = action == "sing"
            return "A song. Now", Form((("up", "down"),)), 2.0, False, False

    world = Patient()
    world.reset(seed=0)
    text, reward, terminated, truncated, info = world.step("sing")
    assert (text, reward, terminated, truncated) == ("A song. Now", 2.0, False, True)
    assert info["invalid_action"] == "sing"
    assert info["episode"]["success"] is False
    world.reset(seed=0)
    *_, info = world.step("up")
    assert info["admissible_actions"] == Form((("up", "down"),))
    assert "invalid_action" not in world.step("down")[-1]


def test_an_action_is_the_last_one_before_the_limit_and_no_other() -> None:
    seen = []

    class Watched(Scribble):
        def act(self, action: str) -> tuple[str, None, int, bool, None]:
            seen.append(self.is_last_step)
            return super().act(action)

    world = Watched(3)
    for _ in range(2):
        world.reset(seed=0)
        for _ in range(3):
            world.step("word")
    assert seen == [False, False, True] * 2


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
def test_a_limit_is_a_whole_number_from_1(limit: Any) -> None:
    with pytest.raises(ConfigError, match="max_steps must be a whole number from 1"):
        Lift(limit)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("a text", "act returned 'a text'; it must return"),
        (("a text", None, 1.0, False), "it must return"),
        (("a text", None, None, False, None), "act returned the reward None"),
        (("a text", None, float("nan"), False, None), "A reward is nan"),
        ((None, None, 1.0, False, None), "An observation is None"),
        (("a text", "up", 1.0, False, None), "admissible_actions"),
    ],
)
def test_what_breaks_the_contract_is_told_with_its_place(answer: Any, told: str) -> None:
    class Odd(Scribble):
        def act(self, action: str) -> Any:
            return answer

    world = CheckedWorld(Odd())
    world.reset(7)
    with pytest.raises(WorldError, match=told) as caught:
        world.step("word")
    assert "seed 7, action 1 ('word')" in str(caught.value)


def test_a_class_that_forgets_the_bases_init_works() -> None:
    class Forgetful(Scribble):
        def __init__(self, size: int) -> None:
            self.size = size
            self._steps = self._text = self._offers = "names of one's own"

    world = Forgetful(3)
    with pytest.raises(ResetNeeded):
        world.step("word")
    world.reset(seed=0)
    assert world.step("word")[0] == "More:"
    assert world.step("end")[2] is True
    assert "word" in world.action_space


def test_offers_may_be_a_grammar_whose_texts_the_world_judges_itself() -> None:
    grammar = Grammar.of({"regex": "(open|close) it"})

    class Lid(TextAdapter):
        def begin(self, seed: int) -> Any:
            return "A lid. You", grammar

        def act(self, action: str) -> Any:
            self.invalid = action not in ("open it", "close it")
            return "A lid. You", grammar, 1.0, action == "close it", None

    lid = Lid()
    _, info = lid.reset(seed=0)
    assert info == {"action_grammar": grammar}
    *_, info = lid.step("open it")
    assert info == {"action_grammar": grammar}
    *_, info = lid.step("sing")
    assert info == {"action_grammar": grammar, "invalid_action": "sing"}


def test_a_begin_that_returns_something_else_is_told() -> None:
    class Odd(Scribble):
        def begin(self, seed: int) -> Any:
            return "a text"

    with pytest.raises(WorldError, match=r"begin returned 'a text'; it must return"):
        Odd().reset(seed=0)


def test_the_base_is_no_manual_of_the_world() -> None:
    class Silent(TextAdapter):
        pass

    assert docstring_of(Silent()) is None
    assert docstring_of(Lift()) == Lift.__doc__
    with pytest.raises(NotImplementedError, match="begin"):
        Silent().reset(seed=0)


def test_an_adapter_stands_back_behind_what_it_adapts() -> None:
    class Inner:
        """The world that counts."""

    class Outer(Scribble):
        """Words for it."""

        @property
        def inner(self) -> object:
            return _INNER

    _INNER = Inner()
    assert inner_of(Outer()) is _INNER
    assert docstring_of(Outer()) == "The world that counts."
    plain: gymnasium.Env[str, str] = Scribble()
    assert inner_of(plain) is plain
