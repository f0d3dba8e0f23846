"""Streams of turns: nothing is lost between rollouts, and a stopped one is taken up exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import tiny_worlds
from hypothesis import given
from hypothesis import strategies as st
from tiny_worlds import settings
from tokenizers import normalizers

from poad.agent.build import Agent, load_agent
from poad.config import SEEDS_PER_RUN, world_seed
from poad.envs.check import check_env
from poad.envs.contract import CheckedWorld
from poad.envs.registry import make
from poad.errors import WorldError
from poad.learn.resume import collector_state, load_collector
from poad.learn.rollout import Collector
from poad.learn.stream import Step
from poad.turns import Action, Observation, Rollout


@pytest.fixture(scope="module")
def agent() -> Agent:
    return load_agent(settings("Chain"))


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def collector(agent: Agent, world: str, streams: int = 3, seed: int = 10) -> Collector:
    return Collector(lambda: make(tiny_worlds.name(world)), agent.policy, streams, seed)


@pytest.mark.parametrize("world", sorted(tiny_worlds.WORLDS.keys() - {"Broken", "Priceless"}))
def test_the_tiny_worlds_are_text_worlds(world: str) -> None:
    check_env(tiny_worlds.name(world), aliased=world in ("Aliased", "Novel", "Mixed"))


def rollouts(agent: Agent, world: str, horizons: list[int]) -> Iterator[Rollout]:
    generator, streams = np.random.default_rng(3), collector(agent, world)
    for horizon in horizons:
        yield streams.collect(horizon, generator)


@pytest.mark.parametrize("world", ["Chain", "Journal", "Mixed", "Corridor"])
def test_streams_go_on_across_rollouts(agent: Agent, world: str) -> None:
    many = list(rollouts(agent, world, [4, 1, 7]))
    assert [len(stream) for r in many for stream in r.streams] == [4] * 3 + [1] * 3 + [7] * 3
    ended = 0
    for pieces in zip(*(r.streams for r in many), strict=True):
        stream = [turn for piece in pieces for turn in piece]
        for turn, after in pairwise(stream):
            if turn.terminated or turn.truncated:
                assert after.prompt_ids == stream[0].prompt_ids
            else:
                assert after.prompt_ids == turn.next_prompt_ids
        ended += sum(turn.terminated or turn.truncated for turn in stream)
    assert ended > 3
    assert sum(len(r.episodes) for r in many) == ended


def test_cutting_the_time_differently_changes_only_what_is_computed_again(agent: Agent) -> None:
    """Sampling depends on the generator and the weights alone, not on where rollouts end."""
    whole, parts = list(rollouts(agent, "Novel", [6])), list(rollouts(agent, "Novel", [1, 2, 3]))
    for stream, pieces in zip(
        whole[0].streams, zip(*(r.streams for r in parts), strict=True), strict=True
    ):
        again = [turn for piece in pieces for turn in piece]
        assert [t.action.text for t in stream] == [t.action.text for t in again]


def test_what_a_turn_holds_is_what_the_world_said(agent: Agent) -> None:
    rollout = next(rollouts(agent, "Chain", [12]))
    codec = agent.model.codec
    for stream in rollout.streams:
        place = turns = 0
        for turn in stream:
            forward = turn.action.text == "walk on"
            after = place + 1 if forward else max(0, place - 1)
            turns += 1
            assert turn.prompt_ids == codec.prompt(f"You stand at place {place}. What now?")
            assert turn.next_prompt_ids == codec.prompt(f"You stand at place {after}. What now?")
            assert turn.duration == (2 if forward else 1)
            assert turn.reward == float(after == tiny_worlds.GOAL)
            assert turn.terminated == (after == tiny_worlds.GOAL)
            assert turn.truncated == (turns == 6 and not turn.terminated)
            ended = turn.terminated or turn.truncated
            place, turns = (0, 0) if ended else (after, turns)
    ends = [t for stream in rollout.streams for t in stream if t.terminated or t.truncated]
    assert sum(e.success for e in rollout.episodes) == sum(t.terminated for t in ends)
    assert len(rollout.turns) == 36


@given(st.integers(0, 2**63), st.integers(1, 2**20))
def test_worlds_get_seeds_below_two_to_the_32_that_differ(seed: int, apart: int) -> None:
    assert 0 <= world_seed(seed) < 2**32
    assert world_seed(seed) != world_seed(seed + apart)
    if seed < 2**32:
        assert world_seed(seed) == seed
    else:  # not among the evaluation episodes
        assert world_seed(seed) >= 2 * SEEDS_PER_RUN


@pytest.mark.parametrize("seed", [4291, 4293, 20240601, 2**63 - 1])
def test_a_run_of_any_seed_plays_in_a_world_that_wants_small_ones(
    agent: Agent, generator: np.random.Generator, seed: int
) -> None:
    class Picky(gymnasium.Wrapper[str, str, str, str]):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            np.random.RandomState(seed)
            return super().reset(seed=seed, options=options)

    first = (seed + 2) * SEEDS_PER_RUN
    streams = Collector(lambda: Picky(make(tiny_worlds.name("Novel"))), agent.policy, 2, first)
    streams.collect(5, generator)
    assert [s.seed for s in streams.streams] == [first + 2, first + 3]


def test_every_episode_takes_the_next_seed(agent: Agent, generator: np.random.Generator) -> None:
    streams = collector(agent, "Novel", streams=2, seed=40)
    rollout = streams.collect(12, generator)  # episodes of four turns
    prompts = [agent.model.codec.text(turn.prompt_ids) for turn in rollout.turns]
    assert prompts[::4] == [f"Day 0 of year {year}." for year in (40, 42, 44, 41, 43, 45)]
    assert [s.seed for s in streams.streams] == [46, 47]


@pytest.mark.parametrize("world", ["Chain", "Diary", "Novel"])
@pytest.mark.parametrize("before", [1, 6])
def test_a_saved_state_goes_on_exactly(agent: Agent, world: str, before: int) -> None:
    streams, generator = collector(agent, world), np.random.default_rng(5)
    streams.collect(before, generator)
    state = json.loads(json.dumps(collector_state(streams), allow_nan=False))
    numbers = generator.bit_generator.state
    expected = [streams.collect(4, generator), streams.collect(3, generator)]

    other = collector(agent, world, seed=999)
    other.collect(2, np.random.default_rng(0))
    load_collector(other, state)
    assert collector_state(other) == state
    generator = np.random.default_rng()
    generator.bit_generator.state = numbers
    assert [other.collect(4, generator), other.collect(3, generator)] == expected


@pytest.mark.parametrize("key", ["prompt", "offers", "reward", "duration", "end"])
def test_a_replay_that_goes_elsewhere_is_refused(agent: Agent, key: str) -> None:
    """A world that is not a function of seed and actions must not be taken up silently."""
    drifts: list[bool] = []

    class Drifting(tiny_worlds.TinyWorld):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            prompt, reward, terminated, truncated, info = super().step(action)
            if drifts and self._state and self._state.turn == 2:
                prompt += " It rains." * (key == "prompt")
                reward += 2.0**-40 * (key == "reward")
                if key == "offers":
                    info["admissible_actions"] = info["admissible_actions"][::-1]
                if key == "duration":
                    info["duration"] += 1
                if key == "end":
                    truncated = True
                    info["episode"] = {"r": 0.0, "l": 1, "success": False}
            return prompt, reward, terminated, truncated, info

    def streams() -> Collector:
        rules = tiny_worlds.WORLDS["Novel"]
        return Collector(lambda: Drifting(rules), agent.policy, 2, 10)

    first = streams()
    first.collect(3, np.random.default_rng(5))
    state = json.loads(json.dumps(collector_state(first)))
    load_collector(streams(), state)
    drifts.append(True)
    with pytest.raises(WorldError, match=r"does not repeat.*'Drifting', seed 10, action 2 \("):
        load_collector(streams(), state)


def test_what_a_world_remembers_is_kept_and_handed_to_every_copy(agent: Agent) -> None:
    class Remembering(tiny_worlds.TinyWorld):
        count = 0

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            self.count += 1
            return super().step(action)

        def memory(self) -> int:
            return self.count

        def load_memory(self, memory: int) -> None:
            self.count = memory + 100

    worlds: list[Remembering] = []

    def make_one() -> Remembering:
        worlds.append(Remembering(tiny_worlds.WORLDS["Diary"]))
        return worlds[-1]

    first = Collector(make_one, agent.policy, 2, 10)
    first.collect(2, np.random.default_rng(5))
    state = collector_state(first)
    assert state["memory"] == 2
    load_collector(Collector(make_one, agent.policy, 2, 10), state)
    assert [world.count for world in worlds] == [2, 2, 104, 104]


def test_a_world_that_raises_is_named(agent: Agent, generator: np.random.Generator) -> None:
    with pytest.raises(ZeroDivisionError, match="floor gave way") as caught:
        collector(agent, "Broken").collect(5, generator)
    (note,) = caught.value.__notes__
    assert "'tiny/Broken-v0'" in note
    assert "seed 10, action 3" in note
    assert f"`poad envs {tiny_worlds.name('Broken')} --check`" in note


class Alike(gymnasium.Env[str, str]):
    """Offers, from some turn on, two actions that a tokenizer of lower case cannot tell apart."""

    observation_space = action_space = gymnasium.spaces.Text(200)

    def __init__(self, turn: int) -> None:
        self.wrong = turn

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.turn = 0
        return "You see a pot.", {"admissible_actions": self.offers()}

    def step(self, action: str) -> Any:
        self.turn += 1
        info: dict[str, Any] = {"admissible_actions": self.offers()}
        if self.turn == 3:
            info["episode"] = {"r": 0.0, "l": 3, "success": False}
        return "You see a pot.", 0.0, self.turn == 3, False, info

    def offers(self) -> tuple[str, ...]:
        return ("chop", "Chop", "wait") if self.turn >= self.wrong else ("chop", "wait")


@pytest.mark.parametrize(("turn", "place"), [(0, "reset"), (2, r"action 2 \('")])
def test_offers_with_the_same_tokens_are_a_fault_of_the_world(turn: int, place: str) -> None:
    agent = load_agent(settings("Chain"))
    agent.policy.codec.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    streams = (lambda: Alike(turn)), agent.policy, 1, 10
    says = rf"'chop' and 'Chop' have the same tokens.*world 'Alike', seed 10, {place}"
    with pytest.raises(WorldError, match=says):
        Collector(*streams).collect(5, np.random.default_rng(0))


def test_what_is_offered_after_the_end_is_not_read() -> None:
    agent = load_agent(settings("Chain"))
    agent.policy.codec.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    streams = Collector(lambda: Alike(3), agent.policy, 1, 10)
    assert len(streams.collect(5, np.random.default_rng(0)).turns) == 5


def test_a_world_that_ends_silently_is_told_so(
    agent: Agent, generator: np.random.Generator
) -> None:
    with pytest.raises(WorldError, match=r"= None.*envs tiny_worlds:tiny/Silent-v0 --"):
        collector(agent, "Silent").collect(10, generator)


def test_a_reward_that_is_no_number_is_refused(
    agent: Agent, generator: np.random.Generator
) -> None:
    with pytest.raises(WorldError, match=r"reward is nan.*envs tiny_worlds:tiny/Priceless-v0 --"):
        collector(agent, "Priceless").collect(1, generator)


def test_a_world_that_asks_is_told_each_action_before_any_is_taken(
    agent: Agent, generator: np.random.Generator
) -> None:
    worlds = collector(agent, "Workshop")
    rollout = worlds.collect(4, generator)
    for stream, turns in zip(worlds.streams, rollout.streams, strict=True):
        told = cast(tiny_worlds.WorkshopWorld, cast(CheckedWorld, stream.world).unwrapped).prepared
        assert told == [turn.action.text for turn in turns]


def test_measures_work_notes_and_seconds_elsewhere_are_passed_on(
    agent: Agent, generator: np.random.Generator
) -> None:
    worlds = collector(agent, "Workshop")
    rollout = worlds.collect(4, generator)
    in_time = [turns[t].action.text for t in range(4) for turns in rollout.streams]
    assert [m["long"] for m in rollout.measures] == [float(len(text) > 3) for text in in_time]
    assert [m.get("letters", 0) for m in rollout.measures] == [len(text) for text in in_time]
    assert rollout.cpu_elsewhere == 0.25 * 12
    assert worlds.notes == ("one lamp is broken",)


def test_an_episode_is_read_from_info() -> None:
    info = {"episode": {"r": 1, "l": 3.0, "success": 1}}
    action, seen = Action("x", (1,), (True,), (0.0,)), Observation("")
    step = Step(0, 0, seen, action, 0.0, True, False, info, seen)
    assert step.episode() == (1.0, 3, True)


def test_streams_of_a_group_begin_the_same_episodes_and_act_on_their_own(agent: Agent) -> None:
    def make_world() -> gymnasium.Env[str, str]:
        return make(tiny_worlds.name("Chain"))

    worlds = Collector(make_world, agent.policy, 6, 10, range(6), group=3)
    begun: list[list[int]] = [[stream.seed] for stream in worlds.streams]
    for number, seeds in enumerate(begun):
        for _ in range(3):
            seeds.append(worlds.next_seed(number))
    assert begun[0] == begun[1] == begun[2] == [10, 12, 14, 16]
    assert begun[3] == begun[4] == begun[5] == [11, 13, 15, 17]
    states = [str(each.bit_generator.state) for each in worlds.generators]
    assert len({*states}) == 6
    # A rank that plays some of the streams begins the same episodes in them.
    part = Collector(make_world, agent.policy, 6, 10, range(2, 4), group=3)
    assert [stream.seed for stream in part.streams] == [begun[2][0], begun[3][0]]
    assert part.next_seeds == [begun[2][1], begun[3][1]]
