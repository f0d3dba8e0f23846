"""Whatever a world returns is either right or one error that names world, seed and turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Text
from hypothesis import given
from hypothesis import strategies as st

from poad.envs import CheckedWorld, FreeText, check_env, make
from poad.envs.contract import LONGEST, MANY_TURNS, number
from poad.errors import WorldError

OFFERED = ("look around", "open the door", "wait")
Answer = Callable[[Any], Any]


class Door(gymnasium.Env[str, str]):
    """Three turns in front of a door. Its faults come in the second turn or at the reset."""

    observation_space = action_space = Text(200, min_length=0)

    def __init__(
        self,
        at_reset: Answer | None = None,
        at_step: Answer | None = None,
        at_end: Answer | None = None,
    ) -> None:
        self.at_reset, self.at_step, self.at_end = at_reset, at_step, at_end

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.turn = 0
        answer = ["You stand before a door", {"admissible_actions": OFFERED}]
        return self.at_reset(answer) if self.at_reset else tuple(answer)

    def step(self, action: str) -> Any:
        self.turn += 1
        ended = self.turn == 3
        answer = ["You wait", 0.5, ended, False, {"admissible_actions": OFFERED}]
        if ended:
            answer[4]["episode"] = {"r": 1.5, "l": 3, "success": True}
            return self.at_end(answer) if self.at_end else tuple(answer)
        return self.at_step(answer) if self.at_step and self.turn == 2 else tuple(answer)


class Both(Door):
    """Says that it offers actions at times only."""

    free_text = FreeText()


for world in (Door, Both):
    entry_point = f"{__name__}:{world.__name__}"
    gymnasium.register(f"{world.__name__}-v0", entry_point=entry_point, order_enforce=False)


def put(place: int, value: Any) -> Answer:
    """An answer with this value at a place."""
    return lambda answer: tuple(value if i == place else each for i, each in enumerate(answer))


def told(**entries: Any) -> Answer:
    """An answer with these entries of info."""
    return lambda answer: (*answer[:-1], answer[-1] | entries)


def offers(actions: Any) -> Answer:
    return told(admissible_actions=actions)


def without_offers(answer: Any) -> Any:
    info = {key: value for key, value in answer[-1].items() if key != "admissible_actions"}
    return (*answer[:-1], info)


def raising(error: BaseException) -> Answer:
    def answer(_: Any) -> Any:
        raise error

    return answer


ENDING = {"r": 1.5, "l": 3, "success": True}
TEXTS: dict[str, tuple[Any, str]] = {
    "None": (None, "must be a string"),
    "bytes": (b"You wait", "must be a string"),
    "a number": (5, "must be a string"),
    "a dictionary": ({"text": "You wait"}, "must be a string"),
    "an array": (np.array(["You wait"]), "must be a string"),
    "nothing": ("", "must show some text"),
    "a lone surrogate": ("You see \udcff", "string of Unicode"),
}
OFFERS: dict[str, tuple[Any, str]] = {
    "a set": (set(OFFERED), "order of a set"),
    "a frozen set": (frozenset(OFFERED), "order of a set"),
    "a bare string": ("wait", "tuple of strings"),
    "bytes": (b"wait", "tuple of strings"),
    "a dictionary": ({"wait": 1}, "tuple of strings"),
    "a generator": ((each for each in OFFERED), "tuple of strings"),
    "a number": (3, "tuple of strings"),
    "False": (False, "tuple of strings"),
    "nothing": ((), "offers no action"),
    "an empty list": ([], "offers no action"),
    "numbers": ((0, 1), "An offered action is 0"),
    "bytes among them": (("wait", b"look"), "must be a string"),
    "None among them": (("wait", None), "must be a string"),
    "lists": ((["wait"], ["look"]), "must be a string"),
    "a repeated one": (("wait", "look", "wait"), "'wait' is offered twice"),
    "an empty one": (("wait", ""), "blank"),
    "a blank one": (("wait", " \n"), "blank"),
    "a lone surrogate": (("wait", "look \ud800"), "string of Unicode"),
}
REWARDS = {
    "text": "1.5",
    "None": None,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -np.inf,
    "a number beyond floats": 10**400,
    "a list": [1.0],
    "an array": np.array([1.0]),
    "a complex number": 1 + 0j,
    "a decimal": Decimal("1.5"),
    "numpy's NaN": np.float32("nan"),
}
FLAGS = {"None": None, "text": "False", "one": 1, "zero": 0.0, "an array": np.array([True])}
DURATIONS = {
    "zero": 0,
    "negative": -3,
    "enormous": 10**9,
    "a fraction": 1.5,
    "NaN": math.nan,
    "text": "2",
    "None": None,
    "True": True,
}
EPISODES: dict[str, Any] = {
    "nothing": None,
    "no success": {"r": 1.5, "l": 3},
    "a tuple": (1.5, 3, True),
    "a NaN return": ENDING | {"r": math.nan},
    "an infinite return": ENDING | {"r": -math.inf},
    "a return of text": ENDING | {"r": "1.5"},
    "a NaN length": ENDING | {"l": math.nan},
    "half a step": ENDING | {"l": 2.5},
    "a negative length": ENDING | {"l": -1},
    "a success of text": ENDING | {"success": "False"},
    "no known success": ENDING | {"success": None},
    "a NaN success": ENDING | {"success": math.nan},
}
EXTRAS = {
    "a NaN measure": {"measures": {"size": math.nan}},
    "a measure of text": {"measures": {"size": "big"}},
    "measures in a list": {"measures": [1.0]},
    "work of no worth": {"work": {"file": "a", "text": "a", "score": math.nan, "deviation": 0.0}},
    "work in words": {"work": "a poem"},
    "work without a name": {"work": {"text": "a", "score": 1.0, "deviation": 0.0}},
    "work with more": {"work": {"file": "a", "text": "a", "score": 1, "deviation": 0, "by": "me"}},
    "work of bytes": {"work": {"file": "a", "text": b"a", "score": 1.0, "deviation": 0.0}},
    "seconds that ran backwards": {"cpu_seconds": -1.0},
    "a goal of no words": {"goal": " \n"},
    "a list of goals": {"goal": ["eat"]},
    "a goal of bytes": {"goal": b"eat"},
    "half a character as a goal": {"goal": "\ud800"},
}
RAISED = {
    "an exit": SystemExit(0),
    "an exit with a message": SystemExit("bye"),
    "the end of an iteration": StopIteration(),
    "an end of generators": GeneratorExit(),
    "an error": ZeroDivisionError("no"),
}
SHAPES = {
    "None": lambda _: None,
    "text": lambda _: "OK",
    "a list": list,
    "too few": lambda answer: tuple(answer[:-1]),
    "too many": lambda answer: (*answer, {}),
}

AT_RESET: dict[str, tuple[Answer, str]] = {
    **{f"prompt: {name}": (put(0, bad), why) for name, (bad, why) in TEXTS.items()},
    **{f"offers: {name}": (offers(bad), why) for name, (bad, why) in OFFERS.items()},
    **{f"shape: {name}": (bad, "must return") for name, bad in SHAPES.items()},
    **{f"raised: {name}": (raising(bad), "") for name, bad in RAISED.items()},
    "info: None": (put(1, None), "must be a dictionary"),
    "info: a list": (put(1, []), "must be a dictionary"),
    "notes: a bare string": (told(notes="beware"), "tuple of sentences"),
    "goal: a number": (told(goal=3), "a string with words in it"),
}
AT_STEP: dict[str, tuple[Answer, str]] = {
    **{f"prompt: {name}": (put(0, bad), why) for name, (bad, why) in TEXTS.items()},
    **{f"offers: {name}": (offers(bad), why) for name, (bad, why) in OFFERS.items()},
    **{f"shape: {name}": (bad, "must return") for name, bad in SHAPES.items()},
    **{f"raised: {name}": (raising(bad), "") for name, bad in RAISED.items()},
    **{f"reward: {name}": (put(1, bad), "finite number") for name, bad in REWARDS.items()},
    **{f"terminated: {name}": (put(2, bad), "True or False") for name, bad in FLAGS.items()},
    **{f"truncated: {name}": (put(3, bad), "True or False") for name, bad in FLAGS.items()},
    **{f"duration: {name}": (told(duration=bad), "duration") for name, bad in DURATIONS.items()},
    **{f"extras: {name}": (told(**bad), next(iter(bad))) for name, bad in EXTRAS.items()},
    "info: None": (put(4, None), "must be a dictionary"),
    "offers: forgotten": (without_offers, "offers no actions after it offered some"),
    "offers: None": (offers(None), "offers no actions after it offered some"),
}
AT_END = {f"episode: {name}": (told(episode=bad), "success") for name, bad in EPISODES.items()}


def play(world: CheckedWorld, seed: int = 7) -> list[Any]:
    """What an episode shows."""
    shown: list[Any] = [world.reset(seed)]
    while not (isinstance(shown[-1], tuple) and len(shown) > 1 and any(shown[-1][3:5])):
        shown.append(world.step("wait"))
    return shown


def faulty(**when: Answer) -> CheckedWorld:
    return CheckedWorld(make(f"{__name__}:Door-v0", **when))


def check_is_told(world: CheckedWorld, why: str, place: str, fault: str) -> None:
    known = ZeroDivisionError if fault.endswith("an error") else WorldError
    with pytest.raises(known) as caught:
        play(world)
    text = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert why in text
    assert f"world 'Door-v0', seed 7, {place}" in text
    assert f"`poad envs {__name__}:Door-v0 --check`" in text
    assert len(text) < 600
    assert "\n" not in text


@pytest.mark.parametrize("fault", AT_RESET)
def test_a_fault_at_reset_is_told(fault: str) -> None:
    bad, why = AT_RESET[fault]
    check_is_told(faulty(at_reset=bad), why, "reset", fault)


@pytest.mark.parametrize("fault", AT_STEP)
def test_a_fault_in_a_turn_is_told(fault: str) -> None:
    bad, why = AT_STEP[fault]
    check_is_told(faulty(at_step=bad), why, "action 2 ('wait')", fault)


@pytest.mark.parametrize("fault", AT_END)
def test_a_fault_at_the_end_is_told(fault: str) -> None:
    bad, why = AT_END[fault]
    check_is_told(faulty(at_end=bad), why, "action 3 ('wait')", fault)


@pytest.mark.parametrize(
    ("when", "fault"),
    [
        *(("at_reset", fault) for fault in AT_RESET),
        *(("at_step", fault) for fault in AT_STEP),
        *(("at_end", fault) for fault in AT_END),
    ],
)
def test_the_check_finds_it_too(when: str, fault: str) -> None:
    bad = {"at_reset": AT_RESET, "at_step": AT_STEP, "at_end": AT_END}[when][fault][0]
    with pytest.raises(WorldError, match=r"This world breaks") as caught:
        check_env(lambda: make("Door-v0", **{when: bad}), episodes=2)
    assert caught.value.findings


GOOD: dict[str, Answer] = {
    "numpy's reward": put(1, np.float32(0.5)),
    "an array without dimensions": put(1, np.array(0.5)),
    "a whole reward": put(1, 1),
    "a true reward": put(1, True),
    "a fraction": put(1, Fraction(1, 2)),
    "numpy's flags": lambda a: (*a[:2], np.bool_(False), np.bool_(False), a[4]),
    "a list of offers": offers(list(OFFERED)),
    "an array of offers": offers(np.array(OFFERED)),
    "numpy's duration": told(duration=np.int64(3)),
    "the longest duration": told(duration=LONGEST),
    "a measure": told(measures={"size": np.float32(2)}),
}


@pytest.mark.parametrize("case", GOOD)
def test_equal_values_of_other_types_are_taken(case: str) -> None:
    happened = play(faulty(at_step=GOOD[case]))[2]
    assert happened.actions == OFFERED
    assert all(type(action) is str for action in happened.actions)
    assert type(happened.reward) is float
    assert type(happened.terminated) is type(happened.truncated) is bool
    assert type(happened.info["duration"]) is int


def test_the_outcome_comes_in_plain_types() -> None:
    bad = told(episode={"r": np.float32(0.5), "l": np.int64(3), "success": np.bool_(True)})
    episode = play(faulty(at_end=bad))[-1].info["episode"]
    assert episode == {"r": 0.5, "l": 3, "success": True}
    assert [type(value) for value in episode.values()] == [float, int, bool]


def test_a_last_turn_need_not_offer_anything() -> None:
    assert play(faulty(at_end=without_offers))[-1].actions is None
    assert play(faulty(at_end=offers(())))[-1].actions == ()


def test_a_world_may_declare_that_it_offers_actions_at_times() -> None:
    for when in ({"at_step": without_offers}, {"at_reset": without_offers}):
        assert len(play(CheckedWorld(make("Both-v0", **when)))) == 4
        with pytest.raises(WorldError, match="after it offered"):
            play(faulty(**when))


def test_a_world_that_ends_the_process_when_it_is_made_is_told() -> None:
    def quits(**_: object) -> gymnasium.Env[str, str]:
        raise SystemExit(0)

    gymnasium.register("Quits-v0", entry_point=quits)
    with pytest.raises(ValueError, match=r"Cannot make Quits-v0: SystemExit: 0"):
        make("Quits-v0")


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none(), st.binary()))
def test_numbers_are_taken_as_they_are_and_nothing_else(value: Any) -> None:
    found = number(value)
    if isinstance(value, float | int):
        assert found is not None
        assert math.isnan(found) or math.isinf(found) or found == float(value)
    else:
        assert found is None


def test_equal_episodes_have_equal_digests_and_others_do_not() -> None:
    def seen(change: Answer) -> list[str]:
        world = faulty(at_step=change)
        play(world)
        return world.seen

    plain = seen(tuple)
    assert len(plain) == 4
    assert len(set(plain)) == 4
    assert seen(tuple) == plain
    for change in (
        put(0, "You wait."),
        put(1, 0.25),
        put(1, np.nextafter(0.5, 1)),
        offers(OFFERED[:2]),
        offers(OFFERED[::-1]),
        told(duration=2),
    ):
        other = seen(change)
        assert other[:2] == plain[:2]
        assert other[2] != plain[2]
        assert other[3] != plain[3]


def test_an_episode_without_an_end_is_told_once() -> None:
    class Endless(Door):
        def step(self, action: str) -> Any:
            return "You wait", 0.0, False, False, {"admissible_actions": OFFERED}

    world = CheckedWorld(Endless())
    world.reset(0)
    for _ in range(MANY_TURNS - 1):
        world.step("wait")
    with pytest.warns(UserWarning, match="'Endless' has had 1,000 turns and goes on"):
        world.step("wait")
    for _ in range(5):
        world.step("wait")
