"""The examples run, are short, and say what the documentation says they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from poad.cli.main import main
from poad.config import load
from poad.runs.run import Run

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(path: Path) -> None:
    code = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(code) < 30
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_world_of_ones_own_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT / "examples")
    world = "my_world:Doors-v0"
    assert main(["envs", world, "--check"]) == 0
    given = ["--env", world, "--model.name", "tiny-kitchen", "--run", str(tmp_path / "run")]
    assert main(["train", *given, "--quiet"]) == 0
    summary = Run.open(tmp_path / "run").summary()
    assert summary is not None
    assert summary.sampled is not None
    assert summary.sampled.success_interval is not None
    assert summary.sampled.success_interval[0] > 0.8  # a guess wins a third
    capsys.readouterr()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_are_complete(path: Path) -> None:
    import yaml

    from poad import config

    assert yaml.safe_load(path.read_text()) == config.to_dict(load(path))
