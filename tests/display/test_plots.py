"""Drawings say what the metrics say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from synthetic_run import metrics, run_of

from poad.config import Config
from poad.display.plots import (
    MIN_EPISODES,
    _settled,
    plot_learning,
    plot_signal,
    plot_theory,
)
from poad.runs.run import Run


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_several_seeds_and_methods_become_one_figure(ending: str, tmp_path: Path):
    runs = [run_of(tmp_path / f"poad{i}", seed=i, iterations=4, episodes=0) for i in range(3)]
    runs.append(run_of(tmp_path / "ntpo", method="ntpo", iterations=6, episodes=0))
    path = plot_learning(runs, tmp_path / f"learning.{ending}")
    content = path.read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG")
    else:
        text = content.decode()
        assert "poad, 3 seeds" in text
        assert "ntpo, 1 seed" in text
        assert "poad/TomatoSalad-v0: success" in text


def test_every_world_gets_its_row(tmp_path: Path):
    runs = [run_of(tmp_path / "first", iterations=3, episodes=0)]
    other = Run.create(tmp_path / "second", Config(env="a_$world$"))
    for i in range(1, 4):
        other.log(metrics(i))
    text = plot_learning([*runs, other], tmp_path / "learning.svg").read_text()
    assert ">a_$world$: return</text>" in text  # as it is, not as a formula
    assert "poad/TomatoSalad-v0: return" in text


def test_other_metrics_can_be_asked_for(tmp_path: Path):
    run = run_of(tmp_path / "run", iterations=3, episodes=0)
    text = plot_learning([run], tmp_path / "learning.svg", keys=("entropy",)).read_text()
    assert "poad/TomatoSalad-v0: entropy" in text
    assert "success" not in text


def test_a_curve_begins_when_enough_episodes_have_ended():
    counts = (0.0, MIN_EPISODES - 1.0, float(MIN_EPISODES), 500.0)
    rows = [{"episodes": count, "success": 1.0} for count in counts]
    assert [row["episodes"] for row in _settled(rows)] == [MIN_EPISODES, 500]
    assert _settled(rows[:2]) == rows[:2]  # a short run is drawn all the same


def test_no_runs_make_no_figure(tmp_path: Path):
    with pytest.raises(ValueError, match="no run to draw"):
        plot_learning([], tmp_path / "learning.svg")


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_theory_is_drawn_with_every_gamma_and_sign(ending: str, tmp_path: Path):
    gaps = {1.0: ([1, 2], [0.0, 0.0], [0.0, 0.0]), 0.9: ([1, 2], [0.0, 0.1], [0.0, 0.1])}
    shares = {"> 0": [0.1, math.nan, 0.4], "< 0": [0.3, 0.2, 0.1]}
    errors = {"poad": ([64, 256], [0.2, 0.1]), "ntpo": ([64, 256], [0.4, 0.2])}
    path = plot_theory(gaps, shares, 0.9, errors, tmp_path / f"theory.{ending}")
    assert path.stat().st_size > 5000
    if ending == "svg":
        text = path.read_text()
        told = ("1", "0.9", "values &gt; 0", "poad", "ntpo")
        assert all(f">{label}</text>" in text for label in told)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_signal_is_drawn_with_every_panel_and_error(ending: str, tmp_path: Path):
    curves = {"0": ([1.0, 0.5, 0.3], [2.0, 8.0, 20.0]), "0.5": ([1.0, 0.5, 0.3], [1.8, 3.0, 2.5])}
    path = plot_signal({"by token": curves, "by bit": curves}, tmp_path / f"signal.{ending}")
    assert path.stat().st_size > 5000
    if ending == "svg":
        text = path.read_text()
        told = ("by token", "by bit", "0.5", "turn-level PPO", "error of the critic")
        assert all(f">{label}</text>" in text for label in told)
