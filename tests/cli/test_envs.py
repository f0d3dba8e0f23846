"""`poad envs`, and worlds of other projects wherever a command takes a world's name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

import poad.cli.envs
from poad.cli.main import main
from poad.cli.train import _short_name
from poad.runs import Run
from poad.study.comparable import world_source

WORLDS = """
import itertools

class Corridor:
    '''Walk to the end of a corridor.'''
    def __init__(self, rooms: int = 2):
        self.rooms = rooms
    def reset(self, seed=None):
        self.at, self.turns = 0, 0
        return self.look(), {"admissible_actions": ["walk on", "wait"]}
    def step(self, action):
        self.at += action == "walk on"
        self.turns += 1
        over = self.at == self.rooms
        info = {"admissible_actions": ["walk on", "wait"]}
        return self.look(), float(over), over, self.turns == 6 and not over, info
    def look(self):
        return f"You are in room {self.at}. You should"

count = itertools.count()

class Fickle(Corridor):
    def look(self):
        return f"You are in room {self.at}{' again' if next(count) > 9 else ''}. You should"

class Endless(Corridor):
    def step(self, action):
        prompt, *_, info = super().step("wait")
        self.turns = 0
        return prompt, 0.0, False, False, info

class Stop:
    def reset(self):
        return "Stop."
    def stop(self, politely: bool = True) -> str:
        self.done = True
        return "Stopped."
    def get_reward(self) -> float:
        return 1.0
"""
FEW = ["--steps", "24", "--streams", "2", "--horizon", "4", "--eval.episodes", "2", "--quiet"]
MODEL = ["--model.name", "tiny-kitchen"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory, which holds a module with worlds."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "memory"))
    (tmp_path / "my_corridors.py").write_text(WORLDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "my_corridors", raising=False)
    return tmp_path


def test_schemes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    shown = capsys.readouterr().out
    for scheme in ("gymnasium", "object", "openenv", "tools", "textworld", "babyai", "textarena"):
        assert f"\n{scheme}:" in shown


def test_a_manual_is_that_of_the_world_and_then_that_of_the_scheme(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["envs", "object:my_corridors:Corridor", "--env-args", "rooms=3"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("Walk to the end") < shown.index("As a text world")
    assert "max_steps: int | None = 200" in shown
    assert "You are in room 0. You should" in shown
    assert main(["envs", "gymnasium:FrozenLake-v1"]) == 0
    assert "row 1, column 1" in capsys.readouterr().out


def test_a_check_takes_its_size_and_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poad.cli.envs, "PAUSE", 0.0)
    world = "object:my_corridors:Corridor"
    assert main(["envs", world, "--check", "--episodes", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{world} keeps the contract of text worlds.\n"
    lines = shown.err.splitlines()
    assert lines[0] == "checking: 0 of 3 episodes played, turn 0"
    assert lines[-1].startswith("checking: 2 of 3 episodes played, turn ")
    endless = ["envs", "object:my_corridors:Endless", "--env-args", "max_steps=null", "--check"]
    assert main([*endless, "--episodes", "1", "--max-turns", "7"]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "no episode ended within 7 turns" in shown
    assert "turn 8" not in shown


def test_a_check_says_where_two_runs_first_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "object:my_corridors:Fickle", "--check"]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "two runs first differ after action 2 ('wait'), seed 0, turn 2: the prompt has" in shown
    assert "'You are in room 0. You should' the first time" in shown
    assert "'You are in room 0 again. You should' the second time" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("envs", "--episodes", "0"), "--episodes 0: there must be at least 1."),
        (("envs", "--max-turns", "0"), "--max-turns 0: there must be at least 1."),
        (("envs", "--check"), "--check needs a world"),
        (("envs", "babyia:Level"), "Did you mean 'babyai:'?"),
        (("train", "--env", "object:my_corridors:Coridor"), "Did you mean 'Corridor'"),
        (("play", "tools:my_corridors"), "write tools:MODULE:CLASS"),
        (("train", "--env", "textworld:none.z8"), "textworld"),
        (("plan", "--env", "openenv:http://127.0.0.1:9"), "127.0.0.1:9"),
        (
            ("train", "--env-args", "choices=[up],[down]"),
            """Texts in brackets need quotes: 'choices=["[a]", "[b]"]'.""",
        ),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("poad/TomatoSalad-v0", "tomato-salad"),
        ("lift:Lift-v0", "lift"),
        ("gymnasium:FrozenLake-v1", "frozen-lake-v1"),
        ("gymnasium:my_module:My-v0", "my"),
        ("object:pkg.my_module:MyWorld", "my-world"),
        ("tools:my_module:Till", "till"),
        ("openenv:http://localhost:8000", "localhost-8000"),
        ("openenv:localhost:8000/", "localhost-8000"),
        ("openenv:https://some.host/envs/echo/ws", "some-host-envs-echo-ws"),
        ("textworld:games/coin.z8", "coin"),
        ("textworld:games/*.z8", "textworld"),
        ("textworld:/data/alfred/**/game.tw-pddl", "game"),
        ("babyai:BabyAI-GoToRedBallNoDists-v0", "baby-ai-go-to-red-ball-no-dists"),
        ("textarena:Sokoban-v0", "sokoban"),
    ],
)
def test_a_run_has_a_name_that_can_be_typed(env: str, name: str) -> None:
    assert _short_name(env) == name


def test_a_world_of_a_scheme_is_trained_evaluated_played_and_gone_on_with(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = ["--env", "object:my_corridors:Corridor", "--env-args", "rooms=1"]
    assert main(["plan", *env, *MODEL, "--flops", "1e9"]) == 0
    assert main(["train", *env, *MODEL, *FEW]) == 0
    path = folder / "runs" / "corridor-poad-seed0"
    settings = yaml.safe_load((path / "config.yaml").read_text())
    assert (settings["env"], settings["env_args"]) == (env[1], {"rooms": 1})
    assert main(["eval", str(path), "--episodes", "2", "--quiet"]) == 0
    other = ["--env", "object:my_corridors:Corridor", "--env-args", "rooms=2", "max_steps=3"]
    assert main(["eval", str(path), "--episodes", "2", "--quiet", *other]) == 0
    with Run.open(path) as run:
        played = [(record.env, record.env_args) for record in run.episodes()]
    assert played[0] == ("object:my_corridors:Corridor", {"rooms": 1})
    assert played[-1] == ("object:my_corridors:Corridor", {"rooms": 2, "max_steps": 3})
    assert main(["play", str(path)]) == 0
    assert "You are in room 0." in capsys.readouterr().out
    assert main(["train", "--resume", str(path), "--steps", "32", "--quiet"]) == 0
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["env_steps"] == 32
    assert main(["report", str(path)]) == 0
    answers = iter(["walk on", "1"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert main(["play", "object:my_corridors:Corridor", "--human"]) == 0
    assert "Success" in capsys.readouterr().out


def test_a_study_takes_worlds_of_schemes(folder: Path) -> None:
    small = {"streams": 2, "horizon": 4, "model": {"name": "tiny-kitchen"}}
    lake = {"env": "gymnasium:FrozenLake-v1", "env_args": {"is_slippery": False}}
    study = {
        "name": "foreign",
        "worlds": {
            "lake": {"env": lake.pop("env"), "steps": 8, "settings": {**small, **lake}},
            "hall": {"env": "object:my_corridors:Corridor", "steps": 8, "settings": small},
        },
        "methods": {"poad": {}},
        "seeds": [0],
        "panel": {"episodes": 2, "points": 1},
    }
    Path("foreign.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", "foreign.yaml", "--jobs", "1", "--quiet"]) == 0
    (results,) = Path("runs").rglob("results.json")
    worlds = json.loads(results.read_text())["identity"]["worlds"]
    assert worlds["lake"]["env"] == "gymnasium:FrozenLake-v1"
    assert worlds["lake"]["env_args"] == {"is_slippery": False}
    assert world_source("object:my_corridors:Corridor", {}) == worlds["hall"]["source"]
    with (folder / "my_corridors.py").open("a") as file:
        file.write("# changed")
    assert world_source("object:my_corridors:Corridor", {}) != worlds["hall"]["source"]
