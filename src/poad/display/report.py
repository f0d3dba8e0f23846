"""A run as one page: ``report.html`` needs no network, no other file, and no finished run.

It reads only what :class:`poad.runs.run.Run` has written. Every text that comes from a run passes
through :func:`tag`, which escapes it.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poad.config import dump
from poad.display.plots import curve_svg
from poad.errors import RunError
from poad.runs import Run, write_text
from poad.stats import wilson_interval

MAX_TURNS = 40
MAX_OFFERED = 8
_SMALL_PANELS = {
    "entropy": "Entropy per decision",
    "kl": "KL per update",
    "explained_variance": "Critic: explained variance",
    "value_loss": "Critic: value loss",
}


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the run's directory and return its path.

    An unfinished run is reported as far as it went.

    Raises:
        RunError: the page cannot be written.
    """
    metrics = run.metrics()
    evaluations, example = _examine(run)
    title = f"{run.config.env} by {run.config.credit.method}, seed {run.config.seed}"
    body = [
        tag("h1", title),
        tag("p", _status(run, metrics), cls="soft"),
        _cards(metrics, evaluations),
        *_curves(metrics, evaluations),
        *_evaluation_table(evaluations),
        *(_episode(example) if example else []),
        tag("h2", "How it was made"),
        tag("details", tag("summary", "Configuration"), tag("pre", dump(run.config))),
        tag(
            "details", tag("summary", "Versions"), tag("pre", json.dumps(run.versions(), indent=2))
        ),
    ]
    path = run.path / "report.html"
    try:
        write_text(path, page(title, body))
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


# HTML. A plain string is text and gets escaped; only Html is markup.


class Html(str):
    """Markup that is already safe."""


def tag(name: str, *children: str, cls: str = "", **attributes: str) -> Html:
    """An HTML element; children and attribute values that are not :class:`Html` are escaped."""
    attributes = {"class": cls, **attributes} if cls else attributes
    written = "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items())
    inner = "".join(c if isinstance(c, Html) else html.escape(c, quote=False) for c in children)
    return Html(f"<{name}{written}>{inner}</{name}>")


def page(title: str, body: Iterable[Html]) -> str:
    """A whole page that fetches nothing and runs nothing."""
    css = (Path(__file__).with_name("report.css")).read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched, nothing runs
    text = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            tag("title", title),
            f"<style>\n{css}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )
    return text.encode("utf-8", "xmlcharrefreplace").decode("utf-8")


# Evaluations, from the episodes themselves.


@dataclass
class _Evaluation:
    """The episodes that one checkpoint played in one way; a seed played again counts once."""

    checkpoint: int | None
    mode: str
    env: str
    outcomes: dict[int, tuple[bool, float, float]] = field(default_factory=dict)
    """(success, return, length) by seed."""

    @property
    def rate(self) -> float:
        return sum(success for success, _, _ in self.outcomes.values()) / len(self.outcomes)

    @property
    def interval(self) -> tuple[float, float]:
        wins = sum(success for success, _, _ in self.outcomes.values())
        return wilson_interval(wins, len(self.outcomes))

    def mean(self, index: int) -> float:
        return sum(float(o[index]) for o in self.outcomes.values()) / len(self.outcomes)


def _examine(run: Run) -> tuple[list[_Evaluation], dict[str, Any] | None]:
    """All evaluations, the run's own world and newest checkpoint first, and the episode to show.

    The episode is the newest checkpoint's first one, sampled if there is one: not a chosen one.
    """
    found: dict[tuple[Any, ...], _Evaluation] = {}
    home = _world(run.config.env, run.config.env_args)
    example, best = None, None
    for record in run.episodes():
        world = _world(record["env"], record.get("env_args") or {})
        key = (record["checkpoint"], record["mode"], world)
        evaluation = found.setdefault(key, _Evaluation(*key))
        evaluation.outcomes[record["seed"]] = (
            bool(record["success"]),
            _number(record["return"]),
            _number(record["length"]),
        )
        rank = (
            world == home,
            _order(record["checkpoint"]),
            record["mode"] == "sampled",
            -record["seed"],
        )
        if record["turns"] and (best is None or rank >= best):
            example, best = record, rank

    def place(e: _Evaluation) -> tuple[bool, str, int, bool]:
        return e.env != home, e.env, -_order(e.checkpoint), e.mode != "sampled"

    return sorted(found.values(), key=place), example


def _world(env: str, env_args: Mapping[str, Any]) -> str:
    """A world's name with its arguments; with others it is another world."""
    return " ".join([env, *(f"{name}={value}" for name, value in sorted(env_args.items()))])


def _order(checkpoint: int | None) -> int:
    return -1 if checkpoint is None else checkpoint


def _evaluation_table(evaluations: Sequence[_Evaluation]) -> list[Html]:
    if not evaluations:
        return []
    several = len({e.env for e in evaluations}) > 1
    head = ["checkpoint", "actions", "episodes", "success", "95 % interval", "return", "length"]
    rows = [tag("tr", *(tag("th", name) for name in [*(["world"] if several else []), *head]))]
    for e in evaluations:
        low, high = e.interval
        cells = [
            "untrained" if e.checkpoint is None else str(e.checkpoint),
            e.mode,
            f"{len(e.outcomes):,}",
            _percent(e.rate),
            f"{_percent(low)} – {_percent(high)}",
            f"{e.mean(1):.3f}",
            f"{e.mean(2):.1f}",
        ]
        rows.append(
            tag("tr", *(tag("td", cell) for cell in [*([e.env] if several else []), *cells]))
        )
    note = (
        "Success is the share of episodes; the interval is Wilson's. A greedy agent without memory "
        "can loop for ever where a sampled one gets through, so both are reported."
    )
    table = tag("div", tag("table", *rows), cls="scroll")
    return [tag("h2", "Evaluation"), table, tag("p", note, cls="soft key")]


# The top of the page.


def _status(run: Run, metrics: Sequence[Mapping[str, float]]) -> str:
    state = (run.summary() or {"status": "unfinished"}).get("status", "finished")
    if state == "finished":
        return f"Run {run.path.name}, finished."
    done = f"{metrics[-1]['env_steps']:,.0f}" if metrics else "0"
    return f"Run {run.path.name}, {state}: {done} of {run.config.steps:,} environment steps."


def _cards(metrics: Sequence[Mapping[str, float]], evaluations: Sequence[_Evaluation]) -> Html:
    last = metrics[-1] if metrics else {}
    cards: list[tuple[str, str, str]] = []
    newest = [
        e
        for e in evaluations
        if (e.checkpoint, e.env) == (evaluations[0].checkpoint, evaluations[0].env)
    ]
    for e in newest:
        low, high = e.interval
        note = f"95 %: {_percent(low)} – {_percent(high)}, {len(e.outcomes):,} episodes"
        cards.append((f"success, {e.mode}", _percent(e.rate), note))
    if evaluations:
        first = evaluations[0]
        cards.append(("mean return", f"{first.mean(1):.3f}", f"{first.mode} episodes"))
    elif metrics:
        note = "last 100 training episodes"
        cards.append(("success, training", _percent(last.get("success", math.nan)), note))
        cards.append(("mean return", _short(last.get("return", math.nan)), note))
    if metrics:
        steps = f"{last.get('env_steps', math.nan):,.0f}"
        cards.append(("env steps", steps, f"{last.get('episodes', 0):,.0f} episodes"))
        cards.append(("CPU seconds", _short(last.get("cpu_seconds", math.nan)), "collect + update"))
        cards.append(
            ("wall seconds", _short(last.get("wall_seconds", math.nan)), "since the start")
        )
    made = [
        tag("div", tag("span", name), tag("b", value), tag("span", note), cls="card")
        for name, value, note in cards
    ]
    return tag("div", *made, cls="cards")


# Curves.


def _curves(
    metrics: Sequence[Mapping[str, float]], evaluations: Sequence[_Evaluation]
) -> list[Html]:
    if not metrics:
        return [tag("p", "No training iteration has been logged yet.", cls="soft")]
    steps_at = {int(m["iteration"]): m["env_steps"] for m in metrics}
    dots = [
        (steps_at[e.checkpoint], e.rate, *e.interval)
        for e in evaluations
        if e.mode == "sampled" and e.env == evaluations[0].env and e.checkpoint in steps_at
    ]
    mean = "last 100 training episodes, dotted before the 100th"
    success = mean + ("; dots: evaluation, 95 %" if dots else "")
    large = [
        _figure("Success", success, curve_svg(metrics, "success", limits=(0, 1), dots=dots)),
        _figure("Return", mean, curve_svg(metrics, "return")),
    ]
    small = [
        _figure(name, "", curve_svg(metrics, key, size=(2.8, 1.6)))
        for key, name in _SMALL_PANELS.items()
    ]
    return [
        tag("h2", "Learning, by environment steps"),
        tag("div", *large, cls="figures"),
        tag("div", *small, cls="figures small"),
    ]


def _figure(name: str, note: str, svg: str) -> Html:
    small = [tag("small", f" {note}")] if note else []
    drawing = Html(svg) if svg else tag("p", "Nothing to draw yet.", cls="soft")
    return tag("figure", tag("figcaption", name, *small), drawing)


# One episode, turn by turn.


def _episode(record: Mapping[str, Any]) -> list[Html]:
    turns = record["turns"]
    checkpoint = record["checkpoint"]
    agent = "the untrained agent" if checkpoint is None else f"checkpoint {checkpoint}"
    outcome = "success" if record["success"] else "no success"
    title = f"One episode: seed {record['seed']}, {record['mode']} actions of {agent}"
    story = (
        f"{outcome.capitalize()} ({record['ending']}) after {len(turns)} turns, return "
        f"{_short(record['return'])}. The first episode of the evaluation, not a chosen one."
    )
    legend = tag(
        "p",
        "Below each action: its tokens. A framed token was a decision, shaded by its "
        "probability p; a dashed one was forced. V is what the critic thought before the token was "
        "written; in brackets where nothing was to decide, for only methods that count every token "
        "teach the critic there.",
        cls="soft key",
    )
    shown = [_turn(turn, number) for number, turn in enumerate(turns[:MAX_TURNS], 1)]
    if len(turns) > MAX_TURNS:
        shown.append(tag("p", f"… and {len(turns) - MAX_TURNS} more turns.", cls="soft"))
    return [tag("h2", title), tag("p", story), legend, *shown]


def _turn(turn: Mapping[str, Any], number: int) -> Html:
    reward = _number(turn["reward"])
    facts = [
        tag("b", f"Turn {number}"),
        tag("span", "reward ", tag("b", f"{reward:+.3g}", cls=_sign(reward))),
        tag("span", f"value of the prompt {_short(turn['root_value'])}"),
    ]
    if turn["duration"] != 1:
        facts.append(tag("span", f"{turn['duration']} primitive steps"))
    if turn["invalid"]:
        facts.append(tag("b", "not an offered action", cls="loss"))
    written = [] if turn["offered"] else [tag("pre", turn["action"])]
    return tag(
        "article",
        tag("header", *facts),
        tag("pre", turn["prompt"]),
        *_offered(turn),
        *written,
        _tokens(turn),
        cls="turn",
    )


def _sign(reward: float) -> str:
    return "gain" if reward > 0 else "loss" if reward < 0 else ""


def _offered(turn: Mapping[str, Any]) -> list[Html]:
    offered = sorted(turn["offered"] or [], key=lambda pair: -_number(pair[1]))
    chosen = [pair for pair in offered if pair[0] == turn["action"]]
    others = [pair for pair in offered if pair[0] != turn["action"]]
    top = offered if len(offered) <= MAX_OFFERED + 1 else others[: MAX_OFFERED - 1] + chosen
    top = sorted(top, key=lambda pair: -_number(pair[1]))
    rest = [pair for pair in others if pair not in top]
    parts = [tag("div", *_bars(top, turn["action"]), cls="offer")] if top else []
    if rest:
        share = _percent(sum(_number(p) for _, p in rest))
        summary = tag("summary", f"{len(rest)} more offered actions, {share} together")
        bars = tag("div", *_bars(rest, turn["action"]), cls="offer")
        parts.append(tag("details", summary, bars))
    return parts


def _bars(pairs: Iterable[Sequence[Any]], action: str) -> list[Html]:
    cells: list[Html] = []
    for text, probability in pairs:
        is_chosen = text == action
        mark, cls = ("▸ ", "chosen") if is_chosen else ("", "other")
        bar = tag("i", style=f"width:{100 * min(max(_number(probability), 0.0), 1.0):.2f}%")
        cells.append(tag("span", mark + text, cls=f"text {cls}"))
        cells.append(tag("i", bar, cls=cls))
        cells.append(tag("span", _percent(_number(probability)), cls=f"right {cls}"))
    return cells


def _tokens(turn: Mapping[str, Any]) -> Html:
    chips: list[Html] = []
    columns = zip(turn["pieces"], turn["choice"], turn["logprob"], turn["value"], strict=True)
    for piece, choice, logprob, value in columns:
        p = math.exp(min(_number(logprob), 0.0)) if math.isfinite(_number(logprob)) else 0.0
        text = piece.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") or "∅"
        chips.append(
            tag(
                "span",
                tag("span", text, cls="piece", style=f"--p:{p:.3f}"),
                tag("small", f"p {p:.2f}" if choice else "forced"),
                tag("small", f"V {_short(value)}" if choice else f"(V {_short(value)})"),
                cls="token" if choice else "token forced",
            )
        )
    return tag("div", *chips, cls="tokens")


# Numbers.


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _short(value: Any) -> str:
    number = _number(value)
    if not math.isfinite(number):
        return "–"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(value) else "–"
