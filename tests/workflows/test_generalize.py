"""Evaluation in unseen worlds: every agent plays in every world, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_every_agent_is_evaluated_in_every_world(
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
    # The run records its own episodes; those of the others stay as they were.
    kept = [r.env for r in Run.open(runs["poad"]).episodes()]
    assert sorted(kept) == sorted(WORLDS * 6)
    assert not list(Run.open(runs["ntpo"]).episodes())


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_worlds_with_other_words_are_pointed_out(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generalize", str(runs["poad"]), "--episodes", "1", "--worlds"]
    assert main([*given, "poad/TomatoSalad-v0"]) == 0
    assert "None of these worlds uses the same words" in words(capsys)
    assert main([*given, "poad/TomatoSalad-v0", "poad/Cheese-v0"]) == 0
    assert "same words" not in words(capsys)


def test_earlier_results_are_kept(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generalize", str(runs["ntpo"]), "--episodes", "1", "--worlds"]
    pages = []
    for world in ("poad/Cheese-v0", "poad/Laundry-v0", "poad/Pizza-v0"):
        assert main([*given, world]) == 0
        pages.append((runs["ntpo"] / "generalization.json").read_text())
        told = words(capsys)
    assert "Earlier results are now in generalization-2.json" in told
    for number, page in enumerate(pages[:2], 1):
        assert (runs["ntpo"] / f"generalization-{number}.json").read_text() == page
        assert (runs["ntpo"] / f"generalization-{number}.md").exists()


WRECK = """
from poad.envs import TextAdapter


class Wreck(TextAdapter):
    def begin(self, seed):
        self.turns, self.leaks = 0, seed % 2 == 0
        return "You are at sea. Now", ("sail on", "sail back")

    def act(self, action):
        self.turns += 1
        if self.leaks and self.turns == 2:
            raise RuntimeError(f"the ship sank behind {action}")
        return "You are at sea. Now", ("sail on", "sail back"), 0.0, self.turns == 3, None
"""


@pytest.mark.filterwarnings("always:object")
def test_what_is_wrong_with_a_world_is_said_once(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "wreck.py").write_text(WRECK)
    monkeypatch.syspath_prepend(tmp_path)
    given = ["--worlds", "object:wreck:Wreck", "poad/Cheese-v0", "--episodes", "4", "--trust-code"]
    assert main(["generalize", str(runs["poad"]), *given]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("the ship sank") == 1
    assert "object:wreck:Wreck failed in 2 of 4 episodes" in shown.err
    assert "object:wreck:Wreck failed in 8 of 16 episodes altogether." in shown.out
    assert "Cheese-v0 failed" not in shown.out + shown.err


def test_an_unknown_world_is_refused_before_an_episode_is_played(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generalize", str(runs["poad"]), "--worlds", "poad/Chess-v0"]) == 2
    assert "poad/Chess-v0" in capsys.readouterr().err
