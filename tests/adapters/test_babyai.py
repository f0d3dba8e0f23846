"""BabyAI in words, against minigrid."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("minigrid", reason="babyai: needs minigrid (poad[minigrid])")

from hypothesis import given
from hypothesis import strategies as st
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from poad.adapters.babyai import ACTIONS, BabyAI
from poad.envs import check_env, docstring_of, make
from poad.errors import ConfigError

LEVEL = "BabyAI-GoToRedBallNoDists-v0"
COLOURS = st.sampled_from(sorted(COLOR_TO_IDX))
THINGS = st.one_of(
    st.sampled_from(["unseen", "empty", "wall"]).map(lambda kind: (kind, "grey", "open")),
    st.tuples(st.sampled_from(["ball", "key", "box"]), COLOURS, st.just("open")),
    st.tuples(st.just("door"), COLOURS, st.sampled_from(sorted(STATE_TO_IDX))),
)


def picture(things: dict[tuple[int, int], tuple[str, str, str]]) -> Any:
    """A picture of 7 by 7 cells, empty but for some."""
    image = np.zeros((7, 7, 3), np.uint8)
    image[:, :, 0] = OBJECT_TO_IDX["empty"]
    for place, (kind, colour, state) in things.items():
        image[place] = OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour], STATE_TO_IDX[state]
    return image


def told(things: dict[tuple[int, int], tuple[str, str, str]], **arguments: Any) -> list[str]:
    world = make(f"babyai:{LEVEL}", **arguments).unwrapped
    assert isinstance(world, BabyAI)
    return [*world._things(picture(things))]


def test_walls_come_before_things_and_what_is_carried_before_walls() -> None:
    assert told(
        {
            (3, 6): ("key", "blue", "open"),
            (3, 2): ("wall", "grey", "open"),
            (2, 6): ("wall", "grey", "open"),
            (5, 6): ("ball", "red", "open"),
            (6, 6): ("wall", "grey", "open"),  # behind the ball
            (2, 4): ("ball", "red", "open"),
            (2, 3): ("box", "green", "open"),
            (3, 5): ("unseen", "red", "open"),
        }
    ) == [
        "You carry a blue key",
        "You see a wall 4 steps forward",
        "You see a wall 1 step left",
        "You see a green box 1 step left and 3 steps forward",
        "You see a red ball 1 step left and 2 steps forward",
        "You see a red ball 2 steps right",
    ]


def test_doors_have_a_state_and_parity_has_glams_slip() -> None:
    doors: dict[tuple[int, int], tuple[str, str, str]] = {
        (0, 6): ("door", "red", "open"),
        (3, 0): ("door", "blue", "closed"),
        (6, 5): ("door", "grey", "locked"),
    }
    assert told(doors) == [
        "You see an open red door 3 steps left",
        "You see a closed blue door 6 steps forward",
        "You see a locked grey door 3 steps right and 1 step forward",
    ]
    assert told(doors, parity=True)[0] == "You see a open red door 3 steps left"
    assert told(doors, parity=True)[1:] == told(doors)[1:]


STEPS = re.compile(r"(\d+) steps? (left|right|forward)")


@given(st.dictionaries(st.tuples(st.integers(0, 6), st.integers(0, 6)), THINGS, max_size=12))
def test_a_picture_can_be_drawn_again_from_its_description(
    things: dict[tuple[int, int], tuple[str, str, str]],
) -> None:
    """Everything but walls and empty cells stands in the text once, where it is."""
    here = things.pop((3, 6), None)
    drawn: dict[tuple[int, int], str] = {}
    walls = []
    lines = told({**things, **({(3, 6): here} if here and here[0] in ("key", "ball") else {})})
    for line in lines:
        if line.startswith("You carry"):
            assert here is not None
            assert line == f"You carry a {here[1]} {here[0]}"
            continue
        steps = {where: int(count) for count, where in STEPS.findall(line)}
        at = 3 - steps.get("left", 0) + steps.get("right", 0), 6 - steps.get("forward", 0)
        what = re.sub(r"^You see an? | \d.*$", "", line)
        if what == "wall":
            walls.append(at)
        else:
            assert at not in drawn
            drawn[at] = what
    seen = {p: t for p, t in things.items() if t[0] in ("ball", "key", "box", "door")}
    assert drawn == {
        place: f"{state} {colour} {kind}" if kind == "door" else f"{colour} {kind}"
        for place, (kind, colour, state) in seen.items()
    }
    assert all(things[place][0] == "wall" for place in walls)


def test_the_prompt_is_glams() -> None:
    world = make(f"babyai:{LEVEL}")
    rng = random.Random(0)
    for seed in range(4):
        prompt, info = world.reset(seed=seed)
        shown, done = [prompt.splitlines()[2].partition(": ")[2]], []
        assert info["goal"] == "go to the red ball"
        assert info["admissible_actions"] == ACTIONS
        ended = False
        while not ended:
            action = rng.choice(ACTIONS)
            prompt, _, *flags, info = world.step(action)
            ended = any(flags)
            lines = prompt.splitlines()
            shown.append(lines[-2].partition(": ")[2])
            done.append(action)
            kept, steps = shown[-3:], done[-2:]
            expected = [
                "Possible action of the agent: " + ", ".join(ACTIONS),
                "Goal of the agent: go to the red ball",
            ]
            for number, seen in enumerate(kept):
                expected.append(f"Observation {number}: {seen}".rstrip())
                expected.append(" ".join([f"Action {number}:", *steps[number : number + 1]]))
            assert lines == expected


def test_a_mission_pays_by_its_time() -> None:
    world = make(f"babyai:{LEVEL}")
    found = 0
    rng = random.Random(1)
    for seed in range(30):
        world.reset(seed=seed)
        while True:
            _, paid, terminated, truncated, info = world.step(rng.choice(ACTIONS[:3]))
            reward = float(paid)
            if terminated or truncated:
                break
            assert reward == 0
        taken = info["episode"]["l"]
        assert truncated == (taken == 64 and reward == 0)
        assert info["episode"]["success"] == terminated == (reward > 0)
        assert reward == pytest.approx(20 * (1 - 0.9 * taken / 64) if terminated else 0)
        found += terminated
    assert 0 < found < 30


@pytest.mark.parametrize("level", [LEVEL, "BabyAI-PickupLoc-v0", "BabyAI-UnlockLocal-v0"])
def test_levels_keep_the_contract(level: str) -> None:
    check_env(lambda: make(f"babyai:{level}", max_steps=20), episodes=6)


def test_levels_that_reject_draws_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    world = make("babyai:BabyAI-GoTo-v0")
    for seed in range(8):
        world.reset(seed=seed)
    assert capfd.readouterr() == ("", "")


def test_the_manual_is_the_levels_and_unknown_levels_are_told() -> None:
    assert "red ball" in (docstring_of(make(f"babyai:{LEVEL}")) or "")
    with pytest.raises(ConfigError, match="no level 'BabyAI-MixedTrainLocal-v0'"):
        make("babyai:BabyAI-MixedTrainLocal-v0")
    with pytest.raises(ConfigError, match=f"Did you mean '{LEVEL}'"):
        make("babyai:BabyAI-GoToRedBallNoDist-v0")
