"""A training that is killed again and again ends as one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_at_work import start_command
from tiny_worlds import settings

from poad.config import dump
from poad.runs import Run
from poad.study.workers import Task, _run_task
from poad.workflows import train_run

KILLS = 20
RANK_KILLS = 4


def untimed(record: Any) -> Any:
    """A record without what a clock said."""
    if isinstance(record, dict):
        timed = ("seconds", "per_second", "plan", "seal")
        return {k: untimed(v) for k, v in record.items() if not k.endswith(timed)}
    return record


def wait_for_lines(file: Path, count: int, process: Any) -> None:
    """Wait until a file has so many more lines, or the process has ended."""
    known = count_lines(file)
    while process.exitcode is None and count_lines(file) < known + count:
        time.sleep(0.01)


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def assert_same_outcome(found: Run, expected: Run) -> None:
    for name in ("metrics.jsonl", "episodes.jsonl"):
        lines = [
            [untimed(json.loads(line)) for line in (run.path / name).read_text().splitlines()]
            for run in (found, expected)
        ]
        assert lines[0] == lines[1]
    outcomes = [
        untimed(json.loads((r.path / "summary.json").read_text())) for r in (found, expected)
    ]
    assert untimed(outcomes[0]) == untimed(outcomes[1])
    (tensors, state), (expected_tensors, expected_state) = (
        run.load_checkpoint() for run in (found, expected)
    )
    assert untimed(state) == untimed(expected_state)
    for group, named in expected_tensors.items():
        assert tensors[group].keys() == named.keys()
        assert all(torch.equal(tensors[group][name], tensor) for name, tensor in named.items())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_training_killed_at_random_instants_ends_bit_for_bit_as_one_that_was_not(
    tmp_path: Path,
) -> None:
    config = settings(
        "Novel", steps=900, checkpoint_every=1, eval={"episodes": 6, "every": 7, "streams": 3}
    )
    begin = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        train_run(config, tmp_path / "whole", quiet=True)
    took = time.perf_counter() - begin
    whole = Run.open(tmp_path / "whole")
    most = len(whole.metrics()) // KILLS  # iterations between two kills, so that each finds some
    assert most > 1

    task = Task(tmp_path / "killed")
    task.sibling(".yaml").write_text(dump(whole.config))
    context: Any = multiprocessing.get_context("forkserver")
    instants, kills = random.Random(1), 0
    while not task.trained:
        process = context.Process(target=_run_task, args=(task,))
        process.start()
        if kills < KILLS:
            wait_for_lines(task.path / "metrics.jsonl", instants.randrange(most), process)
            process.join(instants.uniform(0.0, took / KILLS / 2))
        else:
            process.join()
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:  # not killed, so it has finished: what cannot go on would be tried forever
            assert process.exitcode == 0, task.sibling(".log").read_text()[-2000:]
    assert kills == KILLS
    assert_same_outcome(Run.open(task.path), whole)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_two_processes_of_which_one_is_killed_lose_nothing(tmp_path: Path) -> None:
    """It goes on in two processes after every kill, and its metrics are the same to the last bit
    as those of two that were left alone."""
    config = settings("Novel", steps=450, checkpoint_every=1, randomness="stream")
    (tmp_path / "run.yaml").write_text(dump(config))
    words = ("train", "--quiet", "--config", str(tmp_path / "run.yaml"), "--run")
    for process in start_command(2, tmp_path, *words, str(tmp_path / "whole")):
        process.join()
    instants, kills, path = random.Random(2), 0, tmp_path / "killed"
    resume = ("train", "--quiet", "--resume", str(path))
    while not (path / "summary.json").exists():
        begun = (path / "config.yaml").exists()
        processes = start_command(2, tmp_path, *(resume if begun else (*words, str(path))))
        if kills < RANK_KILLS:
            wait_for_lines(path / "metrics.jsonl", 1, processes[0])
            time.sleep(instants.uniform(0, 0.5))
        victim = processes[instants.randrange(2)]
        killed = kills < RANK_KILLS and victim.exitcode is None
        if killed:
            victim.kill()
            kills += 1
        for process in processes:
            process.join()
        assert killed or all(process.exitcode == 0 for process in processes)
    assert kills == RANK_KILLS
    assert_same_outcome(Run.open(path), Run.open(tmp_path / "whole"))
