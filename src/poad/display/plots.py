"""Drawings: several seeds in one figure, studies, and the theory.

matplotlib is imported inside the functions here and nowhere else, because it is slow to import.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from poad.display.clean import printable
from poad.runs import Run
from poad.stats import median_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_EPISODES = 30
"""Means over fewer finished episodes are not shown: the first to finish are the short, successful
ones, so their mean would flatter the agent."""

# Colours that stand for those of the page, which follow its light or dark theme.
_INK, _GRID = "#010101", "#020202"
_GREYS = ("#555555", "#e6e6e6")
"""Ink and grid of a drawing in a file of its own."""
_THEME = {_INK: "currentColor", _GRID: "var(--grid)"}


def _inline(svg: str, label: str) -> str:
    """Convert a drawing to a part of a page, with its colours and a label to read aloud."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # ids must be unique within the page
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(printable(label))}"', 1)
    for drawn, shown in _THEME.items():
        svg = svg.replace(drawn, shown)
    return svg


def _style(axes: Axes, ink: str, grid: str, ticks: int = 5) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.grid(color=grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(ticks))
    axes.yaxis.set_major_locator(MaxNLocator(ticks))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def plot_learning(
    runs: Sequence[Run], path: str | Path, keys: Sequence[str] = ("success", "return")
) -> Path:
    """Draw the learning curves of several runs: a panel for each world and metric.

    Runs of the same world and method are treated as seeds. Their median is drawn as a line, and the
    range from their lowest to their highest as a band.

    Args:
        runs: at least one.
        path: the file to write; its ending (``.svg``, ``.png``, ``.pdf``) decides the format.
        keys: metrics; ``eval_success`` and ``eval_return`` exist where ``eval.every`` was set.

    Raises:
        ValueError: there are no runs, or the runs of a group share no range of steps.
    """
    if not runs:
        raise ValueError("There is no run to draw; give at least one.")
    worlds = list(dict.fromkeys(run.config.env for run in runs))
    panels = [(world, key) for world in worlds for key in keys]
    columns = len(keys) if len(keys) > 1 else min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _figure("poad", (4 * columns, 2.6 * rows)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        titles = [f"{world}: {key}" for world, key in panels]
        for axes, (world, key) in zip(_titled(grid, titles, *_GREYS), panels, strict=True):
            _bands(axes, [run for run in runs if run.config.env == world], key)
            if "success" in key:
                axes.set_ylim(-0.02, 1.02)
        for axes in grid[-1]:
            axes.set_xlabel("environment steps", color=_GREYS[0])
        return _save(figure, path)


def _settled(rows: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """Leave out iterations when few episodes had ended: the first to end are the short ones."""
    return [row for row in rows if row.get("episodes", MIN_EPISODES) >= MIN_EPISODES] or rows


def _bands(axes: Axes, runs: Sequence[Run], key: str) -> None:
    for number, method in enumerate(dict.fromkeys(run.config.credit.method for run in runs)):
        seeds = [_settled(run.metrics()) for run in runs if run.config.credit.method == method]
        curves = [
            ([m["env_steps"] for m in seed], [m.get(key, math.nan) for m in seed]) for seed in seeds
        ]
        x, middle, low, high = median_band(curves)
        count = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
        axes.plot(x, middle, lw=1.8, color=f"C{number}", label=f"{method}, {count}")
        axes.fill_between(x, low, high, alpha=0.2, color=f"C{number}", lw=0)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def plot_theory(
    gaps: Mapping[float, tuple[Sequence[int], Sequence[float], Sequence[float]]],
    shares: Mapping[str, Sequence[float]],
    gamma_token: float,
    errors: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    path: str | Path,
) -> Path:
    """Draw the effects of naive token-level discounting, and the error of sampled credit.

    Args:
        gaps: by γ_w: lengths, the measured gap (dots) and its closed form (line).
        shares: by the sign of the values: the share of states whose greedy action is not optimal,
            by the length of the optimal action, from 1 token; NaN where there is no such state.
        gamma_token: the γ_w of the shares.
        errors: by method: numbers of episodes, and the error of means over that many.
        path: the file to write; its ending (``.svg``, ``.png``, ``.pdf``) decides the format.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    with _figure("poad", (11.5, 2.9)) as figure:
        left, right, last = figure.subplots(1, 3, width_ratios=(5, 4, 4))
        gap = r"tokens $n$ (dots: measured, lines: $1-\gamma_w^{n-1}$)"
        differs = rf"States where NTPO acts differently, $\gamma_w={gamma_token:g}$"
        for axes, title, label in (
            (left, "1 − Q(first token) / Q(action) under NTPO", gap),
            (right, differs, "tokens of the optimal action"),
            (last, "Error of sampled credit", "episodes"),
        ):
            _style(axes, *_GREYS)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel(label, color="#555")
        for number, (gamma, (length, measured, closed)) in enumerate(gaps.items()):
            color, every = f"C{number}", max(1, len(length) // 25)
            left.plot(length, closed, lw=1.2, color=color, label=f"{gamma:g}")
            left.plot(length[::every], measured[::every], "o", ms=3, color=color)
        left.legend(frameon=False, fontsize=8, title=r"$\gamma_w$", loc="center right")
        for number, (sign, heights) in enumerate(shares.items()):
            lengths, color = range(1, len(heights) + 1), f"C{3 * number}"
            right.plot(lengths, heights, "o-", ms=4, color=color, label=f"values {sign}")
        right.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        right.set_ylim(0, 1)
        right.legend(frameon=False, fontsize=8)
        for number, (method, (episodes, heights)) in enumerate(errors.items()):
            last.loglog(episodes, heights, "o-", ms=3, lw=1, color=f"C{number}", label=method)
        for episodes, heights in list(errors.values())[:1]:
            root = [heights[0] * math.sqrt(episodes[0] / n) for n in episodes]
            last.loglog(episodes, root, ":", lw=1.2, color="#777777", label=r"$1/\sqrt{N}$")
            last.set_xticks(episodes, [f"{n:,}" for n in episodes])
        last.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        last.yaxis.set_major_formatter("{x:g}")
        last.minorticks_off()
        last.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return _save(figure, path)


def plot_signal(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], path: str | Path
) -> Path:
    """Draw how much signal the gradient of token credit holds, relative to turn-level PPO.

    Args:
        panels: by title, and by the error of the critic: λ inside actions, and the gains.
        path: the file to write; its ending (``.svg``, ``.png``, ``.pdf``) decides the format.
    """
    with _figure("poad", (4.4 * len(panels) + 1, 3.1)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        every = _titled(grid, [*panels], *_GREYS)
        for axes, curves in zip(every, panels.values(), strict=True):
            for number, (noise, (lam, gain)) in enumerate(curves.items()):
                axes.semilogy(lam, gain, lw=1.6, color=f"C{number}", label=noise)
            axes.axhline(1, color="#777777", lw=1.2, ls=":", label="turn-level PPO")
            axes.set_xmargin(0)
            axes.invert_xaxis()  # further right, more is bootstrapped
            axes.set_xlabel("λ inside the action", color=_GREYS[0])
            axes.set_xticks([1, 0.8, 0.6, 0.4, 0.2])
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
            axes.minorticks_off()
        every[0].set_ylabel("gain in signal-to-noise", color=_GREYS[0])
        look = {"frameon": False, "fontsize": 8, "title": "error of the critic"}
        every[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), **look)
        return _save(figure, path)


# Studies: several methods in several panels, as SVG text for a page or a file.


COLOURS = 10
"""Number of different colours; curves beyond it are dashed, and points hollow."""


class Line(NamedTuple):
    """A curve with its interval."""

    label: str
    colour: int
    """Index of its colour; a method has the same colour in all drawings."""
    points: Sequence[Sequence[float]]
    """(x, middle, low, high); low and high are NaN where there is no interval."""


class Bar(NamedTuple):
    """A number between 0 and 1 with its interval, whose bounds are NaN where there is none."""

    label: str
    colour: int
    middle: float
    low: float
    high: float


def lines_svg(
    panels: Mapping[str, Sequence[Line]], across: str, key: str, *, log: bool = False
) -> str:
    """Draw curves with their intervals: a panel for each title, and one legend for all.

    Args:
        panels: curves by title. Where all values are rates, the vertical axis is from 0 to 1.
        across: label of the horizontal axis.
        key: a name that is unique among the drawings of a page.
        log: use a logarithmic horizontal axis, with ticks at the points.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _figure(key, (4.4 * columns, 2.7 * rows + 0.6)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        shown: dict[str, Any] = {}
        for axes, lines in zip(_titled(grid, [*panels], _INK, _GRID), panels.values(), strict=True):
            axes.set_xlabel(across, color=_INK)
            for line in lines:
                x, middle, low, high = np.array(line.points, dtype=float).T
                colour = f"C{line.colour}"
                look = {"color": colour, "lw": 1.6, "marker": "o" if log or len(x) < 3 else None}
                look["ls"] = "--" if line.colour >= COLOURS else "-"
                (shown[line.label],) = axes.plot(x, middle, **look)
                axes.fill_between(x, low, high, alpha=0.15, color=colour, lw=0)
            heights = [height for line in lines for point in line.points for height in point[1:]]
            if not any(height < 0 or height > 1 for height in heights):  # NaN: too few runs
                axes.set_ylim(-0.02, 1.02)
            axes.set_xlim(left=None if log else 0)
            if log:
                places = sorted({point[0] for line in lines for point in line.points})
                axes.set_xscale("log")
                axes.set_xticks(places, [f"{place:g}" for place in places])
                axes.minorticks_off()
            elif axes.get_xlim()[1] < 2:
                axes.xaxis.set_major_formatter("{x:g}")
        look = {"frameon": False, "fontsize": 8, "labelcolor": _INK}
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, **look)
        return _drawn(figure, f"{key}: {', '.join(shown)} in {', '.join(panels)}")


def bars_svg(panels: Mapping[str, Sequence[Bar]], key: str) -> str:
    """Draw numbers with their intervals: a row for each label and a panel for each title.

    ``key`` is a name that is unique among the drawings of a page.
    """
    labels = list(dict.fromkeys(bar.label for bars in panels.values() for bar in bars))
    places = {label: -i for i, label in enumerate(labels)}
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (2.9 * columns + 1.2, (0.24 * len(labels) + 0.6) * rows)
    with _figure(key, size) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        every = _titled(grid, [*panels], _INK, _GRID, ticks=4)
        for axes, bars in zip(every, panels.values(), strict=True):
            for bar in bars:
                y, colour = places[bar.label], f"C{bar.colour}"
                if math.isfinite(bar.low):
                    axes.plot([bar.low, bar.high], [y, y], color=colour, lw=6, alpha=0.3)
                hollow = {"mfc": "none"} if bar.colour >= COLOURS else {}
                axes.plot([bar.middle], [y], color=colour, marker="o", ms=5, lw=0, **hollow)
            axes.set_yticks(list(places.values()), list(places), fontsize=8)
            if all(0 <= bar.middle <= 1 for bar in bars):
                axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter("{x:g}")
        return _drawn(figure, f"{key}: {', '.join(labels)} in {', '.join(panels)}")


def standalone(svg: str) -> str:
    """Convert a drawing to a file of its own, in greys that are legible on light and dark."""
    for shown, drawn in (("currentColor", "#777777"), ("var(--grid)", "#9999994d")):
        svg = svg.replace(shown, drawn)
    return svg


@contextmanager
def _figure(key: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure whose text stays text and whose output is reproducible."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9}):
        yield Figure(figsize=size, layout="constrained")


def _titled(grid: Any, titles: Sequence[str], ink: str, lines: str, ticks: int = 5) -> list[Any]:
    """Style and title the first axes of a grid, and hide the others."""
    for axes in grid.flat[len(titles) :]:
        axes.set_visible(False)
    found = list(grid.flat[: len(titles)])
    for axes, title in zip(found, titles, strict=True):
        _style(axes, ink, lines, ticks)
        axes.set_title(title, fontsize=10, loc="left", parse_math=False, color=ink)
    return found


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _drawn(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return _inline(buffer.getvalue(), label)
