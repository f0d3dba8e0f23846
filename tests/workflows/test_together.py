"""A run of several processes: one directory, any number of processes after a stop, and one word
when one of them dies."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks_at_work import (
    assert_same_run,
    on_ranks,
    play_last,
    same,
    start_command,
    train_in_parts,
)
from tiny_worlds import name, settings

from poad.config import Config, dump
from poad.runs import Run, encode

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")

CASES: dict[str, dict[str, Any]] = {
    "poad": {"world": "Novel", "eval": {"episodes": 3, "every": 1}},
    "sharded": {
        "world": "Novel",
        "model": {"shard": "full"},
        "eval": {"episodes": 3, "every": 1},
    },
    "reinforce": {"world": "Chain", "credit": {"method": "reinforce"}, "eval": {"episodes": 0}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_in_another_number_of_processes(case: str, tmp_path: Path) -> None:
    config = settings(**CASES[case] | {"steps": 30, "randomness": "stream"})
    for sizes in ((1, 1), (2, 1), (1, 3)):
        path = tmp_path / f"run{sizes[0]}{sizes[1]}"
        folder = tmp_path / f"first{sizes[0]}{sizes[1]}"
        assert on_ranks(train_in_parts, sizes[0], folder, path, config, False) == [0] * sizes[0]
        longer: Config = replace(Run.open(path).config, steps=60)
        folder = tmp_path / f"then{sizes[0]}{sizes[1]}"
        assert on_ranks(train_in_parts, sizes[1], folder, path, longer, True) == [0] * sizes[1]
        assert_same_run(path, tmp_path / "run11")
        assert_same_evaluations(path, tmp_path / "run11")


def assert_same_evaluations(path: Path, expected: Path) -> None:
    """In the middle and at the end of training: the same episodes, in the same order."""
    runs = Run.open(path), Run.open(expected)
    found, wanted = ([encode(each) for each in run.episodes()] for run in runs)
    same(found, wanted, 1e-6)
    ends = [run.summary() for run in runs]
    assert None not in ends
    assert ends[0].evaluation == ends[1].evaluation  # pyright: ignore


def test_the_last_evaluation_is_divided(tmp_path: Path) -> None:
    played = on_ranks(play_last, 2, tmp_path / "ranks", tmp_path / "run", 5)
    assert played == [[0, 1] * 2, [2, 3, 4] * 2]  # sampled and greedy
    modes = [(each.seed, each.mode) for each in Run.open(tmp_path / "run").episodes()]
    first = modes[0][0]
    assert modes == [(first + i, mode) for mode in ("sampled", "greedy") for i in range(5)]


def test_the_last_evaluation_is_stopped_on_all_ranks(tmp_path: Path) -> None:
    config = settings("Chain", steps=15, randomness="stream", eval={"episodes": 10**6})
    (tmp_path / "long.yaml").write_text(dump(config))
    path = tmp_path / "run"
    words = ("train", "--config", str(tmp_path / "long.yaml"), "--run", str(path), "--quiet")
    processes = start_command(2, tmp_path, *words)
    wait_for(path / "episodes.jsonl", 2, processes)
    for process in processes:  # as a launcher does
        os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [130, 130], complaints(tmp_path)
    summary = Run.open(path).summary()
    assert summary is not None
    assert summary.status == "stopped"
    assert summary.evaluation is None
    assert list(Run.open(path).episodes())


def wait_for(path: Path, count: int, processes: list[Any]) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert all(process.exitcode is None for process in processes)
        time.sleep(0.02)


def long_training(tmp_path: Path, **model: Any) -> tuple[Path, tuple[str, ...]]:
    changes: dict[str, Any] = {"steps": 10**6, "checkpoint_every": 1, "randomness": "stream"}
    config = settings("Novel", **changes, model=model)
    (tmp_path / "long.yaml").write_text(dump(config))
    path = tmp_path / "run"
    return path, ("train", "--config", str(tmp_path / "long.yaml"), "--run", str(path), "--quiet")


@pytest.mark.parametrize(("victim", "shard"), [(0, "none"), (1, "none"), (0, "full"), (1, "full")])
def test_a_process_that_dies_ends_the_training_with_one_sentence(
    victim: int, shard: str, tmp_path: Path
) -> None:
    path, command = long_training(tmp_path, shard=shard)
    processes = start_command(2, tmp_path, *command)
    wait_for(path / "metrics.jsonl", 3, processes)
    processes[victim].kill()
    for process in processes:
        process.join()
    assert processes[1 - victim].exitcode == 2
    told = (tmp_path / f"{1 - victim}.err").read_text()
    ours = [line for line in told.splitlines() if line.startswith("poad: ")]
    assert len(ours) == 1
    assert "Another process of this training has ended" in ours[0]
    assert "Traceback" not in told
    run = Run.open(path)
    run.load_checkpoint()  # it is whole
    assert len(run.metrics()) - run.checkpoints()[-1] in (0, 1)


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_process_stops_them_all_after_the_same_iteration(
    told: int, tmp_path: Path
) -> None:
    path, command = long_training(tmp_path)
    processes = start_command(2, tmp_path, *command)
    wait_for(path / "metrics.jsonl", 2, processes)
    os.kill(processes[told].pid, signal.SIGTERM)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [130, 130]
    run, summary = Run.open(path), Run.open(path).summary()
    assert summary is not None
    assert summary.status == "stopped"
    assert run.checkpoints()[-1] == len(run.metrics())


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    for words, says in (
        (("--env", name("Chain"), "--run", str(tmp_path / "run")), "neither empty nor a run"),
        (("--randomness", "shared"), "several processes cannot share"),
    ):
        processes = start_command(2, tmp_path, "train", *words)
        processes[0].join()
        while says not in complaints(tmp_path) and processes[1].is_alive():
            time.sleep(0.05)  # the other one may be about to speak
        processes[1].kill()  # as a launcher does
        processes[1].join()
        assert complaints(tmp_path).count(says) == 1


def complaints(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.glob("*.err"))
