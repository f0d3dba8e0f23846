"""``poad compare``: what differs between runs, and whether it mattered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from poad.cli.arguments import Switch
from poad.cli.report import open_runs
from poad.display import Screen

EPILOG = """
Examples:
  poad compare RUN1 RUN2           settings, results, the same seeds
  poad report RUN1 RUN2 --open     their curves
  poad inspect RUN1 RUN2 --open    the same episodes, token by token
"""


@dataclass(frozen=True)
class Options:
    """Compare runs: their settings, versions, results, and outcomes on the same seeds.

    No study file is needed. The differences are between these runs: to compare methods over several
    seeds, use `poad study`.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The directories of two or more runs."""
    markdown: Switch = False
    """Print the tables in Markdown, for notes and pull requests, instead of columns for a
    terminal."""


def run(options: Options) -> int:
    """Print the comparison; the exit status."""
    runs = open_runs(options.runs, least=2)
    from poad.pages import pairs_table, results_table, settings_table, versions_table

    console = Screen()
    settings = settings_table(runs)
    console.print("Settings that differ" if settings.rows else "All settings are the same.")
    tables = [settings] if settings.rows else []
    if (versions := versions_table(runs)).rows:
        tables.append(versions)
    tables.append(results_table(runs))
    pairs = pairs_table(runs)
    if pairs.rows:
        tables.append(pairs)
    for table in tables:
        if options.markdown:
            console.print(table.to_markdown(), soft_wrap=True)
        else:
            console.print(table.to_terminal())
        console.print()
    if not pairs.rows:
        console.print(
            "No two of these runs have a sampled evaluation on the same seeds of the same world. "
            "`poad eval RUN` adds one."
        )
    return 0
