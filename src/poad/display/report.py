"""The report of a run: one HTML page that needs no network, no other file and no finished run.

It reads only what :class:`poad.runs.Run` has written. All text goes through
:func:`poad.display.html.tag`, which escapes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from poad.config import dump, write_value
from poad.display.html import Html, page, tag
from poad.display.numbers import bounds, compact, number, percent
from poad.display.plots import curve_svg
from poad.display.tables import Table, evaluation_table
from poad.display.turns import describe_ending, turn_in_html
from poad.errors import RunError
from poad.runs import EpisodeRecord, Evaluation, Mode, Run, summarize, write_text
from poad.turns import Episode

MAX_TURNS = 40
_SMALL_PANELS = {
    "entropy": "Entropy per decision",
    "kl": "KL per update",
    "explained_variance": "Critic: explained variance",
    "value_loss": "Critic: value loss",
}


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run's directory and return its path.

    The report of an unfinished run covers what exists so far.

    Raises:
        RunError: a record cannot be read, or the page cannot be written.
    """
    metrics = run.metrics()
    evaluations, example = _evaluations(run)
    title = f"{run.config.env} by {run.config.credit.method}, seed {run.config.seed}"
    versions = json.dumps(run.versions(), indent=2)
    body = [
        tag("h1", title),
        tag("p", _status(run, metrics), cls="soft"),
        _cards(metrics, evaluations),
        *_curves(metrics, evaluations),
        *_evaluation_table(evaluations),
        *(_episode(example) if example else []),
        tag("h2", "Configuration and versions"),
        tag("details", tag("summary", "Configuration"), tag("pre", dump(run.config))),
        tag("details", tag("summary", "Versions"), tag("pre", versions)),
    ]
    path = run.path / "report.html"
    try:
        write_text(path, page(title, body))
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


# Evaluations, computed from the episodes.


class _Evaluation(NamedTuple):
    """What one checkpoint achieved in one mode; a repeated seed counts once."""

    checkpoint: int | None
    mode: Mode
    world: str
    result: Evaluation


def _evaluations(run: Run) -> tuple[list[_Evaluation], EpisodeRecord | None]:
    """All evaluations, the run's own world and newest checkpoint first, and the episode to show.

    That episode is the newest checkpoint's first one, sampled if there is one; it is not selected
    by its outcome.
    """
    found: dict[tuple[int | None, Mode, str], dict[int, Episode]] = {}
    home = _world(run.config.env, run.config.env_args)
    example, highest = None, None
    for record in run.episodes():
        world = _world(record.env, record.env_args)
        outcome = Episode(record.episode_return, record.length, record.success)
        found.setdefault((record.checkpoint, record.mode, world), {})[record.seed] = outcome
        rank = (world == home, _age(record.checkpoint), record.mode == "sampled", -record.seed)
        if record.turns and (highest is None or rank >= highest):
            example, highest = record, rank
    evaluations = [_Evaluation(*key, summarize(each.values())) for key, each in found.items()]
    evaluations.sort(
        key=lambda e: (e.world != home, e.world, -_age(e.checkpoint), e.mode != "sampled")
    )
    return evaluations, example


def _world(env: str, env_args: Mapping[str, Any]) -> str:
    """A world's name with its arguments, which make it another world."""
    told = (f"{name}={write_value(value)}" for name, value in sorted(env_args.items()))
    return " ".join([env, *told])


def _age(checkpoint: int | None) -> int:
    return -1 if checkpoint is None else checkpoint


def _evaluation_table(evaluations: Sequence[_Evaluation]) -> list[Html]:
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
    return Table(columns, rows, title="Evaluation", note=note).to_html()


# The top of the page.


def _status(run: Run, metrics: Sequence[Mapping[str, float]]) -> str:
    summary = run.summary()
    state = "unfinished" if summary is None else summary.status
    if state == "finished":
        return f"Run {run.path.name}, finished."
    done = f"{metrics[-1]['env_steps']:,.0f}" if metrics else "0"
    return f"Run {run.path.name}, {state}: {done} of {run.config.steps:,} environment steps."


def _cards(metrics: Sequence[Mapping[str, float]], evaluations: Sequence[_Evaluation]) -> Html:
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


# Curves.


def _curves(
    metrics: Sequence[Mapping[str, float]], evaluations: Sequence[_Evaluation]
) -> list[Html]:
    if not metrics:
        return [tag("p", "No training iteration has been logged yet.", cls="soft")]
    steps_at = {int(m["iteration"]): m["env_steps"] for m in metrics}
    dots: list[tuple[float, float, float, float]] = []
    for e in evaluations:
        at_home = e.mode == "sampled" and e.world == evaluations[0].world
        if at_home and e.checkpoint in steps_at and e.result.success_interval:
            steps = steps_at[e.checkpoint]
            dots.append((steps, e.result.success_rate, *e.result.success_interval))
    mean = "mean of the last 100 training episodes, dotted before the 100th"
    success = mean + ("; dots: evaluations with 95 % intervals" if dots else "")
    large = [
        _figure("Success", success, curve_svg(metrics, "success", limits=(0, 1), dots=dots)),
        _figure("Return", mean, curve_svg(metrics, "return")),
    ]
    small = [
        _figure(name, "", curve_svg(metrics, key, size=(2.8, 1.6)))
        for key, name in _SMALL_PANELS.items()
    ]
    return [
        tag("h2", "Learning curves, by environment steps"),
        tag("div", *large, cls="figures"),
        tag("div", *small, cls="figures small"),
    ]


def _figure(name: str, note: str, svg: str) -> Html:
    small = [tag("small", f" {note}")] if note else []
    drawing = Html(svg) if svg else tag("p", "Nothing to draw yet.", cls="soft")
    return tag("figure", tag("figcaption", name, *small), drawing)


# One episode, turn by turn.


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
