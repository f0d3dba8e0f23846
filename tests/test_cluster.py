"""A Ray cluster gives the results of one machine, and what dies is replaced.

The cluster is two raylets of this machine. Tests that need it are skipped where ray is missing.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import slow_worlds
import tiny_worlds
from ranks_at_work import assert_same_run, untimed_metrics
from tolerance import float64

from poad.agent import Agent, load_agent
from poad.cli.main import main
from poad.cluster import ADDRESS, connect
from poad.config import Config
from poad.envs import Workers
from poad.errors import ConfigError
from poad.learn import Collector, Trainer
from poad.learn.faults import Tolerance
from poad.runs import Run
from poad.study import Cluster, read_results, run_study
from poad.study.comparable import incomparable
from poad.workflows import Placement, resume_run, train_on_cluster, train_run
from poad.workflows.on_cluster import _open_desk, _Order, _take_part


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """The package, connected to a cluster of two nodes that finds the modules of these tests."""
    package = pytest.importorskip("ray", reason='needs ray: pip install "poad[ray]"')
    utils = importlib.import_module("ray.cluster_utils")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    known = {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    # Ray Train looks after its processes more often than every two seconds.
    known |= {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    with patch.dict(os.environ, known):
        cluster = utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        cluster.add_node(num_cpus=2)
        os.environ[ADDRESS] = cluster.address
        connect()
        yield package
        package.shutdown()
        cluster.shutdown()


# Reaching a cluster.


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for ask in (connect, partial(Workers, "ray:2")):
        with pytest.raises(ConfigError, match=r'pip install "poad\[ray\]"'):
            ask()


def test_a_cluster_that_does_not_answer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = pytest.importorskip("ray", reason='needs ray: pip install "poad[ray]"')
    monkeypatch.setattr(package, "is_initialized", lambda: False)
    monkeypatch.setenv(ADDRESS, "elsewhere")
    words = ("train", "--ray.workers", "2", "--ray.address", "127.0.0.1:1")
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "No Ray cluster can be reached at 127.0.0.1:1: Connection refused." in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ray.workers", "1", "--ray.fewest", "2"), "--ray.fewest is at most"),
        (("--ray.workers", "-1"), "not negative"),
        (("--ray.workers", "2", "--watch"), "Leave one of them out"),
    ],
)
def test_what_cannot_be_asked_of_a_cluster_is_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err


# Worlds in actors.


def play(agent: Agent, kind: str, fault: str) -> tuple[list[Any], str]:
    """What four streams play of a world that fails in its episode 13, and what is told of it."""
    world, tolerance = slow_worlds.faulty(fault, every=12), Tolerance("restart", 1.0)
    worlds = Collector(world, agent.policy, 4, 10, range(4), Workers(kind), tolerance)
    generator = np.random.default_rng(3)
    try:
        found = [replace(worlds.collect(n, generator), cpu_elsewhere=0.0) for n in (5, 3)]
    finally:
        worlds.close()
    (failure,) = worlds.take_faults()
    return found, failure.error


@pytest.mark.slow
def test_worlds_in_actors_play_the_same_turns_and_one_that_is_killed_is_replaced(ray: Any) -> None:
    agent = load_agent(tiny_worlds.settings("Chain"))
    expected, _ = play(agent, "serial", "raise")
    found, told = play(agent, "ray:2", "die")
    assert found == expected
    assert sum(len(each.episodes) for each in found) > 3
    assert told.startswith("The Ray actor of the world has ended: its worker process has died. ")
    assert "seed 13, action 2 (" in told


# A training of several processes.


def train_and_die(path: Path, config: Config) -> int:
    """Train in float64, but rank 1 is killed in its third iteration."""
    iterate = Trainer.iterate

    def dying(trainer: Trainer) -> Any:
        if trainer.ranks.rank == 1 and trainer.meters.iteration == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return iterate(trainer)

    with float64(), patch.object(Trainer, "iterate", dying):
        return train_run(config, path)


def go_on(path: Path) -> int:
    with float64():
        return resume_run(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_two_processes_of_which_one_is_killed_train_as_one_does(
    ray: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = {"episodes": 3, "every": 1}
    config = tiny_worlds.settings("Novel", steps=75, checkpoint_every=1, eval=evaluated)
    with float64():
        assert train_run(config, tmp_path / "alone", quiet=True) == 0
    path = tmp_path / "run"
    train, again = partial(train_and_die, path, config), partial(go_on, path)
    with pytest.warns(UserWarning, match="have ended or joined. It goes on from its last check"):
        assert train_on_cluster(train, again, path, Placement(2, 2, 1)) == 0
    assert_same_run(path, tmp_path / "alone")
    shown = capsys.readouterr().out
    assert shown.count("Training tiny_worlds:tiny/Novel-v0 with poad") == 2
    assert f"poad play {path}" in shown
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def fail(error: Exception) -> int:
    raise error


def order(path: Path, work: Any) -> Any:
    return _Order(work, work, path, None, os.getcwd(), path.parent / "notes", {}, False)


@pytest.mark.slow
def test_a_mistake_ends_the_training_and_a_lost_machine_does_not(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    desk = _open_desk(ray)
    with pytest.raises(OSError, match="the disk is gone"):  # Ray Train starts it again
        _take_part(order(tmp_path / "run", partial(fail, OSError("the disk is gone"))), desk)
    assert ray.get(desk.outcome.remote()) is None
    desk = _open_desk(ray)
    _take_part(order(tmp_path / "run", partial(fail, ConfigError("There is no oil."))), desk)
    assert ray.get(desk.outcome.remote()) == ("ConfigError", "There is no oil.")


@pytest.mark.slow
def test_a_machine_that_does_not_see_the_directory_is_named(ray: Any, tmp_path: Path) -> None:
    desk = _open_desk(ray)
    _take_part(order(tmp_path / "elsewhere" / "run", int), desk)
    kind, told = ray.get(desk.outcome.remote())
    assert kind == "RunError"
    assert f"{socket.gethostname()} does not see {tmp_path / 'elsewhere'}" in told


@pytest.mark.slow
def test_a_training_stops_when_the_command_asks_for_it(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    path, desk = tmp_path / "run", _open_desk(ray)
    config = tiny_worlds.settings("Chain", steps=10**6, eval={"episodes": 0})
    work = partial(train_run, config, path)
    thread = threading.Thread(target=_take_part, args=(order(path, work), desk))  # as in a worker
    thread.start()
    while not (path / "metrics.jsonl").exists() and thread.is_alive():
        time.sleep(0.02)
    said = ray.get(desk.fetch.remote(True))
    thread.join()
    assert ray.get(desk.outcome.remote()) == ("status", "130")
    assert len(Run.open(path).metrics()) == Run.open(path).checkpoints()[-1]
    said += ray.get(desk.fetch.remote(True))
    assert "Nothing is lost" in "".join(text for kind, text in said if kind == "stdout")


# A study.


@pytest.mark.slow
def test_a_study_on_a_cluster_has_the_results_of_one_here(ray: Any, tmp_path: Path) -> None:
    config = {"streams": 2, "horizon": 4, "model": {"name": "tiny-kitchen", "device": "cpu"}}
    world = {"env": "tiny_worlds:tiny/Chain-v0", "steps": 16, "threshold": 0.5, "settings": config}
    told = {"name": "small", "question": "Where?", "worlds": {"chain": world}}
    told |= {"methods": {"poad": {}}, "seeds": [0], "panel": {"episodes": 3, "points": 2}}
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(told))
    for place in (None, Cluster()):
        out = tmp_path / type(place).__name__
        assert run_study(file, out=out, jobs=1, quiet=True, place=place) == 0
    names = ("NoneType", "Cluster")
    here, there = (read_results(tmp_path / name) for name in names)
    assert not incomparable(there, here)
    (found,), (expected,) = there.aggregates.summaries, here.aggregates.summaries
    assert replace(found, speed=expected.speed) == expected
    runs = [tmp_path / name / "runs" / "chain.poad.0" for name in names]
    assert untimed_metrics(runs[0]) == untimed_metrics(runs[1])
