"""A recorded turn, rendered for the terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as Grid
from rich.text import Text

from poad.display.clean import in_a_line, printable
from poad.display.html import Html, tag
from poad.display.numbers import compact, counted, number, percent
from poad.runs import EpisodeRecord, TurnRecord

TOKENS_SHOWN = 16
"""In a terminal, more tokens of a freely written action than these are summed up."""
OFFERS_SHOWN = 8
"""How many of the likeliest offered actions are shown before the rest is summed up."""


class Offer(NamedTuple):
    """An offered action."""

    action: str
    probability: float
    chosen: bool


class Token(NamedTuple):
    """A token of the written action."""

    piece: str
    probability: float | None
    """None where no other token could have stood."""
    value: str
    """The critic's value before the token, in brackets where the token was forced."""


def _offers(turn: TurnRecord) -> tuple[list[Offer], list[Offer]]:
    """The likeliest offered actions with the chosen one, and all others."""
    pairs = sorted(turn.offered or (), key=lambda pair: -_known(pair[1]))
    offers = [Offer(action, chance, action == turn.action) for action, chance in pairs]
    shown = [o for i, o in enumerate(offers) if i < OFFERS_SHOWN or o.chosen]
    return shown, [offer for offer in offers if offer not in shown]


def _tokens(turn: TurnRecord) -> list[Token]:
    return [
        Token(piece, math.exp(min(logprob, 0.0)), number(value, ".2f"))
        if choice
        else Token(piece, None, f"({number(value, '.2f')})")
        for piece, choice, logprob, value in zip(
            turn.pieces, turn.choice, turn.logprob, turn.value, strict=True
        )
    ]


def _heading(turn: TurnRecord, index: int) -> tuple[str, str]:
    return f"Turn {index}", f"value {number(turn.root_value, '.2f')}"


def _duration(turn: TurnRecord) -> str:
    return f", {turn.duration} primitive steps" if turn.duration != 1 else ""


def describe_ending(record: EpisodeRecord) -> tuple[str, str]:
    """Describe how an episode ended: ("Success", "terminated after 7 turns, return 1.1")."""
    turns = len(record.turns)
    steps = "" if record.length == turns else f" ({record.length:g} primitive steps)"
    after = f"{record.ending} after {counted(turns, 'turn')}{steps}"
    ending = f"{after}, return {compact(record.episode_return)}"
    if record.error:
        ending += f". {in_a_line(record.error)}"
    return "Success" if record.success else "No success", ending


def can_draw(console: Console) -> bool:
    """Whether a console can show characters beyond ASCII."""
    return console.encoding.lower().startswith("utf")


def rule(console: Console, title: Text | str = "") -> Rule:
    """Build a horizontal line in characters that the console can show."""
    return Rule(title, align="left", style="dim", characters="─" if can_draw(console) else "-")


# Terminal.


def turn_in_terminal(turn: TurnRecord, index: int, console: Console) -> RenderableType:
    """Render the turn at a place of an episode for a terminal."""
    heading, value = _heading(turn, index)
    parts: list[RenderableType] = [
        rule(console, Text.assemble((heading, "bold"), f"  {value}")),
        _indented(Text(printable(turn.prompt))),
        *([_indented(Text(str(turn.cut), style="yellow"))] if turn.cut else []),
        *([_indented(Text(printable(turn.form), style="dim"), 4)] if turn.form else []),
        _offers_in_terminal(turn, console)
        if turn.offered
        else _indented(Text(printable(turn.action), style="bold green"), 4),
    ]
    if turn.invalid:
        parts.append(Text("  The world did not offer this action.", style="red"))
    style = f"bold {_color(turn.reward, 'green', 'red')}"
    outcome = Text.assemble("  reward ", (f"{turn.reward:+.3g}", style), _duration(turn))
    long = not turn.offered and len(turn.pieces) > TOKENS_SHOWN
    tokens = _sum_of(turn) if long else _tokens_in_terminal(turn, can_draw(console))
    return Group(*parts, _indented(tokens), outcome)


def _sum_of(turn: TurnRecord) -> Text:
    """Sum up many tokens in a line."""
    likely = sum(math.exp(min(logprob, 0.0)) >= 0.5 for logprob in turn.logprob)
    first, last = (number(turn.value[i], ".2f") for i in (0, -1))
    return Text(
        f"{len(turn.pieces)} tokens, {likely} of them with 50 % or more; values from {first} at "
        f"the first to {last} at the last",
        style="dim",
    )


def _offers_in_terminal(turn: TurnRecord, console: Console) -> Padding:
    """The offered actions with bars for their probabilities."""
    shown, more = _offers(turn)
    width = 24 if console.width >= 70 else 10
    full, mark = ("█", "▸ ") if can_draw(console) else ("#", "> ")
    grid = Grid.grid(padding=(0, 1), expand=True)
    grid.add_column(width=2)
    grid.add_column(ratio=1, overflow="fold")
    grid.add_column(width=width, no_wrap=True)
    grid.add_column(width=7, justify="right", no_wrap=True)
    for offer in shown:
        bar = full * round(width * _share(offer.probability))
        cells = (mark if offer.chosen else "", offer.action, bar, percent(offer.probability))
        style = "bold green" if offer.chosen else ""
        grid.add_row(*(Text(printable(cell), style=style) for cell in cells))
    if more:
        cells = ("", f"and {len(more)} more", "", percent(_total(more)))
        grid.add_row(*(Text(cell, style="dim") for cell in cells))
    return Padding(grid, (0, 2))


def _tokens_in_terminal(turn: TurnRecord, symbols: bool) -> Text:
    """A line of tokens with their probabilities, and a line of values; forced tokens are dim."""
    text, tokens = Text("tokens ", style="dim"), _tokens(turn)
    for token in tokens:
        piece = (
            visible(token.piece)
            if symbols
            else printable(token.piece).replace("\n", "\\n").strip(" ")
        )
        if token.probability is None:
            text.append(f"{piece or chr(39) * 2}  ")
        else:
            text.append(piece or "''", style="not dim bold cyan")
            text.append(f" {percent(token.probability, 0)}  ", style="not dim cyan")
    text.append("\nvalues ")
    for token in tokens:
        text.append(f"{token.value} ", style="" if token.probability is None else "not dim")
    return text


def _indented(text: Text, by: int = 2) -> Padding:
    return Padding(text, (0, 0, 0, by), expand=False)


# HTML.


def turn_in_html(turn: TurnRecord, index: int) -> Html:
    """Render the turn at a place of an episode for a page; see report.css for its classes."""
    heading, value = _heading(turn, index)
    shown, more = _offers(turn)
    bars = [tag("div", *_offers_in_html(shown), cls="offer")] if shown else []
    if more:
        summary = f"{len(more)} more offered actions, together {percent(_total(more))}"
        folded = tag("div", *_offers_in_html(more), cls="offer")
        bars.append(tag("details", tag("summary", summary), folded))
    written = [tag("pre", turn.form)] * bool(turn.form)
    written += [] if turn.offered else [tag("pre", turn.action)]
    reward = tag("b", f"{turn.reward:+.3g}", cls=_color(turn.reward, "gain", "loss"))
    invalid = [tag("b", " The world did not offer this action.", cls="loss")] * turn.invalid
    return tag(
        "article",
        tag("header", tag("b", heading), tag("span", value)),
        tag("pre", turn.prompt),
        *[tag("p", str(turn.cut), cls="soft")] * (turn.cut is not None),
        *bars,
        *written,
        tag("div", *map(_token_in_html, _tokens(turn)), cls="tokens"),
        tag("footer", tag("span", "reward ", reward, _duration(turn)), *invalid),
        cls="turn",
    )


def _offers_in_html(offers: Sequence[Offer]) -> list[Html]:
    cells: list[Html] = []
    for offer in offers:
        mark, cls = ("▸ ", "chosen") if offer.chosen else ("", "other")
        bar = tag("i", style=f"width:{100 * _share(offer.probability):.2f}%")
        cells.append(tag("span", mark + offer.action, cls=f"text {cls}"))
        cells.append(tag("i", bar, cls=cls))
        cells.append(tag("span", percent(offer.probability), cls=f"right {cls}"))
    return cells


def _token_in_html(token: Token) -> Html:
    forced = token.probability is None
    shade = 0.0 if token.probability is None else _share(token.probability)
    return tag(
        "span",
        tag("span", visible(token.piece) or "∅", cls="piece", style=f"--p:{shade:.3f}"),
        tag("small", "forced" if forced else percent(token.probability, 0)),
        tag("small", f"V {token.value}"),
        cls="token forced" if forced else "token",
    )


def visible(piece: str) -> str:
    """A token's text with white space made visible."""
    return printable(piece).replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")


def _known(value: float) -> float:
    """A number that can be compared: NaN becomes 0."""
    return value if math.isfinite(value) else 0.0


def _share(value: float) -> float:
    return min(max(_known(value), 0.0), 1.0)


def _total(offers: Sequence[Offer]) -> float:
    return sum(_share(offer.probability) for offer in offers)


def _color(reward: float, positive: str, negative: str) -> str:
    return positive if reward > 0 else negative if reward < 0 else ""
