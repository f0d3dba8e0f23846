"""Worlds an agent was not trained in: every agent in every world, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poad.cli.main import main
from poad.runs.run import Run

SMALL = ("--steps", "64", "--streams", "4", "--horizon", "16", "--eval.episodes", "0", "--quiet")
WORLDS = ("poad/Cheese-v0", "poad/Laundry-v0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    paths = {method: folder / method for method in ("poad", "ntpo")}
    for method, path in paths.items():
        given = ("--env", "poad/FoodPreparation-v0", "--credit.method", method)
        assert main(["train", "--run", str(path), *given, *SMALL]) == 0
    return paths


def test_every_agent_is_examined_in_every_world(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--beside", str(runs["ntpo"]), "--worlds", *WORLDS, "--episodes", "3"]
    assert main(["generalize", str(runs["poad"]), *given]) == 0
    shown = capsys.readouterr().out
    saved = json.loads((runs["poad"] / "generalization.json").read_text())["results"]
    agents = ("poad, seed 0", "ntpo, seed 0", "untrained")
    cells = {(r["agent"], r["mode"], r["world"]): r for r in saved}
    modes = ("sampled", "greedy")
    assert set(cells) == {(a, m, w) for a in agents for m in modes for w in WORLDS}
    for row in saved:
        assert row["episodes"] == 3
        low, high = row["success_interval"]
        assert low <= row["success_rate"] <= high
        assert row["env_steps"] == (0 if row["agent"] == "untrained" else 64)
    table = (runs["poad"] / "generalization.md").read_text()
    for word in (*agents, "Cheese", "Laundry", "mean"):
        assert word in table
    assert "Laundry" in shown
    # The run keeps its own episodes there; the others' stay as they were.
    kept = [r.env for r in Run.open(runs["poad"]).episodes()]
    assert sorted(kept) == sorted(WORLDS * 6)
    assert not list(Run.open(runs["ntpo"]).episodes())


def test_worlds_that_speak_otherwise_are_said_to_do_so(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generalize", str(runs["poad"]), "--episodes", "1", "--worlds"]
    assert main([*given, "poad/TomatoSalad-v0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "none of these worlds uses its vocabulary" in shown
    assert main([*given, "poad/TomatoSalad-v0", "poad/Cheese-v0"]) == 0
    assert "vocabulary" not in capsys.readouterr().out


def test_an_unknown_world_is_refused_before_anything_is_played(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generalize", str(runs["poad"]), "--worlds", "poad/Chess-v0"]) == 2
    assert "poad/Chess-v0" in capsys.readouterr().err
