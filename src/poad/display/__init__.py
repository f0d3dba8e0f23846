"""What people look at: the terminal, plots and the report."""

from poad.display.plots import (
    Bar,
    Line,
    bars_svg,
    lines_svg,
    plot_learning,
    plot_theory,
    standalone,
)
from poad.display.report import Html, page, tag, write_report
from poad.display.terminal import (
    Progress,
    Screen,
    show_ending,
    show_evaluation,
    show_turn,
    show_work,
    watch,
)

__all__ = [
    "Bar",
    "Html",
    "Line",
    "Progress",
    "Screen",
    "bars_svg",
    "lines_svg",
    "page",
    "plot_learning",
    "plot_theory",
    "show_ending",
    "show_evaluation",
    "show_turn",
    "show_work",
    "standalone",
    "tag",
    "watch",
    "write_report",
]
