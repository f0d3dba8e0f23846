"""A table, and its three forms: in the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import table as rich_table
from rich.text import Text

from poad.display.clean import in_a_line
from poad.display.html import Html, tag
from poad.display.numbers import bounds, number, percent
from poad.runs import Evaluation, Mode


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    """An explanation that stands with the table."""
    align: str = ""
    """A letter per column, ``l`` or ``r``; default: the first left, the others right."""

    @property
    def alignment(self) -> str:
        """A letter for every column."""
        return self.align or "l" + "r" * (len(self.columns) - 1)

    def to_terminal(
        self, *, row_styles: Sequence[str] = (), column_styles: Mapping[int, str] | None = None
    ) -> rich_table.Table:
        """Render the table for a rich console, with styles by row and by index of the column."""
        found = rich_table.Table(
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            header_style="bold",
            title=self.title or None,
            title_justify="left",
            caption=self.note or None,
            caption_justify="left",
        )
        for heading, letter in zip(self.columns, self.alignment, strict=True):
            found.add_column(
                Text(in_a_line(heading)),
                justify="right" if letter == "r" else "left",
                overflow="fold",
            )
        for i, row in enumerate(self.rows):
            styles = [(column_styles or {}).get(j, "") for j in range(len(row))]
            pairs = zip(row, styles, strict=True)
            cells = [Text(in_a_line(cell), style=style) for cell, style in pairs]
            found.add_row(*cells, style=row_styles[i] if row_styles else None)
        return found

    def to_markdown(self) -> str:
        """Render the table as Markdown, with its title as a heading and its note above the grid."""
        rules = ["---:" if letter == "r" else "---" for letter in self.alignment]
        grid = "\n".join(
            f"| {' | '.join(in_a_line(cell).replace('|', chr(92) + '|') for cell in row)} |"
            for row in (self.columns, rules, *self.rows)
        )
        return "\n\n".join(filter(None, (self.title and f"## {self.title}", self.note, grid)))

    def to_html(self) -> list[Html]:
        """Render the table as HTML: its title as a heading, the grid, and its note below."""
        classes = ["left" if letter == "l" else "" for letter in self.alignment]

        def line(kind: str, row: Sequence[str]) -> Html:
            cells = zip(row, classes, strict=True)
            return tag("tr", *(tag(kind, in_a_line(cell), cls=cls) for cell, cls in cells))

        rows = [line("th", self.columns), *(line("td", row) for row in self.rows)]
        grid = tag("div", tag("table", *rows), cls="scroll")
        title = [tag("h2", self.title)] if self.title else []
        note = [tag("p", self.note, cls="soft key")] if self.note else []
        return [*title, grid, *note]


def evaluation_table(evaluations: Iterable[tuple[Mode, Evaluation]]) -> Table:
    """Build a table with a row for each evaluation."""
    columns = ("actions", "success", "95 % interval", "return", "length", "episodes")
    rows = [
        (
            mode,
            percent(evaluation.success_rate),
            bounds(evaluation.success_interval),
            number(evaluation.mean_return),
            number(evaluation.mean_length, ".1f"),
            f"{evaluation.episodes:,}"
            + (f" ({evaluation.failed:,} failed)" if evaluation.failed else ""),
        )
        for mode, evaluation in evaluations
    ]
    return Table(columns, rows)
