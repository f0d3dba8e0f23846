"""The output of a study: tables in Markdown, drawings, and one page that needs nothing else.

Everything here is made from the results alone, so that it can be made again from results.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from poad.display import Bar, Html, Line, bars_svg, lines_svg, page, standalone, tag
from poad.runs import UNTRAINED, plain, write_text
from poad.study.results import SCORES

Results = Mapping[str, Any]


class Table(NamedTuple):
    """A table on its way to Markdown or HTML."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_results(results: Results, out: Path) -> list[Path]:
    """Write results.json, results.md, the drawings and study.html; the paths.

    Raises:
        OSError: they cannot be written.
    """
    results = plain(results)
    out.mkdir(parents=True, exist_ok=True)
    drawings = draw(results)
    files = {f"{name}.svg": standalone(svg) for name, (_, svg) in drawings.items()}
    files |= {
        "results.json": _json(results),
        "results.md": _markdown(results, drawings),
        "study.html": _html(results, drawings),
    }
    for name, text in files.items():
        write_text(out / name, text)
    return [out / name for name in files]


def _json(results: Results) -> str:
    """JSON with a line for each run, curve or comparison: small, and readable in a diff."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in value)
            text = f"[\n{lines}\n ]"
        else:
            text = json.dumps(value, allow_nan=False, indent=1).replace("\n", "\n ")
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# Tables.


def tables(results: Results) -> list[Table]:
    """Everything that is told in tables, the most important first."""
    threshold = {name: told["threshold"] for name, told in results["identity"]["worlds"].items()}
    made = [_summary(results, world, threshold) for world in _worlds(results)]
    made += [_pairs(results), _search(results), *_unseen(results), _missing(results)]
    return [table for table in made if table.rows]


def _worlds(results: Results) -> list[str]:
    return list(dict.fromkeys(line["world"] for line in results["summaries"]))


def _summary(results: Results, world: str, threshold: Mapping[str, float]) -> Table:
    lines = [line for line in results["summaries"] if line["world"] == world]
    head = ["method", "seeds", "success, IQM", "area under curve, IQM", "greedy"]
    note = "Interquartile means over seeds with 95 % bootstrap intervals."
    if world == "all":
        rows = [
            [
                line["method"],
                str(line["seeds"]),
                *(interval(line[score]) for score in SCORES),
                rate(line["greedy"]),
                rate(line["never"]),
            ]
            for line in lines
        ]
        note += " Only seeds that every world has; they are drawn anew within each world."
        return Table("All worlds", note, [*head, "never reached"], rows)
    goal = f"{threshold[world]:.0%}"
    head += [f"steps to {goal}", f"CPU-s to {goal}", "never", "CPU-s"]
    rows = [
        [
            line["method"],
            str(line["seeds"]),
            *(interval(line[score]) for score in SCORES),
            rate(line["greedy"]),
            _count(line["steps_to"]),
            _count(line["cpu_seconds_to"]),
            rate(line["never"]),
            _count(line["cpu_seconds"]),
        ]
        for line in lines
    ]
    note += f" Steps and CPU seconds to the first evaluation at {goal}: median, never as infinity."
    return Table(world, note, head, rows)


def _pairs(results: Results) -> Table:
    rows = [
        [
            f"{line['method']} − {line['other']}",
            line["world"],
            str(line["seeds"]),
            *(
                cell
                for score in SCORES
                for cell in (
                    interval(line[score]["difference"], "+.3f"),
                    _p(line[score]["p"]),
                    interval(line[score]["improvement"]),
                )
            ),
        ]
        for line in results["pairs"]
    ]
    head = ["methods", "world", "seeds"]
    head += [
        name for what in ("success", "area") for name in (f"Δ {what}", "p", f"P(better {what})")
    ]
    note = (
        "Differences on common seeds with paired bootstrap intervals, p-values of the sign-flip "
        "test (not corrected for the number of comparisons), and the probability that a run of the "
        "first beats a run of the second."
    )
    return Table("Comparisons", note, head, rows)


def _search(results: Results) -> Table:
    rows = [
        [
            line["method"] + (" ←" if line["settings"] == _chosen(results, line) else ""),
            ", ".join(f"{key} {value}" for key, value in line["settings"].items()),
            number(line["area"]) + (" (a run failed)" if line["failed"] else ""),
            str(line["runs"]),
            _count(line["cpu_seconds"]),
        ]
        for line in results["search"]
    ]
    seconds = sum(line["cpu_seconds"] for line in results["search"])
    note = (
        f"Mean area under the curve over worlds and seeds that are not reported; ← was chosen, "
        f"and what runs were begun with stays chosen. "
        f"Collecting and updating took {seconds / 60:.1f} CPU minutes"
    )
    if (everything := results["cost"].get("search_minutes")) is not None:
        note += f", with evaluations and failed attempts {everything:.1f}"
    note += "."
    return Table("Search", note, ["method", "settings", "area", "runs", "CPU-s"], rows)


def _chosen(results: Results, line: Mapping[str, Any]) -> Any:
    return results["chosen"].get(line["method"])


def _unseen(results: Results) -> list[Table]:
    """Success where nobody was trained: a table of rates, and one of the differences asked for."""
    lines = results.get("unseen", ())
    worlds = list(dict.fromkeys(line["world"] for line in lines))
    found = {(line["method"], line["mode"], line["world"]): line for line in lines}
    rows = []
    for method, mode in dict.fromkeys((line["method"], line["mode"]) for line in lines):
        of = [found.get((method, mode, world)) for world in worlds]
        runs = str(max(line["runs"] for line in of if line))
        cells = ["–" if line is None else interval(line["success"], ".2f") for line in of]
        mean = "–" if of[-1] is None else f"{of[-1]['mean']:.3f}"
        rows.append([method, mode, runs, *cells, mean])
    rows += _untrained(results, worlds)
    short = [world.removeprefix("poad/").removesuffix("-v0") for world in worlds]
    note = (
        "Success in worlds that no agent was trained in: interquartile means over runs with 95 % "
        "bootstrap intervals; in all of them, of each run's mean over worlds; last, the plain mean "
        "over worlds and runs. The untrained agent's intervals are Wilson's, over episodes."
    )
    head = ["method", "actions", "runs", *short, "mean"]
    compared = [
        [
            f"{line['method']} − {other['other']}",
            line["mode"],
            line["world"].removeprefix("poad/").removesuffix("-v0"),
            interval(other["difference"], "+.3f"),
            _p(other["p"]),
            interval(other["improvement"]),
        ]
        for line in lines
        for other in line["against"]
        if other["runs"]
    ]
    head_compared = ["methods", "actions", "world", "Δ success", "p", "P(better success)"]
    return [
        Table("Unseen worlds", note, head, rows),
        Table("Unseen worlds, compared", "On the seeds that both have.", head_compared, compared),
    ]


def _untrained(results: Results, worlds: Sequence[str]) -> list[list[str]]:
    """Rows of the agents before training: one of each mode, or one per way of acting."""
    first = {run["method"]: run[UNTRAINED] for run in reversed(results["runs"]) if UNTRAINED in run}
    alike: dict[str, list[str]] = {}
    for method in results["methods"]:
        if method in first:
            alike.setdefault(json.dumps(first[method]), []).append(method)
    rows = []
    for text, methods in alike.items():
        lines = json.loads(text)
        label = UNTRAINED if len(alike) == 1 else f"{UNTRAINED}, as {' '.join(methods)}"
        for mode in dict.fromkeys(line["mode"] for line in lines):
            of = {line["world"]: line for line in lines if line["mode"] == mode}
            cells = [
                interval([of[w]["success_rate"], *of[w]["success_interval"]], ".2f")
                if w in of
                else "–"
                for w in worlds
            ]
            mean = sum(line["success_rate"] for line in of.values()) / len(of)
            rows.append([label, mode, "1", *cells, f"{mean:.3f}"])
    return rows


def _missing(results: Results) -> Table:
    rows = [
        [line["run"], line["state"], line["why"].strip().replace("\n", " / ")]
        for line in results["missing"]
        if line["state"] != "not run"
    ]
    waiting: dict[str, list[str]] = {}
    for line in results["missing"]:
        if line["state"] == "not run":
            group, _, seed = line["run"].rpartition(".")
            waiting.setdefault(group, []).append(seed)
    rows += [[f"{group}, seeds {', '.join(of)}", "not run", ""] for group, of in waiting.items()]
    note = "Runs that the tables above are without."
    return Table("Not in these numbers", note, ["run", "state", "its last words"], rows)


def _runs(results: Results) -> Table:
    rows = [
        [
            f"{run['world']} {run['method']} {run['seed']}",
            interval([run["success"], *run["success_interval"]]),
            rate(run["greedy"]),
            number(run["area"]),
            _count(run["steps_to"]),
            _count(run["cpu_seconds"]),
        ]
        for run in results["runs"]
    ]
    head = ["run", "success, Wilson 95 %", "greedy", "area", "steps to goal", "CPU-s"]
    episodes = results["identity"]["panel"]["episodes"]
    return Table("Every run", f"{episodes} sampled episodes each.", head, rows)


# Drawings.


def draw(results: Results) -> dict[str, tuple[str, str]]:
    """Name → (caption, SVG); none where there is nothing to draw."""
    colours = {method: i for i, method in enumerate(results["methods"])}
    drawn: dict[str, tuple[str, str]] = {}
    curves: dict[str, list[Line]] = {}
    for curve in results["curves"]:
        if curve["points"]:
            line = Line(curve["method"], colours[curve["method"]], curve["points"])
            curves.setdefault(curve["world"], []).append(line)
    if curves:
        caption = "Success on the panel: interquartile mean over seeds, 95 % bootstrap interval"
        drawn["curves"] = (caption, lines_svg(curves, "environment steps", "curves"))
    for score, what in SCORES.items():
        bars: dict[str, list[Bar]] = {}
        for line in results["summaries"]:
            bar = Bar(line["method"], colours[line["method"]], *line[score])
            bars.setdefault(line["world"], []).append(bar)
        if bars:
            caption = f"{what.capitalize()}: interquartile mean, 95 % bootstrap interval"
            drawn[score] = (caption, bars_svg(bars, score))
    if results["scale"]["label"]:
        caption = "Area under the curve by what the worlds differ in: how learning speed depends"
        lines = [
            Line(method, colour, points)
            for method, colour in colours.items()
            if (points := _along(results, method))
        ]
        if lines:
            svg = lines_svg(
                {"area under the curve": lines}, results["scale"]["label"], "scale", log=True
            )
            drawn["scale"] = (caption, svg)
    profiles = [
        Line(profile["method"], colours[profile["method"]], profile["points"])
        for profile in results["profiles"]
    ]
    if profiles:
        caption = "Performance profile: share of runs, over all worlds, whose success is above"
        drawn["profile"] = (caption, lines_svg({"all worlds": profiles}, "success", "profile"))
    return drawn


def _along(results: Results, method: str) -> list[list[float]]:
    """The area under the curve of a method by where its worlds stand on the scale."""
    at = results["scale"]["at"]
    return sorted(
        [at[line["world"]], *line["area"]]
        for line in results["summaries"]
        if line["method"] == method and line["world"] in at
    )


# Markdown and HTML.


def _story(results: Results) -> list[str]:
    identity, cost = results["identity"], results["cost"]
    panel, versions = identity["panel"], identity["versions"]
    missing = len(results["missing"])
    told = [
        f"{len(results['runs'])} runs are in these numbers"
        + (f"; {missing} are not, listed at the end." if missing else ", all that were asked for."),
        f"Examined on {panel['episodes']} episodes, seeds from {panel['seed']:,}; "
        f"{cost['cpu_minutes']:.1f} CPU minutes with everything"
        + (f" (budget {cost['budget_minutes']:g})." if cost["budget_minutes"] else "."),
        f"Identity {identity['hash']}: tables with another one must not be put beside these before "
        "`poad study --compare` has said that they may.",
    ]
    for made in versions:
        told.append("Made with " + ", ".join(f"{k} {v}" for k, v in made.items() if v) + ".")
    if len(versions) > 1:
        told.append("Careful: these runs were made with different versions.")
    if results["toy"]:
        told.insert(0, "At toy size: these numbers mean nothing.")
    return told


def _markdown(results: Results, drawings: Mapping[str, tuple[str, str]]) -> str:
    parts = [f"# Study: {results['study']}", results["question"], *_story(results)]
    parts += [f"![{caption}]({name}.svg)" for name, (caption, _) in drawings.items()]
    for table in [*tables(results), _runs(results)]:
        parts += [f"## {table.title}", table.note, in_markdown(table)]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_markdown(table: Table) -> str:
    """The table alone, without its title and note."""
    grid = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid
    )


def _html(results: Results, drawings: Mapping[str, tuple[str, str]]) -> str:
    title = f"Study: {results['study']}"
    body = [tag("h1", title), tag("p", results["question"])]
    body += [tag("p", line, cls="soft") for line in _story(results)]
    for caption, svg in drawings.values():
        body += [tag("h2", caption), tag("figure", Html(svg))]
    for table in tables(results):
        body += [tag("h2", table.title), _grid(table), tag("p", table.note, cls="soft key")]
    every = _runs(results)
    body += [tag("details", tag("summary", every.title), tag("p", every.note), _grid(every))]
    body += [
        tag("details", tag("summary", name), tag("pre", text))
        for name, text in (
            ("Study file", results["file"]),
            ("Identity", json.dumps(results["identity"], indent=1)),
        )
    ]
    return page(title, body)


def _grid(table: Table) -> Html:
    rows = [tag("tr", *(tag("th", cell) for cell in table.head))]
    rows += [tag("tr", *(tag("td", cell) for cell in row)) for row in table.rows]
    return tag("div", tag("table", *rows), cls="scroll")


# Numbers.


def interval(values: Sequence[float | None], form: str = ".3f") -> str:
    """A number with its interval, if there is one."""
    middle, low, high = values
    if low is None or high is None:
        return number(middle, form)
    return f"{number(middle, form)} [{number(low, form)}, {number(high, form)}]"


def number(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def rate(value: float) -> str:
    """A share in per cent."""
    return f"{value:.0%}"


def _count(value: float | None) -> str:
    """A number of steps or seconds; what was never reached is null in JSON."""
    if value is None or math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<.001"
