"""Write docs/results.md and the README's tables from the results of the studies: `make docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from poad.display import Table, interval, percent
from poad.study import (
    Results,
    Study,
    read_results,
    read_study,
    reported_jobs,
    search_jobs,
    tables,
)

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
STUDIES = ROOT / "benchmarks" / "studies"
SHIPPED = ROOT / "benchmarks" / "results" / "shipped.md"
ORDER = (
    *("main", "decompose", "decompose_16", "length", "ablations"),
    *("generalization", "length_free", "actions", "real", "order_real"),
    *("tools", "babyai", "textworld", "textworld_simple"),
)
"""The order in which `make studies` runs them."""
HEAD = """\
# Results

This page reports what agents learn with the shipped configurations, and what the shipped studies
found. `make docs` generates it from `benchmarks/results/shipped.md` and from `benchmarks/studies/`,
which holds each study's findings, tables, figures and the numbers of every run. Edit those files
instead of this page.

In the tables of the studies, *success* is the share of the panel's sampled episodes that succeed at
the end of training. *Area* is the mean height of the learning curve, which shows success unless the
table names something else. Both are interquartile means over seeds, with 95 % bootstrap intervals
over seeds. *Never reached* is the share of runs whose curve never reached the world's threshold.
[studies.md](studies.md) explains how studies work, and `make studies` repeats them all.
"""


def page() -> str:
    """Build the whole page."""
    parts = [HEAD, SHIPPED.read_text(encoding="utf-8")]
    for name in ORDER:
        study = read_study(ROOT / "studies" / f"{name}.yaml")
        parts += [f"## {name}\n", f"*{study.question.strip()}*\n"]
        findings, results = (STUDIES / name / file for file in ("findings.md", "results.json"))
        if findings.is_file():
            parts.append(findings.read_text(encoding="utf-8").strip() + "\n")
        if results.is_file():
            parts += summary(name, read_results(results))
        else:
            parts.append(not_run(name, study))
    return "\n".join(parts)


def not_run(name: str, study: Study) -> str:
    """Describe a study without results."""
    runs, tried = len(reported_jobs(study, {})), len(search_jobs(study))
    search = f" and {tried} of the search" if tried else ""
    command = f"poad study studies/{name}.yaml --out benchmarks/studies/{name}"
    return f"Not run yet: {runs} runs{search}. `{command}`\n"


def summary(name: str, results: Results) -> Iterator[str]:
    """Summarize a study's results."""
    place = f"../benchmarks/studies/{name}"
    figure = "scale" if results.scale.label else "curves"
    yield f"![{name}]({place}/{figure}.svg)\n"
    for score in ("success", "area"):
        yield overview(results, score)
    for table in tables(results):
        if table.title == "Unseen worlds":
            yield replace(table, title="", note="").to_markdown() + "\n"
    for method, settings in results.chosen.items():
        listed = ", ".join(f"`{key}` {value}" for key, value in settings.items())
        yield f"* The search selected for {method}: {listed}."
    search = ", including the search" if results.search else ""
    missing = f"; {len(results.missing)} runs are missing" if results.missing else ""
    minutes = f"{results.cost.cpu_minutes:.0f} CPU minutes"
    yield (
        f"\n{len(results.runs)} runs in {minutes}{search}{missing}. "
        f"Identity {results.identity.hash}. [Comparisons and costs]({place}/results.md), "
        f"[every run]({place}/results.json).\n"
    )


def overview(results: Results, score: str) -> str:
    """Build a table with a row per method and a column per world."""
    summaries = results.aggregates.summaries
    cells = {(each.method, each.world): each for each in summaries}
    seeds = sorted({each.seeds for each in summaries})
    curve = results.identity.curve
    name = score if "success" in (score, curve) else f"{score} under {curve}"
    columns = [f"{name}, {' to '.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds"]
    rows = []
    for method in results.methods:
        found = [cells.get((method, world)) for world in results.worlds]
        estimates = (each and (each.success if score == "success" else each.area) for each in found)
        row = [method, *("–" if each is None else interval(each, ".2f") for each in estimates)]
        if score == "success":
            row.append("–" if found[-1] is None else percent(found[-1].never, 0))
        rows.append(row)
    columns += [*results.worlds, *(["never reached"] if score == "success" else [])]
    return Table(columns, rows).to_markdown() + "\n"


def readme(text: str) -> str:
    """Replace the table of every study that the README names in a comment."""

    def table(place: re.Match[str]) -> str:
        results = read_results(STUDIES / place[2])
        return f"{place[1]}\n{overview(results, 'success')}{place[3]}"

    return re.sub(r"(<!-- study (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.S)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {TARGET.name} and the tables of {README.name}")
