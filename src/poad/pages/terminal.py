"""The inspector in a terminal: an episode with the credit of its tokens by every method."""

from __future__ import annotations

import math

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from poad.display import counted, number, printable, show_turn
from poad.pages.inspector import Inspection
from poad.pages.views import EpisodeView, TokenJudgement, TurnView, judge, kinds
from poad.runs import TurnRecord

LONGEST = 400
"""Of a longer action, this many tokens are shown."""
_UP, _DOWN = (0x2F, 0x6D, 0xB3), (0xA8, 0x5A, 0x14)  # as in inspect.css, for light text


def inspect_in_terminal(console: Console, inspection: Inspection, episode: EpisodeView) -> None:
    """Show one episode turn by turn, with a line of credit for each method."""
    for note in inspection.notes:
        console.print(Text(printable(note), style="dim"))
    methods = kinds(inspection.more_methods)
    judged = {names: judge(episode, method, inspection.dials) for names, method in methods.items()}
    earned = [abs(t.advantage or 0.0) for tokens in judged.values() for t in tokens]
    largest = max(earned, default=0.0) or 1.0
    start = 0
    for index, turn in enumerate(episode.turns, 1):
        here = slice(start, start + len(turn.token_ids))
        start = here.stop
        show_turn(console, _record(turn), index)
        shown = {names: tokens[here] for names, tokens in judged.items()}
        console.print(Padding(_credit(turn, shown, largest), (0, 0, 0, 2)))
    outcome = {True: "Success", False: "No success", None: "Outcome unknown"}[episode.success]
    symbol = "─" if console.encoding.lower().startswith("utf") else "-"
    console.print(Rule(style="dim", characters=symbol))
    ending = f"{episode.ending} after {counted(len(episode.turns), 'turn')}, return "
    console.print(Text.assemble((outcome, "bold"), f": {ending}{number(episode.episode_return)}"))
    console.print(
        Text(
            "Credit is the advantage, before training normalizes it. Blue went better than the "
            "critic expected, orange worse. A dim token was forced and earns nothing.",
            style="dim",
        )
    )


def _record(turn: TurnView) -> TurnRecord:
    root = turn.value[0] if turn.value else math.nan
    return TurnRecord(
        prompt=turn.prompt,
        offered=turn.offered,
        action=turn.action,
        token_ids=turn.token_ids,
        pieces=turn.pieces,
        choice=turn.choice,
        logprob=turn.logprob,
        value=turn.value,
        root_value=root,
        reward=turn.reward,
        duration=turn.duration,
        invalid=turn.invalid,
        form=turn.form,
        cut=turn.cut,
    )


def _credit(turn: TurnView, judged: dict[str, list[TokenJudgement]], largest: float) -> Table:
    """A line for each method: its name, and the tokens with their advantages."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(max_width=14, overflow="fold")
    grid.add_column(ratio=1)
    for names, tokens in judged.items():
        grid.add_row(Text(names, style="dim"), _tokens(turn, tokens, largest))
    return grid


def _tokens(turn: TurnView, tokens: list[TokenJudgement], largest: float) -> Text:
    text, short = Text(), len(turn.pieces) <= 16
    pairs = list(zip(turn.pieces, tokens, strict=True))
    for piece, token in pairs[:LONGEST]:
        shown = printable(piece).replace("\n", "\\n")
        if token.advantage is None:
            text.append(shown, style="dim")
        else:
            figure = f" {token.advantage:+.3f}" if short else ""
            text.append(
                f"{shown.strip(' ') if short else shown}{figure}",
                style=_style(token.advantage / largest),
            )
        if short:
            text.append(" ")
    if len(pairs) > LONGEST:
        text.append(f" … {len(pairs) - LONGEST:,} more tokens", style="dim")
    return text


def _style(share: float) -> str:
    """A background between that of the terminal, at 0, and full colour at ±1."""
    if abs(share) < 0.02:
        return ""
    strength = 0.35 + 0.65 * min(1.0, abs(share))
    red, green, blue = (round(c * strength) for c in (_UP if share > 0 else _DOWN))
    return f"#ffffff on #{red:02x}{green:02x}{blue:02x}"
