"""What the terminal shows: progress while training, an evaluation's outcome, an episode by turns.

On a terminal the progress is a live table; into a file or a pipe it is plain lines, so that a log
stays readable. Everything fits 80 columns; colours follow ``NO_COLOR``.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

ROWS = 8
EARLY = 30
"""Means over fewer finished episodes are not shown: short ones, the successes, finish first."""
OFFERED = 8
WORLD = "world/"
"""What the names of a world's own measures begin with."""
SPARKS = "▁▂▃▄▅▆▇█"
# Heading, metric, width and format of the columns, alike in the live table and in plain lines.
_COLUMNS = (
    ("iter", "iteration", 5, ".0f"),
    ("steps", "env_steps", 9, ",.0f"),
    ("return", "return", 7, ".3f"),
    ("success", "success", 7, ".1%"),
    ("entropy", "entropy", 7, ".3f"),
    ("KL", "kl", 7, ".4f"),
    ("expl.var", "explained_variance", 8, ".2f"),
    ("steps/s", "steps_per_second", 7, ",.0f"),
)


class Screen(Console):
    """A terminal, file or pipe; when the reader of a pipe is gone, the rest goes nowhere."""

    def on_broken_pipe(self) -> None:
        """Go on without output: training must not end because ``head`` did."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Shows how training goes, inside a ``with`` statement.

    Args:
        total_steps: environment steps of the whole run, for the bar and the time that remains.
        quiet: show nothing.
        console: where to show it; none: standard output.
        pause: fewest seconds between two plain lines; the first and the last always come.
    """

    def __init__(
        self,
        total_steps: int,
        quiet: bool = False,
        console: Console | None = None,
        pause: float = 2.0,
    ) -> None:
        self._total = total_steps
        self._quiet = quiet
        self._console = console or Screen()
        self._pause = pause
        self._history: list[Mapping[str, float]] = []
        self._shown_at = -math.inf
        self._due = False
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if not self._quiet and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
            self._pause = min(self._pause, 0.1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._due:
            self._show()
        if self._live:
            self._live.stop()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Show one iteration's metrics; see :func:`poad.learn.train.train` for their names."""
        if self._quiet:
            return
        row = {key: metrics.get(key, math.nan) for _, key, _, _ in _COLUMNS}
        row |= {key: value for key, value in metrics.items() if key.startswith(WORLD)}
        if metrics.get("episodes", EARLY) < EARLY:  # so far only the quick ones have finished
            row |= {"return": math.nan, "success": math.nan}
        self._history.append(row)
        self._due = True
        if time.monotonic() - self._shown_at >= self._pause:
            self._show()

    def _show(self) -> None:
        if self._live:
            self._live.update(self._picture(), refresh=True)
        else:
            if self._shown_at == -math.inf:
                headings = [f"{heading:>{width}}" for heading, _, width, _ in self._columns()]
                self._console.out(*headings, f"{'ETA':>7}", highlight=False)
            last = self._history[-1]
            cells = [
                f"{_number(last.get(key), form):>{width}}"
                for _, key, width, form in self._columns()
            ]
            self._console.out(*cells, f"{self._remaining():>7}", highlight=False)
        self._shown_at, self._due = time.monotonic(), False

    def _picture(self) -> Group:
        """The bar, a few rows from all of the run so far, and the success rate as a tiny curve."""
        steps = self._history[-1]["env_steps"]
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(self._total, steps, complete_style="green", finished_style="green"),
            f"{steps:,.0f} / {self._total:,} steps, ETA {self._remaining()}",
        )
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for heading, _, width, _ in self._columns():
            table.add_column(heading, justify="right", min_width=width - 1, no_wrap=True)
        for row in _spread(self._history, ROWS):
            style = "" if row is self._history[-1] else "dim"
            cells = [_number(row.get(key), form) for _, key, _, form in self._columns()]
            table.add_row(*cells, style=style)
        curve = sparkline([row["success"] for row in self._history], 40)
        last = _number(self._history[-1]["success"], ".1%")
        if not _can_draw(self._console):
            curve = ""
        return Group(bar, table, Text.assemble(" success ", (curve, "green"), f" {last}"))

    def _columns(self) -> list[tuple[str, str, int, str]]:
        """What is shown; a world's own measures take the place of two columns."""
        found = dict.fromkeys(key for row in self._history for key in row if key.startswith(WORLD))
        names = [key.removeprefix(WORLD) for key in found][:2]
        own = [(name, f"{WORLD}{name}", max(7, len(name)), ".3f") for name in names]
        if not own:
            return list(_COLUMNS)
        usual = [column for column in _COLUMNS if column[0] not in ("success", "expl.var")]
        return [*usual[:3], *own, *usual[3:]]

    def _remaining(self) -> str:
        """Time to the end at the pace of the last iterations, as h:mm:ss or m:ss."""
        paces = [row["steps_per_second"] for row in self._history[-10:]]
        paces = [pace for pace in paces if pace > 0]
        if not paces:
            return "–"
        steps = max(self._total - self._history[-1]["env_steps"], 0)
        seconds = round(steps * sum(1 / pace for pace in paces) / len(paces))
        hours, rest = divmod(seconds, 3600)
        clock = f"{rest // 60:02d}:{rest % 60:02d}"
        return f"{hours}:{clock}" if hours else clock.removeprefix("0")


def watch(
    records: Iterable[Mapping[str, Any]],
    total: int,
    label: str,
    quiet: bool = False,
    console: Console | None = None,
) -> Iterator[Mapping[str, Any]]:
    """Pass on evaluation episodes while a bar counts them (on a terminal; nothing elsewhere)."""
    console = console or Screen()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("episodes,"),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Bar(*columns, console=console, transient=True, disable=hidden) as bar:
        yield from bar.track(records, total=total, description=label)


def show_evaluation(console: Console, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Print evaluation summaries side by side.

    Args:
        console: where to.
        summaries: by mode (``sampled``, ``greedy``), as `poad.learn.summarize` gives them.
    """
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("actions")
    for heading in ("success", "95 % interval", "return", "length", "episodes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for mode, summary in summaries.items():
        low, high = summary["success_interval"] or (None, None)
        table.add_row(
            mode,
            Text(_number(summary["success_rate"], ".1%"), style="bold green"),
            f"{_number(low, '.1%')} – {_number(high, '.1%')}",
            _number(summary["mean_return"], ".3f"),
            _number(summary["mean_length"], ".1f"),
            f"{summary['episodes']:,}",
        )
    console.print(table)


def show_work(console: Console, made: Mapping[str, Any]) -> None:
    """Print the best thing the agent made: a program, with its score and when it came."""
    told = f" score {made['score']:.4f} ± {made['deviation']:.4f}, turn {made['turn']:,}"
    heading = Text.assemble((made["file"], "bold"), told)
    console.print()
    console.print(Rule(heading, align="left", style="dim", characters=_line(console)))
    console.print(Syntax(made["text"].strip(), Syntax.guess_lexer(made["file"]), word_wrap=True))


def show_turn(console: Console, turn: Mapping[str, Any], number: int) -> None:
    """Print one turn of an episode record: prompt, offered actions, what was written, reward."""
    steps = f", {turn['duration']} primitive steps" if turn["duration"] != 1 else ""
    value = _number(turn["root_value"], ".2f")
    heading = Text.assemble((f"Turn {number}", "bold"), f"  critic expects {value}")
    console.print(Rule(heading, align="left", style="dim", characters=_line(console)))
    console.print(_indented(Text(turn["prompt"])))
    if turn["offered"]:
        console.print(_offered(console, turn["offered"], turn["action"]))
    else:
        console.print(_indented(Text(turn["action"], style="bold green"), 4))
    if turn["invalid"]:
        console.print(Text("  This is none of the offered actions.", style="red"))
    console.print(_indented(_tokens(turn)))
    reward = turn["reward"]
    style = "green" if reward > 0 else "red" if reward < 0 else ""
    console.print(Text.assemble("  reward ", (f"{reward:+.3g}", f"bold {style}"), steps))


def show_ending(console: Console, record: Mapping[str, Any]) -> None:
    """Print how an episode ended."""
    success = ("Success", "bold green") if record["success"] else ("No success", "bold red")
    turns = len(record["turns"])
    steps = "" if record["length"] == turns else f" ({record['length']:g} primitive steps)"
    rest = f": {record['ending']} after {turns} turns{steps}, return {record['return']:.3g}"
    console.print(Rule(style="dim", characters=_line(console)))
    console.print(Text.assemble(success, rest))


def sparkline(values: Sequence[float], width: int) -> str:
    """Rates between 0 and 1 as a line of blocks at most ``width`` wide; NaN is left out."""
    marks = [SPARKS[min(int(v * len(SPARKS)), len(SPARKS) - 1)] for v in values if v >= 0]
    return "".join(_spread(marks, width))


def _offered(console: Console, offered: Sequence[Sequence[Any]], action: str) -> Padding:
    """The likeliest offered actions with bars, the written one always among them."""
    ranked = sorted(offered, key=lambda pair: -pair[1])
    top = [pair for i, pair in enumerate(ranked) if i < OFFERED or pair[0] == action]
    width = 24 if console.width >= 70 else 10
    full, mark = ("█", "▸ ") if _can_draw(console) else ("#", "> ")
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=2)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(width=width, no_wrap=True)
    table.add_column(width=7, justify="right", no_wrap=True)
    for text, probability in top:
        is_chosen = text == action
        style = "bold green" if is_chosen else ""
        bar = full * round(width * min(max(probability, 0.0), 1.0))
        cells = (mark if is_chosen else "", text, bar, f"{probability:.1%}")
        table.add_row(*(Text(cell, style=style) for cell in cells))
    if len(offered) > len(top):
        share = sum(pair[1] for pair in ranked) - sum(pair[1] for pair in top)
        more = f"and {len(offered) - len(top)} more"
        table.add_row("", Text(more, style="dim"), "", Text(f"{max(share, 0.0):.1%}", style="dim"))
    return Padding(table, (0, 2))


def _tokens(turn: Mapping[str, Any]) -> Text:
    """The action's tokens: a decision with its probability, a forced one dim; then the values.

    Values at forced tokens stand in brackets: only methods that count every token train them.
    """
    text = Text("tokens ", style="dim")
    for piece, choice, logprob in zip(turn["pieces"], turn["choice"], turn["logprob"], strict=True):
        shown = piece.replace("\n", "\\n").strip(" ") or "''"
        if choice:
            text.append(shown, style="not dim bold cyan")
            text.append(f" {math.exp(logprob):.0%}  ", style="not dim cyan")
        else:
            text.append(f"{shown}  ")
    text.append("\nvalues ")
    for value, choice in zip(turn["value"], turn["choice"], strict=True):
        shown = _number(value, ".2f")
        text.append(f"{shown} " if choice else f"({shown}) ", style="not dim" if choice else "")
    return text


def _indented(text: Text, by: int = 2) -> Padding:
    return Padding(text, (0, 0, 0, by), expand=False)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly spread, the last one always among them."""
    count = min(len(items), most)
    return [items[(i + 1) * len(items) // count - 1] for i in range(count)]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def _can_draw(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def _line(console: Console) -> str:
    return "─" if _can_draw(console) else "-"
