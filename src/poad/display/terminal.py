"""Terminal output: progress while training, evaluations, and episodes turn by turn.

On a terminal the progress is a live table; in a file or a pipe it is plain lines, so that a log
stays readable. Everything fits 80 columns, and colours follow ``NO_COLOR``.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.syntax import Syntax
from rich.table import Table as Grid
from rich.text import Text

from poad.display.clean import in_a_line, printable
from poad.display.numbers import number, percent
from poad.display.plots import MIN_EPISODES
from poad.display.tables import Table, evaluation_table
from poad.display.turns import can_draw, describe_ending, rule, turn_in_terminal
from poad.runs import EpisodeRecord, Evaluation, Mode, TurnRecord

T = TypeVar("T")
TABLE_ROWS = 8
WORLD_PREFIX = "world/"
"""Prefix of the metrics that a world measures itself."""
SPARK_BLOCKS = "▁▂▃▄▅▆▇█"
# Heading, metric, width and format of each column, in the live table and in plain lines.
_COLUMNS = (
    ("iter", "iteration", 5, ".0f"),
    ("steps", "env_steps", 9, ",.0f"),
    ("reward", "reward", 7, ".4f"),
    ("return", "return", 7, ".3f"),
    ("success", "success", 7, ".1%"),
    ("entropy", "entropy", 7, ".3f"),
    ("KL", "kl", 7, ".4f"),
    ("expl.var", "explained_variance", 8, ".2f"),
    ("steps/s", "steps_per_second", 7, ",.0f"),
)


class Screen(Console):
    """A console that shows text as it is, without highlighting, and obeys nothing in it.

    It goes quiet when the reader of its pipe is gone.

    Args:
        quiet: show nothing.
        stderr: write to the standard error.
        markup: read [bold] and the like; only for text that is all poad's own.
    """

    def __init__(self, *, quiet: bool = False, stderr: bool = False, markup: bool = False) -> None:
        super().__init__(quiet=quiet, stderr=stderr, markup=markup, emoji=False, highlight=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Render an object; whatever is shown comes through here."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=printable(segment.text))

    def on_broken_pipe(self) -> None:
        """Continue without output: training must not end because ``head`` did."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Progress of a training, shown inside a ``with`` statement.

    Args:
        total_steps: environment steps of the whole run, for the bar and the remaining time.
        console: where to show it; a quiet one shows nothing.
        pause: minimum seconds between two plain lines; the first and the last always appear.
    """

    def __init__(self, total_steps: int, console: Console, pause: float = 2.0) -> None:
        self._total = total_steps
        self._console = console
        self._pause = pause
        self._history: list[Mapping[str, float]] = []
        self._shown_at = -math.inf
        self._is_current = True
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if can_be_live(self._console):
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
            self._pause = min(self._pause, 0.1)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_current:
            self._show()
        if self._live:
            self._live.stop()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Show one iteration's metrics; docs/runs.md lists their names."""
        if self._console.quiet:
            return
        row = {key: metrics.get(key, math.nan) for _, key, _, _ in _COLUMNS}
        row |= {key: value for key, value in metrics.items() if key.startswith(WORLD_PREFIX)}
        if metrics.get("episodes", MIN_EPISODES) < MIN_EPISODES:
            row |= {"return": math.nan, "success": math.nan}
        self._history.append(row)
        self._is_current = False
        if time.monotonic() - self._shown_at >= self._pause:
            self._show()

    def _show(self) -> None:
        if self._live:
            self._live.update(self._render(), refresh=True)
        else:
            if self._shown_at == -math.inf:
                self._print_line([column[0] for column in self._columns()], "ETA")
            self._print_line(self._cells(self._history[-1]), self._remaining())
        self._shown_at, self._is_current = time.monotonic(), True

    def _print_line(self, cells: Sequence[str], last: str) -> None:
        widths = [*(width for _, _, width, _ in self._columns()), 7]
        padded = (f"{cell:>{width}}" for cell, width in zip([*cells, last], widths, strict=True))
        self._console.out(*padded, highlight=False)

    def _cells(self, row: Mapping[str, float]) -> list[str]:
        return [number(row.get(key), form) for _, key, _, form in self._columns()]

    def _render(self) -> Group:
        """The bar, a few rows spread over the run so far, and the success rate as a sparkline."""
        steps = self._history[-1]["env_steps"]
        bar = Grid.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(self._total, steps, complete_style="green", finished_style="green"),
            f"{steps:,.0f} / {self._total:,} steps, ETA {self._remaining()}",
        )
        # Padded headings keep the columns' widths while the numbers grow.
        headings = [f"{heading:>{width - 1}}" for heading, _, width, _ in self._columns()]
        shown = _spread(self._history, TABLE_ROWS)
        rows = [self._cells(row) for row in shown]
        table = Table(headings, rows, align="r" * len(headings)).to_terminal(
            row_styles=["dim"] * (len(rows) - 1) + [""]
        )
        curve = sparkline([row["success"] for row in self._history], 40)
        last = percent(self._history[-1]["success"])
        if not can_draw(self._console):
            curve = ""
        return Group(bar, table, Text.assemble("success ", (curve, "green"), f" {last}"))

    def _columns(self) -> list[tuple[str, str, int, str]]:
        """The columns; up to two of a world's own metrics replace success and expl.var."""
        found = dict.fromkeys(
            key for row in self._history for key in row if key.startswith(WORLD_PREFIX)
        )
        own = [
            (name := in_a_line(key.removeprefix(WORLD_PREFIX)), key, max(7, len(name)), ".3f")
            for key in [*found][:2]
        ]
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


def can_be_live(console: Console) -> bool:
    """Whether a console can redraw what it shows."""
    return console.is_terminal and not console.is_dumb_terminal and not console.quiet


def watch(
    records: Iterable[T],
    total: int,
    label: str,
    console: Console,
    pause: float = 10.0,
    *,
    unit: str = "episodes",
    tell: Callable[[T], str] = lambda _: "",
) -> Iterator[T]:
    """Pass on episodes, or other things, while a progress bar counts them.

    Without a terminal, a plain line counts them instead every `pause` seconds, also while none
    ends; the pauses grow with the time.

    Args:
        records: the things.
        total: how many there will be.
        label: what is going on.
        console: where to show it.
        pause: seconds between two plain lines.
        unit: what is counted, in the plural.
        tell: says more of the newest one, in a few words.
    """
    if not console.is_terminal:
        yield from _told(records, total, label, console, pause, unit, tell)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(f"{unit},"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    with Bar(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task(label, total=total, told="")
        for record in records:
            yield record
            bar.update(task, advance=1, told=tell(record))


def _told(
    records: Iterable[T],
    total: int,
    label: str,
    console: Console,
    pause: float,
    unit: str,
    tell: Callable[[T], str],
) -> Iterator[T]:
    """Pass on things while another thread tells how many there are."""
    counted, newest, over, begun = [0], [""], threading.Event(), time.monotonic()

    def say() -> None:
        wait = pause
        while not over.wait(wait):
            passed = time.monotonic() - begun
            more = newest[0] and f", {newest[0]}"
            console.print(f"  {label}: {counted[0]:,} of {total:,} {unit}, {passed:.0f} s{more}")
            wait = max(pause, passed / 10)

    thread = threading.Thread(target=say, name="poad: progress", daemon=True)
    thread.start()
    try:
        for record in records:
            counted[0] += 1
            newest[0] = tell(record)
            yield record
    finally:
        over.set()
        thread.join()


def show_evaluation(console: Console, evaluations: Mapping[Mode, Evaluation]) -> None:
    """Print the evaluations of both modes as a table, and explain a greedy one that is worse."""
    table = evaluation_table(evaluations.items())
    console.print(table.to_terminal(column_styles={1: "bold green"}))
    if _is_worse(evaluations.get("greedy"), evaluations.get("sampled")):
        console.print(
            "Training improves the sampled agent. The greedy one always takes the likeliest "
            "action, so it does the same again in the same state, and can go in circles. "
            "`poad play RUN --greedy` shows an episode."
        )


def _is_worse(one: Evaluation | None, other: Evaluation | None) -> bool:
    """Whether one agent succeeds less often, by intervals that do not meet."""
    bounds, others = (each and each.success_interval for each in (one, other))
    return bounds is not None and others is not None and bounds[1] < others[0]


def show_work(console: Console, work: Mapping[str, Any]) -> None:
    """Print the agent's best program or other work, with its score and when it was made."""
    facts = f" score {work['score']:.4f} ± {work['deviation']:.4f}, turn {work['turn']:,}"
    console.print()
    console.print(rule(console, Text.assemble((work["file"], "bold"), facts)))
    console.print(Syntax(work["text"].strip(), Syntax.guess_lexer(work["file"]), word_wrap=True))


def show_turn(console: Console, turn: TurnRecord, index: int) -> None:
    """Print the turn at a place of an episode, counted from 1."""
    console.print(turn_in_terminal(turn, index, console))


def show_ending(console: Console, record: EpisodeRecord) -> None:
    """Print how an episode ended."""
    outcome, ending = describe_ending(record)
    style = "bold green" if record.success else "bold red"
    console.print(rule(console))
    console.print(Text.assemble((outcome, style), f": {ending}"))


def sparkline(rates: Sequence[float], width: int) -> str:
    """Draw rates between 0 and 1 as a line of at most ``width`` blocks; NaN is left out."""
    top = len(SPARK_BLOCKS) - 1
    blocks = [SPARK_BLOCKS[min(int(rate * len(SPARK_BLOCKS)), top)] for rate in rates if rate >= 0]
    return "".join(_spread(blocks, width))


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """Pick at most ``most`` items, evenly spread; the last is always among them."""
    count = min(len(items), most)
    return [items[(i + 1) * len(items) // count - 1] for i in range(count)]
