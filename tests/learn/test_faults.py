"""A failing world is data: it is told so that it can be repeated, and nothing else is lost."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_worlds import FAULTS, Faulty, faulty
from tiny_worlds import settings

from poad.agent import Agent, load_agent, resolve
from poad.config import Config
from poad.envs import Workers
from poad.errors import WorldError, explained
from poad.learn.evaluate import evaluate
from poad.learn.faults import WINDOW, Fault, Tolerance, is_world_fault
from poad.learn.resume import collector_state, load_collector
from poad.learn.rollout import Collector
from poad.learn.train import train
from poad.learn.waiting import Waiting
from poad.runs import EpisodeRecord, Run, read_world_errors
from poad.turns import Rollout

FAILING = "slow_worlds:tiny/Faulty-v0"


@pytest.fixture(scope="module")
def agent() -> Agent:
    return load_agent(settings("Chain"))


@pytest.fixture(autouse=True)
def broken() -> Iterator[None]:
    Faulty.mended = False
    yield
    Faulty.mended = False


def collector(agent: Agent, world: Any, policy: Any = "restart", **workers: Any) -> Collector:
    """Four streams, whose first episodes have the seeds 10 to 13."""
    tolerance = Tolerance(policy, 1.0)
    return Collector(world, agent.policy, 4, 10, range(4), Workers(**workers), tolerance)


def collect(worlds: Collector, *horizons: int) -> list[Rollout]:
    generator = np.random.default_rng(3)
    try:
        return [worlds.collect(horizon, generator) for horizon in horizons]
    finally:
        worlds.close()


def told(error: BaseException) -> str:
    assert isinstance(error, Exception)
    text = explained(error)
    assert text is not None
    return text


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["serial", "threads:2", "processes:4"])
def test_a_failure_is_told_with_world_seed_turn_and_actions(
    agent: Agent, fault: str, kind: str
) -> None:
    worlds = collector(agent, faulty(fault), "stop", kind=kind)
    with pytest.raises((WorldError, RuntimeError)) as caught:
        collect(worlds, 4)
    assert is_world_fault(caught.value)
    (failure,) = worlds.take_faults()
    text = told(caught.value)
    assert FAULTS[fault] in text
    assert failure.error == text
    assert (failure.seed, failure.turn, len(failure.actions)) == (13, 2, 2)
    first, second = map(repr, failure.actions)
    assert f"world 'tiny/Novel-v0', seed 13, action 2 ({second}) after {first}." in text


@pytest.mark.parametrize("kind", ["serial", "threads:2", "processes:2"])
@pytest.mark.parametrize("fault", ["raise", "nothing", "none"])
def test_a_failure_at_the_reset_is_told(agent: Agent, fault: str, kind: str) -> None:
    with pytest.raises((WorldError, RuntimeError), match=FAULTS[fault].split(": ")[-1]) as caught:
        collector(agent, faulty(fault, turn=0), "stop", kind=kind)
    assert "seed 13, reset." in told(caught.value)


@pytest.mark.parametrize("fault", [*FAULTS])
def test_what_broke_off_is_truncated_at_the_last_good_observation(agent: Agent, fault: str) -> None:
    """Episodes of four turns; those of the seeds 13, 17, ... fail at the second."""
    worlds = collector(agent, faulty(fault))
    rollout, *_ = collect(worlds, 6)
    assert [len(turns) for turns in rollout.streams] == [6] * 4
    turns, text = rollout.streams[3], agent.model.codec.text
    failed = [t for n, t in rollout.broken if n == 3]
    # One good turn of 13, which breaks off; of 17, of 21, ..., for whose seeds the world fails.
    assert failed == [0, 1, 2, 3, 4]
    for t in failed:
        assert text(turns[t].prompt_ids) == f"Day 0 of year {13 + 4 * t}."
        assert text(turns[t].next_prompt_ids) == f"Day 1 of year {13 + 4 * t}."
        assert turns[t].truncated
        assert not turns[t].terminated
    assert len(rollout.episodes) == 3  # of the streams whose worlds are well
    assert [fault.seed for fault in worlds.take_faults()] == [13, 17, 21, 25, 29]


def test_nothing_is_learned_from_the_turn_that_failed(agent: Agent) -> None:
    worlds = collector(agent, faulty("raise", every=8, turn=3))  # seeds 17, 25, ...
    rollout, *_ = collect(worlds, 12)
    (fault,) = worlds.take_faults()
    assert fault == Fault(3, 17, 3, fault.error, fault.actions)
    played = [agent.model.codec.text(turn.prompt_ids) for turn in rollout.streams[3]]
    assert played == [
        *(f"Day {day} of year 13." for day in range(4)),
        *(f"Day {day} of year 17." for day in range(2)),
        *(f"Day {day} of year 21." for day in range(4)),
        *(f"Day {day} of year 25." for day in range(2)),
    ]
    assert rollout.broken == ((3, 5),)
    assert len(rollout.measures) == len(rollout.works) == 48


@pytest.mark.parametrize(
    "world", [{"turn": 2}, {"turn": 0, "every": 3}, {"turn": 4}, {"turn": 1, "every": 3}]
)
def test_any_workers_break_the_same_episodes_off(agent: Agent, world: Any) -> None:
    def play(kind: str) -> Any:
        worlds = collector(agent, faulty("raise", **world), kind=kind)
        found = collect(worlds, 1, 5, 6)
        faults = [(f.stream, f.seed, f.turn, f.actions) for f in worlds.take_faults()]
        return [(r.streams, r.episodes, r.broken) for r in found], faults

    expected, *others = map(play, ("serial", "threads:3", "processes:2"))
    assert len(expected[1]) > 1
    assert others == [expected, expected]


def test_an_episode_that_broke_off_between_rollouts_waits_no_longer(agent: Agent) -> None:
    worlds = collector(agent, faulty("raise", every=8, turn=2))
    worlds.streams[3].reset(17)
    worlds.next_seeds[3] = 21
    first, second = collect(worlds, 1, 2)
    assert first.broken == ()
    assert second.broken == ((3, -1),)
    waiting = Waiting(4, resolve(settings("Chain", credit={"method": "reinforce"})).credit)
    waiting.join(first.streams)
    waiting.break_off(n for n, t in second.broken if t < 0)
    streams, stale = waiting.join(second.streams)
    assert [len(turns) for turns in streams] == [0, 0, 0, 1]
    assert streams[3][0].truncated
    assert stale == [1] * 4


def test_too_many_failures_stop_a_training() -> None:
    fault, tolerance = Fault(0, 0, 0, "It broke.", ()), Tolerance("restart", 0.03)
    for _ in range(3):
        tolerance.bear(fault, WorldError("x"))
    resumed = Tolerance("restart", 0.03)
    resumed.load_state(json.loads(json.dumps(tolerance.state())))
    with pytest.raises(
        WorldError, match=r"4 of the last 4 episodes .* 3 of 100\. The last .* It b"
    ):
        resumed.bear(fault, WorldError("x"))
    for _ in range(WINDOW - 1):
        tolerance.episode()
    tolerance.bear(fault, WorldError("x"))  # two of the first three are forgotten


def test_a_world_that_never_begins_stops_a_training(agent: Agent) -> None:
    limited = Tolerance("restart", 0.1)
    with pytest.raises(WorldError, match="11 of the last 11 episodes broke off"):
        Collector(faulty("raise", every=1, turn=0), agent.policy, 2, 1, range(2), None, limited)


@pytest.mark.parametrize("kind", ["serial", "threads:4", "processes:4"])
def test_a_world_that_hangs_is_given_up(agent: Agent, kind: str) -> None:
    worlds = collector(agent, faulty("hang", every=12, turn=2), kind=kind, step_timeout=0.4)
    rollout, *_ = collect(worlds, 3)
    (fault,) = worlds.take_faults()
    assert "did not return from step within 0.4 s (step_timeout)" in fault.error
    assert "seed 13, action 2 (" in fault.error
    assert rollout.broken == ((3, 0),)
    assert [len(turns) for turns in rollout.streams] == [3] * 4


def test_a_world_that_hangs_at_its_reset_is_given_up(agent: Agent) -> None:
    world = faulty("hang", every=12, turn=0)
    worlds = collector(agent, world, kind="processes:2", reset_timeout=10.0)
    (fault,) = worlds.take_faults()
    assert "did not return from reset within 10 s (reset_timeout)" in fault.error
    assert len(collect(worlds, 2)[0].turns) == 8


def test_a_process_that_dies_is_a_world_that_fails(agent: Agent) -> None:
    worlds = collector(agent, faulty("die", every=12), kind="processes:2")
    rollout, *_ = collect(worlds, 3)
    (fault,) = worlds.take_faults()
    assert "process of the world has ended, by the signal SIGKILL" in fault.error
    assert "seed 13, action 2 (" in fault.error
    assert [len(turns) for turns in rollout.streams] == [3] * 4


def test_what_another_process_cannot_be_handed_is_told(agent: Agent) -> None:
    with pytest.raises(ValueError, match="cannot be handed to another process"):
        collector(agent, lambda: faulty("raise")(), kind="processes:2")


# Whole trainings.


def config_of(**changes: Any) -> Config:
    """Three streams, whose first episodes have the seeds 2,000,006 to 2,000,008."""
    world = {"name": "tiny_worlds:tiny/Novel-v0", "fault": "raise", "every": 500_003, "turn": 3}
    base = {"env_args": world, "checkpoint_every": 100, "eval": {"episodes": 0}}
    return settings(**{"world": FAILING} | base | changes)


def timeless(run: Run) -> list[str]:
    clocks = ("_seconds", "_per_second")
    lines = run.metrics()
    return [repr({k: v for k, v in m.items() if not k.endswith(clocks)}) for m in lines]


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        ("serial", {}),
        ("serial", {"randomness": "shared"}),
        ("threads:2", {}),
        ("serial", {"credit": {"method": "reinforce"}}),
    ],
)
def test_a_training_goes_on_from_a_failure_as_if_there_had_been_none(
    tmp_path: Path, workers: str, changes: dict[str, Any]
) -> None:
    config = config_of(**changes)
    Faulty.mended = True
    with Run.create(tmp_path / "well", config) as well:
        list(train(config, well))
    Faulty.mended = False
    config = config_of(workers=workers, **changes)
    with Run.create(tmp_path / "ill", config) as ill:
        with pytest.raises(RuntimeError, match="the lamp broke") as caught:
            list(train(config, ill))
        assert f"`poad play {ill.path} --error 1` repeats" in told(caught.value)
        # All whole iterations are kept, although no checkpoint was due.
        assert ill.checkpoints() == [0, len(ill.metrics())]
        assert 0 < len(ill.metrics()) < 4
    Faulty.mended = True
    with Run.open(tmp_path / "ill") as ill:
        (error,) = read_world_errors(ill.path)
        assert error.iteration == len(ill.metrics()) + 1
        assert (error.turn, error.seed) == (3, 2_000_013)
        list(train(ill.config, ill, resume=True))
    assert timeless(ill) == timeless(well)
    one, other = (run.load_checkpoint()[0] for run in (ill, well))
    assert all(torch.equal(t, other[g][n]) for g, named in one.items() for n, t in named.items())


@pytest.mark.parametrize("method", ["poad", "reinforce"])
def test_a_training_that_goes_on_counts_and_lists_failures(tmp_path: Path, method: str) -> None:
    changes = {"on_world_error": "restart", "world_error_limit": 1.0, "credit": {"method": method}}
    world = {"name": "tiny_worlds:tiny/Novel-v0", "fault": "raise", "every": 4, "turn": 3}
    config = config_of(env_args=world, **changes)
    with Run.create(tmp_path / "run", config) as run:
        with pytest.warns(UserWarning, match="broke off, and the world was opened anew") as found:
            metrics = list(train(config, run))
        assert len([w for w in found if "opened anew" in str(w.message)]) == 1
        assert metrics[-1]["env_steps"] == 60
        assert metrics[-1]["world_errors"] == len(read_world_errors(run.path)) > 2
        assert {error.turn for error in read_world_errors(run.path)} == {3}
        iterations = [error.iteration for error in read_world_errors(run.path)]
        assert iterations == sorted(iterations)


def test_what_failed_after_the_checkpoint_is_listed_once(tmp_path: Path) -> None:
    world = {"name": "tiny_worlds:tiny/Novel-v0", "fault": "raise", "every": 4, "turn": 3}
    config = config_of(env_args=world, on_world_error="restart", world_error_limit=1.0)
    with warnings.catch_warnings(action="ignore"):
        with Run.create(tmp_path / "whole", config) as whole:
            list(train(config, whole))
        with Run.create(tmp_path / "parted", config) as parted:
            going = train(config, parted)
            for _ in range(2):
                next(going)
            parted.save_checkpoint = lambda *_: Path()  # pyright: ignore  # as if it were killed
            going.close()  # pyright: ignore[reportAttributeAccessIssue]
        with Run.open(tmp_path / "parted") as parted:
            list(train(config, parted, resume=True))
    assert read_world_errors(parted.path) == read_world_errors(whole.path)
    assert timeless(parted) == timeless(whole)


def test_a_failure_at_the_first_reset_is_listed(tmp_path: Path) -> None:
    world = {"name": "tiny_worlds:tiny/Novel-v0", "fault": "raise", "every": 2, "turn": 0}
    with Run.create(tmp_path / "run", config_of(env_args=world)) as run:
        with pytest.raises(RuntimeError, match="the lamp broke") as caught:
            train(run.config, run)
        assert f"`poad play {run.path} --error 1` repeats" in told(caught.value)
        (error,) = read_world_errors(run.path)
        assert (error.iteration, error.turn, error.actions) == (1, 0, ())
        Faulty.mended = True
        assert len(list(train(run.config, run))) == len(run.metrics()) > 0


# Replays.


def test_a_replay_reads_the_same_prompts(agent: Agent) -> None:
    first = collector(agent, faulty("raise", every=999), "stop")
    first.collect(3, np.random.default_rng(5))
    state = json.loads(json.dumps(collector_state(first)))
    load_collector(collector(agent, faulty("raise", every=999), "stop"), state)
    state["streams"][2]["read"][1] = "0" * 16
    with pytest.raises(WorldError, match=r"the model reads another prompt.*seed 12, action 1 \("):
        load_collector(collector(agent, faulty("raise", every=999), "stop"), state)


@pytest.mark.parametrize("kind", ["serial", "threads:2"])
def test_what_cannot_be_repeated_begins_anew_where_that_is_asked_for(
    agent: Agent, kind: str
) -> None:
    first = collector(agent, faulty("raise", every=999))
    first.collect(3, np.random.default_rng(5))
    state = json.loads(json.dumps(collector_state(first)))
    state["streams"][1]["seen"][2] = "0" * 16
    with pytest.raises(WorldError, match=r"does not repeat.*on_world_error = restart.*seed 11"):
        load_collector(collector(agent, faulty("raise", every=999), "stop", kind=kind), state)
    other = collector(agent, faulty("raise", every=999), kind=kind)
    with pytest.warns(UserWarning, match="1 of 4 unfinished episodes could not be repeated"):
        assert load_collector(other, state) == [1]
    assert [fault.seed for fault in other.take_faults()] == [11]
    assert [stream.seed for stream in other.streams] == [10, 15, 12, 13]
    assert len(collect(other, 3)[0].turns) == 12


def test_a_reset_may_fail_once_more_while_a_training_resumes(agent: Agent) -> None:
    first = collector(agent, faulty("raise", every=999))
    first.collect(3, np.random.default_rng(5))
    state = json.loads(json.dumps(collector_state(first)))
    state["streams"][1]["seen"][2] = "0" * 16
    # Seed 15 comes next in stream 1, and 19 after it; the world fails at seeds 1, 8, 15 ...
    other = collector(agent, faulty("raise", every=7, turn=0))
    with pytest.warns(UserWarning, match="1 of 4 unfinished episodes could not be repeated"):
        assert load_collector(other, state) == [1]
    assert [(fault.seed, fault.turn > 0) for fault in other.take_faults()] == [
        (11, True),
        (15, False),
    ]
    assert [stream.seed for stream in other.streams] == [10, 19, 12, 13]


# Evaluations.


def play(agent: Agent, fault: str, **options: Any) -> Any:
    world = {"name": "tiny_worlds:tiny/Novel-v0", "fault": fault, "every": 4}
    chosen = {"turn": 3} | options.pop("world", {})
    return list(
        evaluate(
            agent,
            episodes=8,
            seed=50,
            greedy=False,
            streams=3,
            env=FAILING,
            env_args=world | chosen,
            **options,
        )
    )


def acted(record: EpisodeRecord) -> Any:
    return record.seed, [(turn.prompt, turn.action, turn.reward) for turn in record.turns]


@pytest.mark.parametrize("kind", ["serial", "threads:2", "processes:2"])
@pytest.mark.parametrize("turn", [0, 1, 3, 4])
def test_an_evaluation_counts_what_fails_and_goes_on(agent: Agent, kind: str, turn: int) -> None:
    records = play(agent, "nan", world={"turn": turn}, workers=Workers(kind))
    if turn == 0:  # the fault is one of steps
        records = play(agent, "raise", world={"turn": turn}, workers=Workers(kind))
    assert [record.seed for record in records] == [*range(50, 58)]
    failed = [record for record in records if record.ending == "failed"]
    assert [record.seed for record in failed] == [53, 57]
    for record in failed:
        assert not record.success
        assert len(record.turns) == max(0, turn - 1)
        assert record.episode_return == sum(each.reward for each in record.turns)
        assert f"seed {record.seed}, " in record.error
    well = [r for r in play(agent, "raise", world={"every": 10**9}) if r.seed % 4 != 1]
    assert [acted(r) for r in records if not r.error] == [acted(r) for r in well]


def test_an_evaluation_cuts_episodes_off_that_do_not_end(agent: Agent) -> None:
    records = play(agent, "raise", world={"every": 10**9}, max_turns=2)
    assert {len(record.turns) for record in records} == {2}
    assert {record.ending for record in records} == {"truncated"}
    assert all(r.episode_return == sum(t.reward for t in r.turns) for r in records)
    whole = play(agent, "raise", world={"every": 10**9})
    assert [acted(r)[1] for r in records] == [acted(r)[1][:2] for r in whole]
