"""Workers change the time that play takes, and nothing else: the same turns, to the last bit."""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import active_children
from typing import Any

import numpy as np
import pytest
import slow_worlds
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_worlds import settings

from poad.agent import Agent, load_agent
from poad.envs import Workers
from poad.errors import WorldError
from poad.learn.ahead import Ahead
from poad.learn.evaluate import evaluate
from poad.learn.resume import collector_state, load_collector
from poad.learn.rollout import Collector
from poad.turns import Rollout

KINDS = ("serial", "threads:1", "threads:3", "processes:2")


@pytest.fixture(scope="module")
def agent() -> Agent:
    return load_agent(settings("Chain"))


def collector(
    agent: Agent, world: str, kind: str, *, own: bool = True, streams: int = 4, seed: int = 10
) -> Collector:
    numbers = range(streams) if own else None
    workers = Workers(kind)
    return Collector(slow_worlds.slow(world), agent.policy, streams, seed, numbers, workers)


def rollouts(worlds: Collector, *horizons: int) -> tuple[list[Rollout], Any]:
    """Rollouts, without the CPU seconds of other processes, and where the streams are then."""
    generator = np.random.default_rng(3)
    try:
        found = [worlds.collect(horizon, generator) for horizon in horizons]
        state = collector_state(worlds)
    finally:
        worlds.close()
    return [replace(each, cpu_elsewhere=0.0) for each in found], state


@pytest.mark.parametrize("own", [True, False], ids=["stream", "shared"])
@pytest.mark.parametrize("world", ["Chain", "Novel", "Mixed", "Workshop"])
def test_any_workers_play_the_same_turns(agent: Agent, world: str, own: bool) -> None:
    expected, *others = (
        rollouts(collector(agent, world, kind, own=own), 5, 3, 6) for kind in KINDS
    )
    assert sum(len(each.episodes) for each in expected[0]) > 3
    assert others == [expected] * len(others)


@hypothesis_settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    pauses=st.lists(st.sampled_from((0.0, 0.001, 0.01)), min_size=1, max_size=4),
    streams=st.integers(1, 6),
    count=st.integers(1, 8),
    horizons=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_time_decides_nothing(
    agent: Agent, pauses: list[float], streams: int, count: int, horizons: list[int]
) -> None:
    def play(kind: str) -> Any:
        world = slow_worlds.slow("Novel", tuple(pauses))
        own = range(streams)
        return rollouts(Collector(world, agent.policy, streams, 10, own, Workers(kind)), *horizons)

    assert play(f"threads:{count}") == play("serial")


def test_a_quick_world_goes_on_while_a_slow_one_is_at_work(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow world waits for a turn that the quick ones take after they have gone on."""
    guessed = threading.Event()
    guess = Ahead._guess

    def watched(self: Ahead, *args: Any) -> None:
        guess(self, *args)
        guessed.set()

    monkeypatch.setattr(Ahead, "_guess", watched)

    class Waiting(slow_worlds.Slow):
        def step(self, action: str) -> Any:
            seed = self.unwrapped._state.seed  # pyright: ignore[reportAttributeAccessIssue]
            if seed == 10:
                assert guessed.wait(60)
            return self.env.step(action)

    def make_one() -> Any:
        return Waiting(slow_worlds.slow("Novel")(), (0.0,))

    workers = Workers("threads:4")
    worlds = Collector(make_one, agent.policy, 4, 10, range(4), workers)
    assert len(rollouts(worlds, 4)[0][0].turns) == 16


def test_a_wrong_guess_changes_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if rounding had led the guesses astray: the episodes are brought back, and go on."""
    expected = rollouts(collector(agent, "Novel", "serial"), 7, 7)
    guess, wrong = Ahead._guess, [0]

    def astray(self: Ahead, streams: Any, sources: Any) -> None:
        wrong[0] += len(streams)
        guess(self, streams, [np.random.default_rng(wrong[0]) for _ in sources])
        for stream in streams:
            stream._guesser = np.random.default_rng(wrong[0])

    monkeypatch.setattr(Ahead, "_guess", astray)
    for kind in ("threads:3", "processes:2"):
        wrong[0] = 0
        assert rollouts(collector(agent, "Novel", kind), 7, 7) == expected
        assert wrong[0] > 5


def test_a_world_that_does_not_repeat_itself_is_told_when_it_must(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []

    class Moody(slow_worlds.Slow):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            copies.append(1)
            prompt, info = super().reset(seed=seed, options=options)
            return f"{prompt} This was reset {len(copies)}.", info

    guess = Ahead._guess

    def astray(self: Ahead, streams: Any, sources: Any) -> None:
        guess(self, streams, [np.random.default_rng(len(copies)) for _ in sources])

    monkeypatch.setattr(Ahead, "_guess", astray)
    worlds = Collector(
        lambda: Moody(slow_worlds.slow("Novel")(), (0.0, 0.02)),
        agent.policy,
        4,
        10,
        range(4),
        Workers("threads:4"),
    )
    with pytest.raises(WorldError, match="does not repeat what it showed before"):
        rollouts(worlds, *[8] * 20)


@pytest.mark.parametrize("kind", ["threads:2", "processes:2"])
def test_a_saved_state_goes_on_with_any_workers(agent: Agent, kind: str) -> None:
    first = collector(agent, "Novel", "serial")
    generator = np.random.default_rng(3)
    first.collect(6, generator)
    state = collector_state(first)
    expected = rollouts(first, 5)
    other = collector(agent, "Novel", kind, seed=99)
    load_collector(other, state)
    assert collector_state(other) == state
    assert rollouts(other, 5) == expected


@pytest.mark.parametrize("greedy", [True, False])
def test_evaluations_are_the_same_with_any_workers(agent: Agent, greedy: bool) -> None:
    def play(kind: str) -> Any:
        records = evaluate(
            agent,
            episodes=9,
            seed=50,
            greedy=greedy,
            streams=4,
            env="slow_worlds:tiny/Slow-v0",
            env_args={"name": "tiny_worlds:tiny/Novel-v0", "pauses": [0.0, 0.01]},
            workers=Workers(kind),
        )
        return list(records)

    expected = play("serial")
    assert [record.seed for record in expected] == [*range(50, 59)]
    assert [play(kind) for kind in KINDS[1:]] == [expected] * 3


def test_nothing_is_left_behind(agent: Agent) -> None:
    before = threading.active_count()
    for kind in KINDS:
        rollouts(collector(agent, "Chain", kind), 3)
    assert threading.active_count() <= before + 1  # the watch over slow worlds stays
    assert active_children() == []
