"""The output of a study: tables in Markdown, drawings, and one page that needs no other file.

Everything here is made from the results alone, so it can be made again from results.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from poad.display import (
    Bar,
    Html,
    Line,
    Table,
    bars_svg,
    compact,
    interval,
    lines_svg,
    number,
    p_value,
    page,
    percent,
    standalone,
    tag,
)
from poad.runs import UNTRAINED, encode, write_text
from poad.study.records import (
    SUCCESS,
    Candidate,
    Comparison,
    Results,
    RunRow,
    SuccessRate,
    Summary,
    format_results,
)
from poad.study.spec import ALL

Drawings = Mapping[str, tuple[str, str]]
"""(caption, SVG) by name."""


def write_results(results: Results, out: Path) -> list[Path]:
    """Write results.json, results.md, the drawings and study.html."""
    out.mkdir(parents=True, exist_ok=True)
    drawings = draw(results)
    files = {f"{name}.svg": standalone(svg) for name, (_, svg) in drawings.items()}
    files |= {
        "results.json": format_results(results),
        "results.md": _markdown(results, drawings),
        "study.html": _html(results, drawings),
    }
    for name, text in files.items():
        write_text(out / name, text)
    return [out / name for name in files]


# Tables.


def tables(results: Results) -> list[Table]:
    """Build the tables of a study, the most important first; empty ones are left out."""
    every = [
        *(_world(results, world) for world in results.worlds),
        _pairs(results),
        _search(results),
        *_unseen(results),
        _missing(results),
    ]
    return [table for table in every if table.rows]


def _world(results: Results, world: str) -> Table:
    """The methods in one world, or in all of them together."""
    summaries = [each for each in results.aggregates.summaries if each.world == world]
    curve = results.identity.curve
    area = "area under curve" if curve == SUCCESS else f"area under {curve}"
    columns = ["method", "seeds", "success, IQM", "mean", f"{area}, IQM", "greedy"]
    note = (
        "Interquartile means (IQM) over seeds with 95 % bootstrap intervals. An IQM hides a failed "
        "seed in ten. The mean of success beside it does not."
    )
    if world == ALL:
        note += (
            " Only seeds that every world has are used; the bootstrap resamples them within each "
            "world."
        )
        rows = [[*_scores(results, each), percent(each.never, 0)] for each in summaries]
        return Table([*columns, "never reached"], rows, "All worlds", note)
    threshold = results.identity.worlds[world].threshold
    goal, first = percent(threshold, 0), "evaluation with at least this success rate"
    if curve != SUCCESS:
        goal, first = f"{threshold:g}", f"point of the curve of {curve} that is as high"
    note += (
        f" Steps and CPU seconds to {goal} are those of the first {first}: medians over seeds, in "
        "which runs that never reach it count as infinite."
    )
    rows = [
        [
            *_scores(results, each),
            _or_never(each.speed.steps_to),
            _or_never(each.speed.cpu_seconds_to),
            percent(each.never, 0),
            compact(each.speed.cpu_seconds),
        ]
        for each in summaries
        if each.speed is not None
    ]
    columns += [f"steps to {goal}", f"CPU-s to {goal}", "never reached", "CPU-s"]
    return Table(columns, rows, world, note)


def _scores(results: Results, summary: Summary) -> list[str]:
    worlds = results.worlds[:-1] if summary.world == ALL else [summary.world]
    runs = [run for run in results.runs if run.method == summary.method and run.world in worlds]
    seeds = [{run.seed for run in runs if run.world == world} for world in worlds]
    found = [run.success for run in runs if all(run.seed in each for each in seeds)]
    return [
        summary.method,
        str(summary.seeds),
        interval(summary.success),
        number(sum(found) / len(found)),
        interval(summary.area),
        percent(summary.greedy, 0),
    ]


def _or_never(value: float) -> str:
    return "never" if math.isinf(value) else compact(value)


def _pairs(results: Results) -> Table:
    rows = [
        [
            f"{pair.method} − {pair.other}",
            pair.world,
            str(pair.seeds),
            *_comparison(pair.success),
            *_comparison(pair.area),
        ]
        for pair in results.aggregates.pairs
    ]
    columns = ["methods", "world", "seeds"]
    for score in ("success", "area"):
        columns += [f"Δ {score}", "p", f"P(better {score})"]
    note = (
        "Differences on common seeds with paired bootstrap intervals, p-values of the sign-flip "
        "test (not corrected for multiple comparisons), and the probability that a run of the "
        "first method beats a run of the second."
    )
    return Table(columns, rows, "Comparisons", note, align="ll" + "r" * 7)


def _comparison(compared: Comparison) -> list[str]:
    difference = interval(compared.difference, "+.3f")
    return [difference, p_value(compared.p), interval(compared.improvement)]


def _search(results: Results) -> Table:
    def row(each: Candidate) -> list[str]:
        is_chosen = each.settings == results.chosen.get(each.method)
        settings = ", ".join(f"{name} {value}" for name, value in each.settings.items())
        area = number(each.area) + (" (a run failed)" if each.failed else "")
        seconds = compact(each.cpu_seconds)
        return [each.method + " ←" * is_chosen, settings, area, str(each.runs), seconds]

    minutes = sum(each.cpu_seconds for each in results.search) / 60
    total = results.cost.search_minutes
    note = (
        "Mean area under the curve over worlds and seeds that are not reported. ← marks the "
        "selected settings; they stay selected once a reported run has started with them. "
        f"Collecting and updating took {minutes:.1f} CPU minutes"
        + ("." if total is None else f"; with evaluations and failed attempts, {total:.1f}.")
    )
    columns = ["method", "settings", "area", "runs", "CPU-s"]
    return Table(columns, [row(each) for each in results.search], "Search", note, align="llrrr")


def _unseen(results: Results) -> list[Table]:
    """Success in worlds without training, and the requested comparisons of it."""
    summaries = results.aggregates.unseen
    worlds = list(dict.fromkeys(each.world for each in summaries))
    found = {(each.method, each.mode, each.world): each for each in summaries}
    rows = []
    for method, mode in dict.fromkeys((each.method, each.mode) for each in summaries):
        row = [found.get((method, mode, world)) for world in worlds]
        runs = str(max(each.runs for each in row if each))
        cells = ["–" if each is None else interval(each.success, ".2f") for each in row]
        mean = "–" if row[-1] is None else number(row[-1].mean)
        rows.append([method, mode, runs, *cells, mean])
    rows += _untrained(results, worlds)
    note = (
        "Success in worlds that no agent was trained in: interquartile means over runs with 95 % "
        "bootstrap intervals. The column of all worlds is computed from each run's mean over "
        "worlds; the last column is the plain mean over worlds and runs. The intervals of the "
        "untrained agent are Wilson's, over episodes."
    )
    compared = [
        [
            f"{each.method} − {other.other}",
            each.mode,
            _short(each.world),
            *_comparison(other.compared),
        ]
        for each in summaries
        for other in each.against
        if other.compared is not None
    ]
    columns = ["method", "actions", "runs", *map(_short, worlds), "mean"]
    rates = Table(columns, rows, "Unseen worlds", note, align="ll" + "r" * (len(worlds) + 2))
    columns = ["methods", "actions", "world", "Δ success", "p", "P(better success)"]
    note = "Differences on the seeds that both methods have."
    return [rates, Table(columns, compared, "Unseen worlds, compared", note, align="lllrrr")]


def _short(world: str) -> str:
    return world.removeprefix("poad/").removesuffix("-v0")


def _untrained(results: Results, worlds: Sequence[str]) -> list[list[str]]:
    """Rows for the agents before training: one per mode, for each different way of acting."""
    first = {run.method: run.untrained for run in reversed(results.runs) if run.untrained}
    alike: dict[tuple[SuccessRate, ...], list[str]] = {}
    for method in results.methods:
        if method in first:
            alike.setdefault(first[method], []).append(method)
    rows = []
    for rates, methods in alike.items():
        label = UNTRAINED if len(alike) == 1 else f"{UNTRAINED}, as {' '.join(methods)}"
        for mode in dict.fromkeys(each.mode for each in rates):
            found = {each.world: each for each in rates if each.mode == mode}
            cells = [
                interval([found[w].success_rate, *found[w].success_interval], ".2f")
                if w in found
                else "–"
                for w in worlds
            ]
            mean = sum(each.success_rate for each in found.values()) / len(found)
            rows.append([label, mode, "1", *cells, number(mean)])
    return rows


def _missing(results: Results) -> Table:
    rows = [
        [each.run, each.state, each.why.strip().replace("\n", " / ")]
        for each in results.missing
        if each.state != "not run"
    ]
    waiting: dict[str, list[str]] = {}
    for each in results.missing:
        if each.state == "not run":
            group, _, seed = each.run.rpartition(".")
            waiting.setdefault(group, []).append(seed)
    rows += [
        [f"{group}, seeds {', '.join(seeds)}", "not run", ""] for group, seeds in waiting.items()
    ]
    columns = ["run", "state", "last output"]
    note = "These runs are not in the tables above."
    return Table(columns, rows, "Missing runs", note, align="lll")


def _runs(results: Results) -> Table:
    def row(run: RunRow) -> list[str]:
        return [
            f"{run.world} {run.method} {run.seed}",
            interval([run.success, *run.success_interval]),
            percent(run.greedy, 0),
            number(run.area),
            _or_never(run.steps_to),
            compact(run.cpu_seconds),
        ]

    columns = ["run", "success, Wilson 95 %", "greedy", "area", "steps to threshold", "CPU-s"]
    note = f"Each was evaluated on {results.identity.panel.episodes} sampled episodes."
    return Table(columns, [row(run) for run in results.runs], "All runs", note)


# Drawings.


def draw(results: Results) -> dict[str, tuple[str, str]]:
    """Draw curves, scores and profiles, as (caption, SVG) by name."""
    aggregates = results.aggregates
    colours = {method: i for i, method in enumerate(results.methods)}
    drawings: dict[str, tuple[str, str]] = {}
    curves: dict[str, list[Line]] = {}
    for curve in aggregates.curves:
        if curve.points:
            line = Line(curve.method, colours[curve.method], curve.points)
            curves.setdefault(curve.world, []).append(line)
    if curves:
        curve = results.identity.curve
        shown = {SUCCESS: "Success on the panel", "return": "Return on the panel"}.get(curve, curve)
        caption = f"{shown}: interquartile mean over seeds, 95 % bootstrap interval"
        drawings["curves"] = (caption, lines_svg(curves, "environment steps", "curves"))
    for score, caption in (("success", "Success at the end"), ("area", "Area under the curve")):
        bars: dict[str, list[Bar]] = {}
        for each in aggregates.summaries:
            bar = Bar(each.method, colours[each.method], *getattr(each, score))
            bars.setdefault(each.world, []).append(bar)
        if bars:
            caption += ": interquartile mean, 95 % bootstrap interval"
            drawings[score] = (caption, bars_svg(bars, score))
    lines = [Line(method, colour, _by_scale(results, method)) for method, colour in colours.items()]
    lines = [line for line in lines if line.points]
    if lines:
        caption = f"Area under the curve by {results.scale.label}"
        svg = lines_svg({"area under the curve": lines}, results.scale.label, "scale", log=True)
        drawings["scale"] = (caption, svg)
    profiles = [Line(p.method, colours[p.method], p.points) for p in aggregates.profiles]
    if profiles:
        caption = "Performance profile: share of runs, over all worlds, whose success is above"
        drawings["profile"] = (caption, lines_svg({"all worlds": profiles}, "success", "profile"))
    return drawings


def _by_scale(results: Results, method: str) -> list[tuple[float, float, float, float]]:
    """A method's area under the curve, by the place of each world on the study's scale."""
    return sorted(
        (results.scale.at[each.world], *each.area)
        for each in results.aggregates.summaries
        if each.method == method and each.world in results.scale.at
    )


# Markdown and HTML.


def _facts(results: Results) -> list[str]:
    """Sentences about the size, cost and origin of the results."""
    identity, cost, panel = results.identity, results.cost, results.identity.panel
    missing = len(results.missing)
    budget = f" of a budget of {cost.budget_minutes:g}" if cost.budget_minutes else ""
    count = len(results.runs)
    facts = [
        f"These numbers come from {count} runs; {missing} more are missing and listed at the end."
        if missing
        else f"These numbers come from all {count} runs.",
        f"Each was evaluated on {panel.episodes} episodes with seeds from {panel.seed:,} on. "
        f"Everything together took {cost.cpu_minutes:.1f} CPU minutes{budget}.",
        f"The identity of this study is {identity.hash}. Compare its tables with those of another "
        "identity only if `poad study --compare` finds them comparable.",
    ]
    for versions in identity.versions:
        listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        facts.append(f"Versions: {listed}.")
    if len(identity.versions) > 1:
        facts.append("Careful: the runs were made with different versions.")
    if results.toy:
        facts.insert(0, "This study ran at toy size: its numbers mean nothing.")
    return facts


def _markdown(results: Results, drawings: Drawings) -> str:
    parts = [f"# Study: {results.study}", results.question, *_facts(results)]
    parts += [f"![{caption}]({name}.svg)" for name, (caption, _) in drawings.items()]
    parts += [table.to_markdown() for table in (*tables(results), _runs(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _html(results: Results, drawings: Drawings) -> str:
    title = f"Study: {results.study}"
    body = [tag("h1", title), tag("p", results.question)]
    body += [tag("p", fact, cls="soft") for fact in _facts(results)]
    for caption, svg in drawings.values():
        body += [tag("h2", caption), tag("figure", Html(svg))]
    for table in tables(results):
        body += table.to_html()
    runs = _runs(results)
    body.append(tag("details", tag("summary", runs.title), *replace(runs, title="").to_html()))
    identity = json.dumps(encode(results.identity), indent=1)
    for name, text in (("Study file", results.file), ("Identity", identity)):
        body.append(tag("details", tag("summary", name), tag("pre", text)))
    return page(title, body)
