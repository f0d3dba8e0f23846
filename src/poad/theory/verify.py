"""`poad verify`: check the theory and the credit estimators, and report the findings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from poad.display import Screen, Table, plot_signal, plot_theory
from poad.errors import ConfigError
from poad.runs import source_commit, versions, write_json
from poad.theory.laws import Convergence, Findings, Law, Preference, verify
from poad.theory.signal import Gains

MAX_DEPTH = 500
PLOTTED_GAMMA_TOKEN = 0.95
"""The γ_w for which the figure shows NTPO's preferences by length."""


def show_laws(console: Console, laws: Sequence[Law]) -> None:
    """Print a table with a row per law."""
    columns = ("law", "what is measured", "largest deviation", "bound", "ok")
    rows, styles = [], []
    for law in laws:
        verdict = ("yes" if law.cases else "–") if law.holds else "NO"
        rows.append([law.name, law.measured, f"{law.deviation:.2g}", f"{law.bound:.2g}", verdict])
        styles.append("" if law.holds else "bold red")
    note = "SE: in standard errors of the mean."
    table = Table(columns, rows, note=note, align="llrrr")
    console.print(table.to_terminal(row_styles=styles, column_styles={1: "dim"}))


def show_preferences(console: Console, rows: Sequence[Preference]) -> None:
    """Print how often NTPO's greedy action differs from the optimum, by the optimum's length."""
    depth = len(rows[0].states)
    spans = np.array_split(np.arange(depth), min(depth, 6))
    lengths = [f"{s[0] + 1}" if len(s) == 1 else f"{s[0] + 1}–{s[-1] + 1}" for s in spans]
    cells = []
    for row in rows:
        counts = [
            (sum(row.differs[i] for i in span), sum(row.states[i] for i in span)) for span in spans
        ]
        shares = [f"{100 * part / of:.0f}%" if of else "–" for part, of in counts]
        means = f"{row.greedy_length:.2f}", f"{row.optimal_length:.2f}"
        cells.append(
            [_sign(row), f"{row.gamma_token:g}", *shares, f"{100 * row.rate:.0f}%", *means]
        )
    console.print(
        "\nShare of states where NTPO's greedy action is not the optimum, by the length of\n"
        "the optimum in tokens. The last columns are the mean lengths of both.\n"
    )
    columns = ("values", "γ_w", *lengths, "all", "NTPO's", "optimum's")
    console.print(Table(columns, cells).to_terminal())


def show_convergences(console: Console, rows: Sequence[Convergence]) -> None:
    """Print the errors of sampled credit by the number of episodes."""
    columns = ("episodes", *(f"{n:,}" for n in rows[0].episodes), "power of N")
    cells = [[row.method, *(f"{e:.4f}" for e in row.error), f"{row.power:.2f}"] for row in rows]
    console.print(
        "\nRoot mean squared error of sampled credit, with λ = .95 after a turn and λ = 1\n"
        "inside it:\n"
    )
    console.print(Table(columns, cells).to_terminal())


def show_gains(console: Console, rows: Sequence[Gains]) -> None:
    """Print how much signal the gradient of token credit holds, by the token and by the bit."""
    lams = rows[0].lam
    per_bit = [f"{lam:g}/bit" for lam in lams[1:]]
    columns = ("tokens", "decide", "noise", *(f"λ {lam:g}" for lam in lams), *per_bit)
    by_bit = {(row.tokens, row.decisions, row.noise): row for row in rows if row.trace == "bit"}
    cells = []
    for row in rows:
        if row.trace == "token":
            key = (row.tokens, row.decisions, row.noise)
            gains = [*row.gain, *by_bit[key].gain[1:]]  # at λ = 1 both are the same
            cells.append([*(f"{part:g}" for part in key), *(f"{gain:.3g}" for gain in gains)])
    console.print(
        "\nSignal-to-noise ratio of the gradient relative to turn-level PPO, for one turn\n"
        "of coin flips, by λ inside the action, per token or per bit of entropy. Noise\n"
        "is the critic's error in units of the values' spread.\n"
    )
    console.print(Table(columns, cells).to_terminal())


def _sign(row: Preference) -> str:
    return "> 0" if row.sign == "positive" else "< 0"


def verify_command(
    *, states: int, actions: int, depth: int, problems: int, seed: int, out: Path, quiet: bool
) -> int:
    """Check and print all laws, and write `verify.json` and the figures to the directory `out`.

    Returns the exit status, 1 if a law fails.

    Raises:
        ConfigError: a size is out of range, or the directory cannot be written.
    """
    size = {"states": states, "actions": actions, "depth": depth, "problems": problems}
    least = {"states": 1, "actions": 2, "depth": 1, "problems": 1}
    for name, value in size.items():
        if value < least[name]:
            raise ConfigError(f"--{name} {value}: must be at least {least[name]}.")
    if depth > MAX_DEPTH:
        raise ConfigError(f"--depth {depth}: must be at most {MAX_DEPTH}; γ_w^depth vanishes.")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: must not be negative.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}. Name a directory.") from error
    found = verify(**size, seed=seed)
    console = Screen(quiet=quiet)
    show_laws(console, found.laws)
    show_preferences(console, found.preferences)
    show_convergences(console, found.convergences)
    show_gains(console, found.gains)
    try:
        saved = _save(found, {**size, "seed": seed}, out)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: cannot write there: {error.strerror}. Name another directory."
        ) from error
    console.print(f"\nWrote {saved}", markup=False, soft_wrap=True)
    for law in found.laws:
        if not law.holds:
            sys.stderr.write(
                f"poad: this law fails: {law.name} ({law.measured}: {law.deviation:.3g}, "
                f"bound {law.bound:.3g}).\n"
            )
    return 0 if found.hold else 1


def _save(found: Findings, arguments: dict[str, int], out: Path) -> str:
    """Write the numbers and the figures, and return the names of the files."""
    numbers = {
        "arguments": arguments,
        "versions": {**versions(), "commit": source_commit()},
        "laws": [{**asdict(law), "holds": law.holds} for law in found.laws],
        "gaps": [asdict(gap) for gap in found.gaps],
        "preferences": [asdict(row) for row in found.preferences],
        "convergences": [asdict(row) for row in found.convergences],
        "gains": [asdict(row) for row in found.gains],
        "gain_curves": [asdict(row) for row in found.curves],
    }
    write_json(out / "verify.json", numbers)
    gaps = {gap.gamma_token: (gap.length, gap.measured, gap.closed) for gap in found.gaps}
    plotted = [row for row in found.preferences if row.gamma_token == PLOTTED_GAMMA_TOKEN]
    shares = {_sign(row): row.shares for row in plotted}
    errors = {row.method: (row.episodes, row.error) for row in found.convergences}
    try:
        for ending in ("png", "svg"):
            plot_theory(gaps, shares, PLOTTED_GAMMA_TOKEN, errors, out / f"verify.{ending}")
            plot_signal(_panels(found.curves), out / f"signal.{ending}")
    except ImportError as error:
        return f"{out / 'verify.json'}. No figure: {error}"
    return f"{out / 'verify.json'}, and verify and signal as .png and .svg"


def _panels(curves: Sequence[Gains]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Arrange curves by what λ counts, and by the critic's error."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in curves:
        title = f"{row.tokens} tokens, {row.decisions} decide: λ at every {row.trace}"
        panels.setdefault(title, {})[f"{row.noise:g}"] = (row.lam, row.gain)
    return panels
