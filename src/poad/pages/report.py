"""The report of one run or several: one page that needs no network and no finished run.

It reads only what :class:`poad.runs.Run` has written. All text goes through
:func:`poad.display.tag`, which escapes it, or into the page's JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from poad.config import dump
from poad.display import (
    Html,
    Table,
    bounds,
    compact,
    describe_ending,
    evaluation_table,
    number,
    page,
    percent,
    printable,
    stylesheet,
    tag,
    turn_in_html,
)
from poad.errors import RunError
from poad.pages.compare import (
    Played,
    age,
    names,
    pairs_table,
    played,
    results_table,
    settings_table,
    versions_table,
    world_of,
)
from poad.pages.template import embed, render, rounded, style
from poad.runs import EpisodeRecord, Run, write_text

MAX_TURNS = 40
MAX_POINTS = 1500
"""Of a longer run, this many iterations are drawn, evenly spaced, with the last one."""
EARLY_EPISODES = 100
"""Success and return are means over this many training episodes. The first to end are short and
mostly successful, so the mean over fewer flatters the agent and is drawn dotted."""
X = ("env_steps", "tokens", "wall_seconds", "cpu_seconds", "iteration")
"""The metrics that a curve can be drawn against."""
SCRIPTS = ("elements.js", "report.js")


class _Panel(NamedTuple):
    key: str
    label: str
    note: str = ""
    limits: tuple[float, float] | None = None


_MEAN = "mean of the last 100 training episodes, dotted before the 100th"
_DOTS = "; dots: evaluations with 95 % intervals"
_PLACE = {
    "root": "before the action",
    "second": "after the first choice",
    "later": "later choices",
    "last": "before the last choice",
}
_GROUPS: Mapping[str, Sequence[_Panel]] = {
    "Learning": (
        _Panel("success", "Success", _MEAN + _DOTS, (0, 1)),
        _Panel("return", "Return", _MEAN),
        _Panel("reward", "Reward", "mean per turn of the rollout"),
    ),
    "Policy": (
        _Panel("entropy", "Entropy per decision", "nats"),
        _Panel("kl", "KL per update"),
        _Panel("clip_fraction", "Clip fraction", "share of ratios outside the clip range"),
        _Panel("kl_after", "KL after the update", "over the whole rollout"),
        _Panel("kl_reference", "KL to the untrained model"),
        _Panel("grad_norm", "Gradient norm", "before clipping"),
        _Panel("length", "Length of episodes", "mean of the last 100"),
    ),
    "Critic": (
        _Panel("explained_variance", "Explained variance", "before the update"),
        _Panel("value_loss", "Value loss"),
        _Panel("advantage_std", "Spread of advantages", "before normalization"),
        _Panel("lam_actor", "λ", "inside actions, as chosen"),
    ),
    "Critic, by place in the action": (
        *(_Panel(f"explained_variance_{k}", "Explained variance", v) for k, v in _PLACE.items()),
        *(_Panel(f"value_bias_{k}", "Bias: value − target", v) for k, v in _PLACE.items()),
    ),
    "Speed": (
        _Panel("steps_per_second", "Steps per second"),
        _Panel("collect_seconds", "Seconds of collecting", "per iteration"),
        _Panel("update_seconds", "Seconds of updating", "per iteration"),
        _Panel("logprob_drift_mean", "Drift of log-probabilities", "sampler and learner, mean"),
    ),
}


_NO_SCRIPT = "The curves need JavaScript, which is turned off in this browser."
_OFF_AT_0, _ALWAYS = "kl_reference", ("success", "return")


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run's directory and return its path.

    The report of an unfinished run covers what exists so far.

    Raises:
        RunError: a record cannot be read, or the page cannot be written.
    """
    path = run.path / "report.html"
    write_page(path, report_page([run]))
    return path


def write_page(path: Path, page: str) -> None:
    """Write a page, or leave the one that was there.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_text(path, page)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error


def live_data(path: Path) -> str:
    """Write what the curves of a run show now, as JSON, for a page that is served.

    Raises:
        RunError: a record cannot be read, perhaps because it is just being written.
    """
    run = _open_settled(path)
    metrics = run.metrics()
    data = _data([run], [metrics], [played(run)])
    return embed({**data, "status": printable(_status(run, metrics))})


def live_page(path: Path) -> str:
    """Build the report of a run that is going on; its script asks for `live_data` again and again.

    Raises:
        RunError: as `live_data`.
    """
    return report_page([_open_settled(path)], live=True)


def _open_settled(path: Path) -> Run:
    """Open a run that another thread writes to, unless a line is only half written now."""
    for name in ("metrics.jsonl", "episodes.jsonl"):
        file = path / name
        if file.is_file() and file.stat().st_size:
            with file.open("rb") as content:
                content.seek(-1, os.SEEK_END)
                if content.read(1) != b"\n":
                    raise RunError(f"{file} is just being written.")
    return Run.open(path)


def report_page(runs: Sequence[Run], place: Path | None = None, *, live: bool = False) -> str:
    """Build the report of one run or several.

    Args:
        runs: at least one.
        place: where the page will lie, for links to the runs' inspectors; the run's own directory
            if None.
        live: whether the page is served, and its script may ask for new data.

    Raises:
        RunError: a record cannot be read.
    """
    title = _title(runs)
    metrics, evaluations = [run.metrics() for run in runs], [played(run) for run in runs]
    body = [tag("h1", title)]
    body += [
        tag("p", _status(*pair), cls="soft status") for pair in zip(runs, metrics, strict=True)
    ]
    if len(runs) == 1:
        body.append(_cards(metrics[0], evaluations[0]))
    else:
        body += results_table(runs).to_html()
        body += pairs.to_html() if (pairs := pairs_table(runs)).rows else []
        body += _differences(runs)
    body += [tag("div", id="controls"), tag("div", id="runs"), tag("div", id="curves")]
    body.append(tag("noscript", tag("p", _NO_SCRIPT)))
    for name, run, each in zip(names(runs), runs, evaluations, strict=True):
        body += _evaluation_table(each, f"Evaluation of {name}" if len(runs) > 1 else "Evaluation")
        if not live:  # the server has this page alone
            body.append(_inspector_link(run, place))
    if len(runs) == 1 and (example := _example(runs[0])) is not None:
        body += _episode(example)
    body += _details(runs)
    return render(
        "report.html.j2",
        title,
        embed(_data(runs, metrics, evaluations) | {"live": str(runs[0].path) if live else ""}),
        css=f"{stylesheet()}\n{style('report.css')}",
        scripts=SCRIPTS,
        body="\n".join(body),
        live=live,
    )


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        config = runs[0].config
        return f"{config.env} by {config.credit.method}, seed {config.seed}"
    worlds = dict.fromkeys(run.config.env for run in runs)
    return f"{len(runs)} runs in {', '.join(worlds)}"


# What the script draws.


def _data(
    runs: Sequence[Run],
    metrics: Sequence[Sequence[Mapping[str, float]]],
    evaluations: Sequence[Sequence[Played]],
) -> dict[str, Any]:
    drawn = [_thinned(each) for each in metrics]
    known = {key for each in drawn for m in each for key, v in m.items() if math.isfinite(v)}
    if not any(m.get(_OFF_AT_0) for each in drawn for m in each):
        known.discard(_OFF_AT_0)
    worlds = tuple(_Panel(key, printable(key)) for key in sorted(known) if key.startswith("world/"))
    groups = {
        name: [panel for panel in panels if panel.key in known]
        for name, panels in (*_GROUPS.items(), ("The world's own measures", worlds))
    }
    if any(metrics):
        groups["Learning"] = [p for p in _GROUPS["Learning"] if p.key in {*known, *_ALWAYS}]
    keys = [panel.key for panels in groups.values() for panel in panels]
    return {
        "groups": [
            {"name": name, "large": name == "Learning", "panels": [_panel(p) for p in panels]}
            for name, panels in groups.items()
            if panels
        ],
        "runs": [
            _curves(name, run, each, evaluated, keys)
            for name, run, each, evaluated in zip(
                names(runs), runs, drawn, evaluations, strict=True
            )
        ],
    }


def _panel(panel: _Panel) -> dict[str, Any]:
    averaged = panel.note.startswith(_MEAN)
    return {**panel._asdict(), "key": printable(panel.key), "averaged": averaged}


def _thinned(metrics: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    step = max(1, math.ceil(len(metrics) / MAX_POINTS))
    return [m for i, m in enumerate(metrics) if i % step == 0 or i == len(metrics) - 1]


def _curves(
    name: str,
    run: Run,
    metrics: Sequence[Mapping[str, float]],
    evaluations: Sequence[Played],
    keys: Sequence[str],
) -> dict[str, Any]:
    """The columns of one run, and its evaluations as dots."""

    def column(key: str) -> list[float | None]:
        return [rounded(m.get(key, math.nan)) for m in metrics]

    at = {int(m["iteration"]): i for i, m in enumerate(metrics)}
    home = world_of(run.config.env, run.config.env_args)
    dots: list[dict[str, Any]] = []
    for each in evaluations:
        result = each.result
        sampled = each.mode == "sampled" and each.world == home
        if sampled and each.checkpoint in at and result.success_interval:
            low, high = result.success_interval
            rate = result.success_rate
            dots.append({"at": at[each.checkpoint], "y": rate, "low": low, "high": high})
    return {
        "name": printable(name),
        "x": {key: column(key) for key in X},
        "y": {printable(key): column(key) for key in keys},
        "early": sum(m.get("episodes", 0) < EARLY_EPISODES for m in metrics),
        "evaluations": dots,
    }


# Tables.


def _differences(runs: Sequence[Run]) -> list[Html]:
    parts = [tag("h2", "What differs")]
    settings, versions = settings_table(runs), versions_table(runs)
    same = "All settings are the same."
    parts += settings.to_html() if settings.rows else [tag("p", same, cls="soft")]
    if versions.rows:
        note = tag("p", "They were made with different versions:", cls="soft")
        parts += [note, *versions.to_html()]
    return parts


def _inspector_link(run: Run, place: Path | None) -> Html:
    """Link to the page of `poad inspect`, or say how to make it."""
    page = run.path / "inspect.html"
    if not page.is_file():
        command = f"poad inspect {run.path}"
        return tag("p", "Token by token: ", tag("code", command), cls="soft")
    if place is None:
        target = "inspect.html"
    else:
        try:
            target = page.resolve().relative_to(place.resolve().parent).as_posix()
        except ValueError:
            target = page.resolve().as_uri()
    return tag("p", tag("a", f"Episodes of {run.path.name}, token by token", href=target))


def _details(runs: Sequence[Run]) -> list[Html]:
    parts = [tag("h2", "Configuration and versions")]
    for name, run in zip(names(runs), runs, strict=True):
        of = f" of {name}" if len(runs) > 1 else ""
        versions = json.dumps(run.versions(), indent=2)
        for what, text in (("Configuration", dump(run.config)), ("Versions", versions)):
            parts.append(tag("details", tag("summary", what + of), tag("pre", text)))
    return parts


def _evaluation_table(evaluations: Sequence[Played], title: str) -> list[Html]:
    if not evaluations:
        return []
    table = evaluation_table([(e.mode, e.result) for e in evaluations])
    columns, rows = ["checkpoint", *table.columns], []
    several = len({e.world for e in evaluations}) > 1
    for e, cells in zip(evaluations, table.rows, strict=True):
        checkpoint = "untrained" if e.checkpoint is None else str(e.checkpoint)
        rows.append([e.world] * several + [checkpoint, *cells])
    note = (
        "Success is the share of successful episodes, with its Wilson interval. A greedy agent "
        "without memory can repeat itself for ever in a state that a sampled agent leaves, so both "
        "are reported."
    )
    columns = ["world"] * several + columns
    return Table(columns, rows, title=title, note=note).to_html()


# The top of the page.


def _status(run: Run, metrics: Sequence[Mapping[str, float]]) -> str:
    summary = run.summary()
    state = "unfinished" if summary is None else summary.status
    if state == "finished":
        return f"Run {run.path.name}, finished."
    done = f"{metrics[-1]['env_steps']:,.0f}" if metrics else "0"
    return f"Run {run.path.name}, {state}: {done} of {run.config.steps:,} environment steps."


def _cards(metrics: Sequence[Mapping[str, float]], evaluations: Sequence[Played]) -> Html:
    cards: list[tuple[str, str, str]] = []
    for e in evaluations:
        if (e.checkpoint, e.world) == (evaluations[0].checkpoint, evaluations[0].world):
            note = f"95 %: {bounds(e.result.success_interval)}, {e.result.episodes:,} episodes"
            cards.append((f"success, {e.mode}", percent(e.result.success_rate), note))
    last = metrics[-1] if metrics else {}
    if evaluations:
        first = evaluations[0]
        cards.append(("mean return", number(first.result.mean_return), f"{first.mode} episodes"))
    elif metrics:
        note = "last 100 training episodes"
        cards.append(("success, training", percent(last.get("success")), note))
        cards.append(("mean return", compact(last.get("return")), note))
    if metrics:
        steps = number(last.get("env_steps"), ",.0f")
        cards.append(("env steps", steps, f"{last.get('episodes', 0):,.0f} episodes"))
        cards.append(("CPU seconds", compact(last.get("cpu_seconds")), "collecting and updating"))
        cards.append(("wall seconds", compact(last.get("wall_seconds")), "since the start"))
    elements = [
        tag("div", tag("span", name), tag("b", value), tag("span", note), cls="card")
        for name, value, note in cards
    ]
    return tag("div", *elements, cls="cards")


# One episode, turn by turn.


def _example(run: Run) -> EpisodeRecord | None:
    """The newest checkpoint's first episode, sampled if there is one, whatever its outcome."""
    home = world_of(run.config.env, run.config.env_args)
    example, highest = None, None
    for record in run.episodes():
        world = world_of(record.env, record.env_args)
        rank = (world == home, age(record.checkpoint), record.mode == "sampled", -record.seed)
        if record.turns and (highest is None or rank >= highest):
            example, highest = record, rank
    return example


def sample_page(run: Run, checkpoint: int, episodes: int = 3) -> str | None:
    """Build a page of a checkpoint's first sampled episodes, with shaded tokens, for trackers.

    Returns:
        A whole page without scripts; None if no turns were recorded.
    """
    found = (
        record
        for record in run.episodes()
        if record.turns and (record.checkpoint, record.mode) == (checkpoint, "sampled")
    )
    shown = [part for record in islice(found, episodes) for part in _episode(record)]
    return page("Sample episodes", shown) if shown else None


def _episode(record: EpisodeRecord) -> list[Html]:
    trained = f"checkpoint {record.checkpoint}"
    agent = "the untrained agent" if record.checkpoint is None else trained
    title = f"One episode: seed {record.seed}, {record.mode} actions of {agent}"
    outcome, ending = describe_ending(record)
    story = f"{outcome}: {ending}. It is the first episode of the evaluation, whatever its outcome."
    legend = (
        "The tokens of each action stand below it. A framed token was a decision and is shaded by "
        "its probability; a dashed token was forced, because no other could have stood there. V is "
        "the critic's value before the token. It is in brackets at forced tokens, where only "
        "methods that count every token train the critic."
    )
    turns = record.turns[:MAX_TURNS]
    shown = [turn_in_html(turn, index) for index, turn in enumerate(turns, 1)]
    if len(record.turns) > MAX_TURNS:
        more = len(record.turns) - MAX_TURNS
        shown.append(tag("p", f"… and {more} more turns.", cls="soft"))
    return [tag("h2", title), tag("p", story), tag("p", legend, cls="soft key"), *shown]
