"""``poad report``: one run or several as a page, or as a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from poad.cli.arguments import Switch
from poad.cli.browser import open_in_browser
from poad.display import Screen
from poad.errors import ConfigError, RunError
from poad.runs import Run

EPILOG = """
Examples:
  poad report RUN --open
  poad report RUN1 RUN2 RUN3 --to three.html
  poad report runs/*-poad-seed* --png seeds.png
"""


@dataclass(frozen=True)
class Options:
    """Show how one run learned, or several in the same figures.

    Writes one page that needs no network: learning curves, the critic by place in the action,
    evaluations, and what differs between the runs.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The directories of the runs."""
    to: Path | None = None
    """Where to write the page. Default: report.html in the run, or for several runs in the current
    directory."""
    png: Path | None = None
    """Write a figure of success and return to this file instead. Its ending decides the format:
    .png, .svg or .pdf. Runs with the same method are drawn as their median and range."""
    open: Switch = False
    """Open the page in a browser."""


def run(options: Options) -> int:
    """Write the page or the figure; the exit status."""
    runs = open_runs(options.runs, least=1)
    if options.png is not None:
        if options.to is not None or options.open:
            raise ConfigError("--png writes a figure and no page. Leave out --to and --open.")
        return _draw(runs, options.png)
    from poad.pages import report_page, write_page, write_report

    if len(runs) == 1 and options.to is None:
        path = write_report(runs[0])
    else:
        path = options.to or Path("report.html")
        write_page(path, report_page(runs, path))
    Screen().print(f"The report is {path}.", soft_wrap=True)
    if options.open:
        open_in_browser(path.resolve().as_uri())
    return 0


def open_runs(paths: tuple[Path, ...], *, least: int) -> list[Run]:
    """Open runs to read them.

    Raises:
        ConfigError: there are too few, or one is named twice.
        RunError: one of them is not a run.
    """
    if len(paths) < least:
        wanted = "a run" if least == 1 else f"at least {least} runs"
        raise ConfigError(f"Name {wanted}; there are {len(paths)}.")
    found: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in found:
            raise ConfigError(f"{path} is named twice.")
        found[path.resolve()] = path
    return [Run.open(path) for path in paths]


FORMATS = (".png", ".svg", ".pdf")


def _draw(runs: list[Run], path: Path) -> int:
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} must end in one of {', '.join(FORMATS)}, which are the formats.")
    from poad.display import plot_learning

    try:
        plot_learning(runs, path)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise RunError(f"These runs cannot be drawn: {error}") from error
    Screen().print(f"The figure is {path}.", soft_wrap=True)
    return 0
