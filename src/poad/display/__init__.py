"""Output for people: the terminal, tables, plots and pages."""

from poad.display.clean import printable
from poad.display.html import Html, page, stylesheet, tag
from poad.display.numbers import bounds, compact, counted, interval, number, p_value, percent
from poad.display.plots import (
    Bar,
    Line,
    bars_svg,
    lines_svg,
    plot_learning,
    plot_signal,
    plot_theory,
    standalone,
)
from poad.display.tables import Table, evaluation_table
from poad.display.terminal import (
    Progress,
    Screen,
    can_be_live,
    show_ending,
    show_evaluation,
    show_turn,
    show_work,
    watch,
)
from poad.display.turns import describe_ending, turn_in_html

__all__ = [
    "Bar",
    "Html",
    "Line",
    "Progress",
    "Screen",
    "Table",
    "bars_svg",
    "bounds",
    "can_be_live",
    "compact",
    "counted",
    "describe_ending",
    "evaluation_table",
    "interval",
    "lines_svg",
    "number",
    "p_value",
    "page",
    "percent",
    "plot_learning",
    "plot_signal",
    "plot_theory",
    "printable",
    "show_ending",
    "show_evaluation",
    "show_turn",
    "show_work",
    "standalone",
    "stylesheet",
    "tag",
    "turn_in_html",
    "watch",
]
