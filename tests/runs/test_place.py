"""A run that is killed while it is created is a run, or its place is free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGINNER = """
import os, sys, warnings
from pathlib import Path

from poad.config import Config
from poad.errors import RunError
from poad.runs.place import is_unborn
from poad.runs.run import Run

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def create(path, seed, dies_at):
    "In a process of its own, which dies before one of its changes to the directory."
    child, changes = os.fork(), 0
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    def watch(event, args):
        nonlocal changes
        if event in CHANGES and str(path) in str(args[0]):
            changes += 1
            if changes == dies_at:
                os._exit(9)

    sys.addaudithook(watch)
    with warnings.catch_warnings(action="ignore"):
        Run.create(path, Config(seed=seed)).close()
    os._exit(0)


root, again, dies_at = Path(sys.argv[1]), sys.argv[2] == "again", 1
while True:
    path = root / str(dies_at)
    if again:  # in the place of a run that never trained and had other settings
        Run.create(path, Config()).close()
    died = create(path, 1, dies_at)
    if (path / "config.yaml").exists():
        assert Run.open(path).config.seed in (0, 1), dies_at
    else:
        assert not path.exists() or is_unborn(path), dies_at
    assert not create(path, 2, 0)
    assert Run.open(path).config.seed == 2, dies_at
    if not died:
        break
    dies_at += 1
print(dies_at)
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize("place", ["free", "again"])
def test_a_run_that_is_killed_while_it_is_created_can_begin_again(tmp_path: Path, place: str):
    command = [sys.executable, "-c", BEGINNER, str(tmp_path), place]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 10  # so many instants were tried
