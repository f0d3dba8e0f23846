"""Drawings say what the metrics say."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from synthetic_run import metrics, run_of

from poad.config import Config
from poad.display.plots import curve_svg, plot_learning, plot_signal, plot_theory
from poad.runs.run import Run

SVG = "{http://www.w3.org/2000/svg}"
MADE = [metrics(i) for i in range(1, 6)]


def lines(svg: str, dotted: bool = False) -> list[tuple[float, float]]:
    """The points of the curve, or of its dotted part, in the drawing's own units (y grows down)."""
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        style = path.get("style", "")
        if "var(--accent)" in style and ("dasharray" in style) == dotted:
            numbers = [
                float(n) for n in path.get("d", "").replace("M", "").replace("L", "").split()
            ]
            return list(zip(numbers[::2], numbers[1::2], strict=True))
    return []


def test_the_curve_has_a_point_for_every_number_and_rises_as_they_do():
    points = lines(curve_svg(MADE, "explained_variance"))
    assert len(points) == len(MADE)
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)


def test_a_mean_over_100_episodes_is_dotted_before_the_100th():
    def after(each: int) -> list[dict[str, float]]:
        return [{**m, "episodes": each * m["iteration"]} for m in MADE]

    svg = curve_svg(after(40), "success")  # 40 (no number yet), 80, 120, 160, 200
    assert (len(lines(svg, dotted=True)), len(lines(svg))) == (2, 3)
    assert lines(svg, dotted=True)[-1] == lines(svg)[0]
    svg = curve_svg(after(10), "return")
    assert (len(lines(svg, dotted=True)), len(lines(svg))) == (4, 0)
    svg = curve_svg(after(10), "entropy")
    assert (len(lines(svg, dotted=True)), len(lines(svg))) == (0, 5)


def test_a_drawing_scales_with_its_page_and_can_be_read_aloud():
    root = ET.fromstring(curve_svg(MADE, "entropy"))
    assert "viewBox" in root.attrib
    assert {"width", "height"}.isdisjoint(root.attrib)
    assert root.get("role") == "img"
    assert "entropy against environment steps, from 1.04 to 0.542" in root.get("aria-label", "")


@pytest.mark.parametrize("key", ["success", "nowhere"])
def test_without_numbers_there_is_no_drawing(key: str):
    assert curve_svg([metrics(1)], key) == ""
    assert curve_svg([], key) == ""


def test_evaluations_are_marked_even_without_a_curve():
    svg = curve_svg([], "success", limits=(0, 1), dots=[(512, 0.9, 0.8, 0.95)])
    assert svg.count("var(--second)") >= 2


def test_infinite_losses_do_not_break_the_drawing():
    broken = [{**m, "value_loss": math.inf if i else 1.0} for i, m in enumerate(MADE)]
    assert len(lines(curve_svg(broken, "value_loss"))) == 1


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
