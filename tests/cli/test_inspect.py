"""`poad inspect` as a stranger uses it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import urllib.request
from pathlib import Path

import pytest
from changed_run import run_of
from forked import poad
from tiny_worlds import settings

from poad.cli.main import main

KITCHEN = "poad/TomatoSalad-v0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cook"
    return run_of(folder, settings(KITCHEN, env_args={"max_steps": 8})).path


def data_of(file: Path) -> dict:
    page = file.read_text(encoding="utf-8")
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_a_run_becomes_a_page_in_its_directory(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(run), "--episodes", "3"]) == 0
    told = capsys.readouterr().out
    assert "checkpoint 1: 3 episodes" in told
    assert f"The page is {run / 'inspect.html'}" in told
    data = data_of(run / "inspect.html")
    assert len(data["episodes"]) == 3
    assert data["before"] == "the untrained model"


def test_two_runs_stand_side_by_side_and_one_alone_does_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page, copy = tmp_path / "two.html", tmp_path / run.name
    shutil.copytree(run, copy)
    assert main(["inspect", str(run), str(copy), "--episodes", "2", "--to", str(page)]) == 0
    data = data_of(page)
    assert [(e["seed"], e["agent"]) for e in data["episodes"]] == [
        (seed, agent) for seed in (1_000_000, 1_000_001) for agent in (0, 1)
    ]
    names = [f"{each.parent.name}/{each.name}" for each in (run, copy)]
    assert data["agents"] == [f"{name}, checkpoint 1" for name in names]
    assert data["notes"][0] == f"Sampled episodes of {' and '.join(names)}."
    assert main(["inspect", str(run), "--checkpoint", "1", "--against", "1"]) == 2
    assert "Name two that differ" in capsys.readouterr().err


def test_a_trace_becomes_a_page_next_to_it(tmp_path: Path):
    file = tmp_path / "some.jsonl"
    file.write_text('{"token_ids": [1, 2], "turn_ids": [0, 1], "rewards": [0, 1]}\n')
    assert main(["inspect", str(file)]) == 0
    assert len(data_of(tmp_path / "some.html")["episodes"][0]["turns"]) == 2


def test_without_a_browser_the_address_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(asked.append(url)))
    file = tmp_path / "some.jsonl"
    file.write_text('{"token_ids": [1], "turn_ids": [0], "rewards": [1]}\n')
    assert main(["inspect", str(file), "--open"]) == 0
    assert asked == [(tmp_path / "some.html").as_uri()]
    assert f"Open {asked[0]} yourself" in capsys.readouterr().out


def test_the_terminal_shows_the_first_episode(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(run), "--terminal", "--seed", "5", "--greedy"]) == 0
    told = capsys.readouterr().out
    assert "checkpoint 1, seed 5" in told
    assert "turn_ppo" in told
    assert "return" in told


def test_the_page_is_served_until_ctrl_c(run: Path):
    served = poad("inspect", str(run), "--episodes", "1", "--serve", "0")
    match = re.match(r"http://127\.0\.0\.1:\d+/", served.line(after="http"))
    assert match
    with urllib.request.urlopen(match[0]) as answer:
        assert b"<!doctype html>" in answer.read()
    served.send_signal(signal.SIGINT)
    assert served.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--against", "3"], "has no checkpoint 3; it has 1."),
        (["--reference", "3"], "has no checkpoint 3; it has 1."),
        (["--reference", "1", "--alone"], "--alone compares with no reference"),
        (["--checkpoint", "7"], "has no checkpoint 7"),
        (["--against", "1", "--untrained"], "--against compares two checkpoints"),
        (["--terminal", "--open"], "--terminal writes no page"),
        (["--terminal", "--serve", "0"], "--terminal writes no page"),
        (["--serve", "0", "--to", "x.html"], "--serve writes no file"),
        (["--serve", "99999"], "Port 99999 does not exist"),
        (["--checkpoint", "best"], "eval.every"),
        (["--checkpoint", "1", "--untrained"], "--untrained uses no checkpoint"),
        (["--episodes", "0"], "there must be at least 1"),
        (["--tokenizer", "x"], "--tokenizer is for files"),
        (["--to", "/no/such/place/page.html"], "Cannot write /no/such/place/page.html"),
    ],
)
def test_mistakes_are_explained(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    assert main(["inspect", str(run), "--episodes", "1", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_what_cannot_be_compared_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "some.jsonl"
    file.write_text("{}\n")
    assert main(["inspect", str(run), str(file)]) == 2
    assert "both must be runs" in capsys.readouterr().err
    assert main(["inspect", str(file), "--greedy"]) == 2
    assert "were played already" in capsys.readouterr().err
    assert main(["inspect", str(file), "--checkpoint", "best"]) == 2
    assert "Name one by its number" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
