"""Write docs/results.md and the README's tables from what the studies found: `make docs`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poad.study import (
    Study,
    Table,
    in_markdown,
    interval,
    main_jobs,
    read_study,
    search_jobs,
    tables,
)

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
FOUND = ROOT / "benchmarks" / "studies"
SHIPPED = ROOT / "benchmarks" / "results" / "shipped.md"
ORDER = ("main", "length", "ablations", "generalization", "length_free", "actions")
"""The order in which `make studies` runs them."""
HEAD = """\
# Results

This page reports what agents learn with the shipped configurations, and what the shipped studies
found. `make docs` generates it from `benchmarks/results/shipped.md` and from `benchmarks/studies/`,
which holds each study's findings, tables, figures and the numbers of every run. Edit those files
instead of this page.

In the tables of the studies, *success* is the share of the panel's sampled episodes that succeed at
the end of training. *Area* is the mean height of the learning curve. Both are interquartile means
over seeds, with 95 % bootstrap intervals over seeds. *Never* is the share of runs in which no
evaluation during training reached the world's threshold. [studies.md](studies.md) explains how
studies work, and `make studies` repeats them all.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, SHIPPED.read_text(encoding="utf-8")]
    for name in ORDER:
        study = read_study(ROOT / "studies" / f"{name}.yaml")
        parts += [f"## {name}\n", f"*{study.question.strip()}*\n"]
        findings, results = (FOUND / name / file for file in ("findings.md", "results.json"))
        if findings.is_file():
            parts.append(findings.read_text(encoding="utf-8").strip() + "\n")
        if results.is_file():
            parts += told(name, json.loads(results.read_text(encoding="utf-8")))
        else:
            parts.append(not_run(name, study))
    return "\n".join(parts)


def not_run(name: str, study: Study) -> str:
    """What is said of a study without results."""
    runs, tried = len(main_jobs(study, {})), len(search_jobs(study))
    search = f" and {tried} of the search" if tried else ""
    command = f"poad study studies/{name}.yaml --out benchmarks/studies/{name}"
    return f"Not run yet: {runs} runs{search}. `{command}`\n"


def told(name: str, results: dict[str, Any]) -> Iterator[str]:
    """The short form of a study's results."""
    place = f"../benchmarks/studies/{name}"
    figure = "scale" if results["scale"]["label"] else "curves"
    yield f"![{name}]({place}/{figure}.svg)\n"
    for score in ("success", "area"):
        yield overview(results, score)
    for table in tables(results):
        if table.title == "Unseen worlds":
            yield in_markdown(table) + "\n"
    for method, settings in results["chosen"].items():
        yield f"* {method} learned with {', '.join(f'{k} {v}' for k, v in settings.items())}"
    missing, minutes = len(results["missing"]), results["cost"]["cpu_minutes"]
    search = ", the search included" if results["search"] else ""
    absent = f"; {missing} runs are missing" if missing else ""
    yield (
        f"\n{len(results['runs'])} runs in {minutes:.0f} CPU minutes{search}{absent}. Identity "
        f"{results['identity']['hash']}. [Comparisons and costs]({place}/results.md), "
        f"[every run]({place}/results.json).\n"
    )


def overview(results: dict[str, Any], score: str) -> str:
    """A line per method, a column per world, and for success the share of runs without it."""
    cells = {(s["method"], s["world"]): s for s in results["summaries"]}
    worlds = list(dict.fromkeys(world for _, world in cells))
    seeds = sorted({line["seeds"] for line in cells.values()})
    head = f"{score}, {' to '.join(map(str, seeds[:: max(1, len(seeds) - 1)]))} seeds"
    rows = []
    for method in results["methods"]:
        of = [cells.get((method, world)) for world in worlds]
        row = [method, *("–" if cell is None else interval(cell[score], ".2f") for cell in of)]
        if score == "success":
            row.append("–" if of[-1] is None else f"{of[-1]['never']:.0%}")
        rows.append(row)
    last = ["never at threshold"] if score == "success" else []
    return in_markdown(Table("", "", [head, *worlds, *last], rows)) + "\n"


def readme(text: str) -> str:
    """The README with the table of every study that it names in a comment."""

    def table(place: re.Match[str]) -> str:
        results = json.loads((FOUND / place[2] / "results.json").read_text(encoding="utf-8"))
        return f"{place[1]}\n{overview(results, 'success')}{place[3]}"

    return re.sub(r"(<!-- study (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.S)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {TARGET.name} and the tables of {README.name}")
