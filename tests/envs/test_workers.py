"""Worlds that live elsewhere are the worlds they would be here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from multiprocessing import active_children
from typing import Any

import gymnasium
import pytest
import slow_worlds
import tiny_worlds
from hypothesis import given
from hypothesis import strategies as st

from poad.config import Config
from poad.envs import CheckedWorld, Form, RemoteWorld, Workers, make, parse_workers
from poad.envs.workers import Elsewhere, Host
from poad.errors import ConfigError, WorldError

KINDS = ("serial", "threads:2", "processes:2")


def call(host: Host, method: str, *arguments: Any) -> Any:
    host.begin(method, *arguments)
    return host.result()


@pytest.fixture
def opened() -> Iterator[Any]:
    """Open worlds, and see that nothing is left of them."""
    workers: list[Workers] = []

    def open_one(world: Any, kind: str, **limits: float) -> Host:
        workers.append(Workers(kind, **limits))
        made = partial(make, tiny_worlds.name(world)) if isinstance(world, str) else world
        return workers[-1].open(made)

    yield open_one
    for each in workers:
        each.close()
    assert active_children() == []


@given(st.sampled_from(("threads", "processes", "ray")), st.integers(1, 999_999))
def test_any_number_of_workers_is_read(kind: str, count: int) -> None:
    assert parse_workers(f"{kind}:{count}") == (kind, count)
    assert Config(workers=f"{kind}:{count}").workers == f"{kind}:{count}"


@pytest.mark.parametrize("wrong", ["", "threads", "threads:0", "processes:-1", "fibres:2", "4"])
def test_other_workers_are_refused(wrong: str) -> None:
    for refuse in (Workers, lambda kind: Config(workers=kind)):
        with pytest.raises(
            ConfigError, match=r"threads:N, processes:N or ray:N.*for example threads:8"
        ):
            refuse(wrong)


PLAIN = ("duration", "episode", "invalid_action", "notes", "cpu_seconds", "measures", "work")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", ["Chain", "Forms", "Workshop", "Mixed", "Diary"])
def test_a_world_elsewhere_says_the_same(world: str, kind: str, opened: Any) -> None:
    here, host = CheckedWorld(make(tiny_worlds.name(world))), opened(world, kind)
    for seed in (3, 4):
        shown, expected = call(host, "reset", seed), here.reset(seed)
        while True:
            assert shown[:-1] == expected[:-1]
            info, expected_info = dict(shown.info), dict(expected.info)
            if kind.startswith("processes"):  # and what the process itself took
                assert info.pop("cpu_seconds", 0.0) >= expected_info.pop("cpu_seconds", 0.0)
            for name in PLAIN:
                found, told = info.get(name), expected_info.get(name)
                assert json.dumps(found) == json.dumps(told) or found == told
            assert host.world.seen == here.seen
            assert host.world.place() == here.place()
            if len(shown) > 3 and any(shown[3:5]):
                break
            offered = expected.actions
            action = offered[-1] if isinstance(offered, tuple | Form) else "a word or two"
            here.prepare(action)
            host.prepare(action)
            shown, expected = call(host, "step", action), here.step(action)


def test_a_world_with_global_state_is_alone_in_its_process() -> None:
    """Two worlds take turns; each goes on as if it were alone."""
    workers = Workers("processes:1")
    hosts = [workers.open(slow_worlds.stubborn) for _ in range(2)]
    alone = slow_worlds.stubborn()
    expected = {}
    for seed in (1, 2):
        shown = [alone.reset(seed=seed)[0]]
        expected[seed] = [*shown, *(alone.step("stay here")[0] for _ in range(3))]
    found: dict[int, list[str]] = {1: [], 2: []}
    for turn in range(4):
        for seed, host in enumerate(hosts, 1):
            wanted = ("step", "stay here") if turn else ("reset", seed)
            found[seed].append(call(host, *wanted).prompt)
    workers.close()
    assert found == expected


@pytest.mark.parametrize("kind", ["threads:3", "processes:3"])
def test_a_world_stays_in_its_thread_and_process(kind: str) -> None:
    workers = Workers(kind)
    hosts = [workers.open(slow_worlds.stubborn) for _ in range(2)]
    homes = []
    for host in hosts:
        said = [call(host, "reset", 1), *(call(host, "step", "stay here") for _ in range(3))]
        (home,) = {tuple(each.info["notes"]) for each in said}
        homes.append(home)
    workers.close()
    assert homes[0] != homes[1]
    assert (homes[0][0].split("-")[0] == str(os.getpid())) is (kind == "threads:3")


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_worlds_work_at_a_time_than_there_are_workers(kind: str) -> None:
    if kind == "processes:2":
        return  # the slots are those of the threads
    lock, at_work, most = threading.Lock(), [0], [0]

    class Counted(gymnasium.Wrapper[str, str, str, str]):
        def step(self, action: str) -> Any:
            with lock:
                at_work[0] += 1
                most[0] = max(most[0], at_work[0])
            time.sleep(0.02)
            with lock:
                at_work[0] -= 1
            return self.env.step(action)

    workers = Workers(kind)
    hosts = [workers.open(lambda: Counted(make(tiny_worlds.name("Chain")))) for _ in range(5)]
    for method, argument in (("reset", 1), ("step", "stay here")):
        for host in hosts:
            host.begin(method, argument)
        for host in hosts:
            host.result()
    workers.close()
    assert most[0] == (1 if kind == "serial" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_world_remarks_is_heard(kind: str, opened: Any) -> None:
    host = opened(slow_worlds.remarking, kind)
    call(host, "reset", 1)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        call(host, "step", "stay here")
    assert [str(each.message) for each in heard] == ["it rains"]


@pytest.mark.parametrize("kind", ["threads:2", "processes:2"])
def test_a_world_that_cannot_be_opened_says_why(kind: str, opened: Any) -> None:
    host = opened(slow_worlds.unopenable, kind)
    host.begin("reset", 1)
    with pytest.raises(ConfigError, match=r"^There is no lamp oil\.$"):
        host.result()


@pytest.mark.parametrize("kind", ["threads:1", "processes:1"])
def test_a_world_that_hangs_keeps_no_slot(kind: str, opened: Any) -> None:
    workers = Workers(kind, step_timeout=0.3)
    hosts = [workers.open(slow_worlds.faulty("hang", every=2, turn=1)) for _ in range(2)]
    for seed, host in zip((1, 2), hosts, strict=True):
        call(host, "reset", seed)
    for host in hosts:
        host.begin("step", "walk on")
    assert hosts[1].result().prompt == "Day 1 of year 2."
    with pytest.raises(WorldError, match=r"from step within 0\.3 s \(step_timeout\).* seed 1, act"):
        hosts[0].result()
    hosts[0].reopen()
    assert call(hosts[0], "reset", 4).prompt == "Day 0 of year 4."
    workers.close()


def test_a_process_that_is_killed_is_told_and_replaced(opened: Any) -> None:
    host = opened("Chain", "processes:2")
    call(host, "reset", 1)
    (process,) = active_children()
    process.kill()
    host.begin("step", "walk on")
    with pytest.raises(WorldError, match=r"ended, by the signal SIGKILL\..*seed 1, action 1 \("):
        host.result()
    host.reopen()
    assert call(host, "reset", 1).prompt == "You stand at place 0. What now?"


def test_worlds_that_do_not_close_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poad.envs.workers.GRACE", 0.2)
    for kind, left in (("threads:2", True), ("processes:2", False)):
        workers = Workers(kind)
        host = workers.open(slow_worlds.faulty("hang", every=1, turn=1))
        call(host, "reset", 1)
        host.begin("step", "walk on")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            workers.close()
        assert any("1 of 1 worlds did not close" in str(each.message) for each in told) is left
    assert active_children() == []


def test_without_limits_serial_worlds_live_here() -> None:
    assert not isinstance(Workers().open(slow_worlds.stubborn), Elsewhere)
    limited = Workers("serial", step_timeout=1.0)
    assert isinstance(limited.open(slow_worlds.stubborn), Elsewhere)
    limited.close()


SCRIPT = """
import sys
from functools import partial
from poad.envs import Workers, make
import tiny_worlds

if __name__ == "__main__":
    workers = Workers("processes:2")
    host = workers.open(partial(make, tiny_worlds.name("Chain")))
    host.begin("reset", 1)
    print(host.result().prompt, flush=True)
    {ending}
"""


@pytest.mark.parametrize(
    "ending", ["sys.exit(0)", "raise KeyboardInterrupt", "import os; os.kill(os.getpid(), 9)"]
)
def test_processes_end_with_the_one_that_plays(ending: str, tmp_path: Any) -> None:
    script = tmp_path / "play.py"
    script.write_text(SCRIPT.format(ending=ending), encoding="utf-8")
    path = os.pathsep.join([*sys.path, os.path.dirname(tiny_worlds.__file__)])
    ran = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )  # it would not return while a process held its output
    assert ran.stdout == "You stand at place 0. What now?\n"


def test_memory_crosses_the_pipe() -> None:
    world = RemoteWorld(partial(make, tiny_worlds.name("Chain")))
    world.reset(1)
    assert world.memory() is None
    assert world.step_discount is None
    assert not world.prepares
    world.close()
    world.close()
