"""The examples run, are short, and say what the documentation says they do."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from forked import Forked, poad

from poad.cli.main import main
from poad.config import load, preset, read_yaml, to_dict
from poad.runs.run import Run

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(path: Path) -> None:
    code = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(code) < 30
    done = Forked(runpy.run_path, str(path), None, "__main__")
    assert done.wait() == 0, done.stderr


def test_a_world_of_ones_own_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT / "examples")
    world = "my_world:Doors-v0"
    assert main(["envs", world, "--check"]) == 0
    given = ["--env", world, "--model.name", "tiny-kitchen", "--run", str(tmp_path / "run")]
    assert main(["train", *given, "--steps", "8192", "--quiet"]) == 0
    summary = Run.open(tmp_path / "run").summary()
    assert summary is not None
    assert summary.sampled is not None
    assert summary.sampled.success_interval is not None
    assert summary.sampled.success_interval[0] > 0.8  # a guess wins a third
    capsys.readouterr()


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """A directory of one's own that holds nothing but the method."""
    shutil.copy(ROOT / "examples" / "my_method.py", tmp_path)
    return tmp_path


TD0 = "my_method:TD0"
FEW = ["--steps", "64", "--streams", "4", "--horizon", "8", "--eval.episodes", "2"]


def test_a_method_of_ones_own_trains_resumes_and_evaluates(apart: Path) -> None:
    (apart / "td0.yaml").write_text(f"credit: {{method: '{TD0}'}}\n", encoding="utf-8")
    done = poad("train", "--config", "td0.yaml", *FEW, folder=apart)
    assert done.wait() == 0, done.stderr
    (run,) = (apart / "runs").iterdir()
    assert run.name == "tomato-salad-my_method.TD0-seed0"  # no colon, which Windows refuses
    more = poad("train", "--resume", str(run), "--steps", "96", "--quiet", folder=apart)
    assert more.wait() == 0, more.stderr
    seen = poad("eval", str(run), "--episodes", "2", "--quiet", folder=apart)
    assert seen.wait() == 0, seen.stderr
    assert Run.open(run).config.credit.method == TD0
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["env_steps"] for line in lines] == [32, 64, 96]
    moved = poad("eval", run.name, "--quiet", folder=apart / "runs")
    assert moved.wait() == 2
    assert "Cannot import the method 'my_method:TD0'" in moved.stderr


def test_a_method_of_ones_own_takes_part_in_a_study(apart: Path) -> None:
    (apart / "mine.yaml").write_text(
        f"""
name: mine
question: Does a trace help?
worlds: {{salad: {{env: poad/TomatoSalad-v0, steps: 64}}}}
methods: {{poad: {{}}, td0: {{credit: {{method: "{TD0}"}}}}}}
seeds: [0]
panel: {{episodes: 2, points: 1}}
""",
        encoding="utf-8",
    )
    done = poad("study", "mine.yaml", "--smoke", "--quiet", folder=apart)
    assert done.wait() == 0, done.stderr
    results = (apart / "runs" / "studies" / "mine-smoke" / "results.json").read_text()
    assert json.loads(results)["missing"] == []
    wrong = (apart / "mine.yaml").read_text().replace("TD0", "TD1")
    (apart / "wrong.yaml").write_text(wrong, encoding="utf-8")
    refused = poad("study", "wrong.yaml", "--smoke", "--quiet", folder=apart)
    assert refused.wait() == 2
    assert "Did you mean 'TD0'?" in refused.stderr


def settings_in(data: Mapping[str, Any], whole: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that repeat what stands in the whole configuration, by dotted name."""
    found = []
    for key, value in data.items():
        if isinstance(value, Mapping) and key != "env_args":
            found += settings_in(value, whole[key], f"{prefix}{key}.")
        elif value == whole[key]:
            found.append(f"{prefix}{key}")
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_shipped_configuration_says_what_it_is_for_and_only_what_differs(path: Path) -> None:
    load(path)  # it can be used
    assert path.read_text(encoding="utf-8").startswith("# ")
    data = dict(read_yaml(path))
    base = preset(data.pop("preset", "plain"))
    assert "env" in data  # the world is always named, even the default one
    assert set(settings_in(data, to_dict(base))) <= {"env"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_printed_configuration_is_whole_and_loads_to_the_same(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", str(path)]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(printed) == load(path)
    assert read_yaml(printed) == to_dict(load(path))
