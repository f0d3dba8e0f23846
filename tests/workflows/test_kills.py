"""A training that is killed again and again ends as one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_worlds import settings

from poad.config import dump
from poad.runs import Run
from poad.study.workers import PRELOADED, Task, _run_task
from poad.workflows import train_run

KILLS = 20


def untimed(record: Any) -> Any:
    """A record without what a clock said."""
    if isinstance(record, dict):
        timed = ("seconds", "per_second", "plan", "seal")
        return {k: untimed(v) for k, v in record.items() if not k.endswith(timed)}
    return record


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
        "Novel", steps=450, checkpoint_every=1, eval={"episodes": 6, "every": 7, "streams": 3}
    )
    with warnings.catch_warnings(action="ignore"):
        train_run(config, tmp_path / "whole", quiet=True)
    whole = Run.open(tmp_path / "whole")

    task = Task(tmp_path / "killed")
    task.sibling(".yaml").write_text(dump(whole.config))
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    instants, kills = random.Random(1), 0
    while not task.trained:
        process = context.Process(target=_run_task, args=(task,))
        process.start()
        process.join(instants.uniform(0.0, 1.2) if kills < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
    assert kills == KILLS
    assert_same_outcome(Run.open(task.path), whole)
