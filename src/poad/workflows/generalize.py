"""Evaluate an agent in worlds it was not trained in, and compare it with other agents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from poad.agent import Agent
from poad.display import Screen, watch
from poad.envs import same_class, world_arguments
from poad.errors import ConfigError
from poad.learn import evaluate, summarize
from poad.runs import UNTRAINED, Run, write_json, write_text
from poad.workflows.evaluate import MODES
from poad.workflows.load import load_run


class _Row(NamedTuple):
    """One agent of the table: an agent at a checkpoint."""

    label: str
    agent: Agent
    checkpoint: int | None
    env_steps: int
    keep: Run | None
    """Where its episodes are recorded; None records none."""


def generalize_run(
    path: Path, beside: Sequence[Path], worlds: Sequence[str], episodes: int, *, quiet: bool
) -> int:
    """Evaluate a run's agent in each world, sampled and greedy; print the table and save it.

    The table is saved in the run as ``generalization.json`` and ``generalization.md``.

    Args:
        path: the directory of the run.
        beside: other runs to compare with; they should have trained for as many steps.
        worlds: the worlds to play in.
        episodes: number of episodes in each world and mode.
        quiet: print nothing but the table.

    Returns:
        The exit status.

    Raises:
        ConfigError: there is no such world.
    """
    for world in worlds:
        try:
            world_arguments(world)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    rows = _rows(path, beside)
    console = Screen(quiet=quiet)
    _warn_of_other_words(rows[0].agent.config.env, worlds, console)
    results: list[dict[str, Any]] = []
    for row in rows:
        for world in worlds:
            for mode, greedy in MODES.items():
                found = _evaluate(row, world, episodes, greedy, console)
                labels = {"agent": row.label, "env_steps": row.env_steps, "world": world}
                results.append(labels | {"mode": mode} | found)
    for mode in MODES:
        Screen().print(_table([r for r in results if r["mode"] == mode], worlds))
    if len({row.env_steps for row in rows if row.checkpoint is not None}) > 1:
        console.print("Note: these agents did not train for the same number of steps.")
    _save(Run.open(path), results, worlds, console)
    return 0


def _warn_of_other_words(home: str, worlds: Sequence[str], console: Console) -> None:
    if not any(same_class(home, world) for world in worlds):
        console.print(
            f"Note: this agent was trained in {home}. None of these worlds uses the same words, so "
            "little can carry over. Choose worlds with --worlds."
        )


def _save(run: Run, results: list[dict[str, Any]], worlds: Sequence[str], console: Console) -> None:
    file = run.path / "generalization.json"
    replaced = " They replace earlier ones." if file.exists() else ""
    write_json(file, {"results": results})
    write_text(file.with_suffix(".md"), _markdown(results, worlds))
    console.print(
        f"\nThe results are in {file} and .md.{replaced}", highlight=False, soft_wrap=True
    )


def _rows(path: Path, beside: Sequence[Path]) -> list[_Row]:
    run, agent, checkpoint = load_run(path)
    rows = [_Row(_label(agent), agent, checkpoint, _steps(run), run)]
    for other in beside:
        other_run, other_agent, at = load_run(other)
        rows.append(_Row(_label(other_agent), other_agent, at, _steps(other_run), None))
    _, untrained, _ = load_run(path, untrained=True)
    return [*rows, _Row(UNTRAINED, untrained, None, 0, None)]


def _label(agent: Agent) -> str:
    return f"{agent.config.credit.label}, seed {agent.config.seed}"


def _steps(run: Run) -> int:
    return int(next(reversed(run.metrics()), {}).get("env_steps", 0))


def _evaluate(
    row: _Row, world: str, episodes: int, greedy: bool, console: Console
) -> dict[str, Any]:
    settings = row.agent.config.eval
    records = evaluate(
        row.agent,
        episodes=episodes,
        seed=settings.seed,
        greedy=greedy,
        streams=settings.streams,
        env=world,
        env_args={},
        checkpoint=row.checkpoint,
        turns=settings.turns,
    )
    label = f"{row.label} in {world}{', greedy' if greedy else ''}"
    outcomes = []
    for record in watch(records, episodes, label, console.quiet, console):
        outcomes.append({key: record[key] for key in ("success", "return", "length")})
        if row.keep is not None:
            row.keep.add_episodes([record])
    return summarize(outcomes)


def _lines(results: Sequence[dict[str, Any]], worlds: Sequence[str]) -> list[list[str]]:
    """A line per agent and mode: its names, the success rate in each world, and their mean."""
    lines = []
    for agent, mode in dict.fromkeys((r["agent"], r["mode"]) for r in results):
        found = {r["world"]: r for r in results if (r["agent"], r["mode"]) == (agent, mode)}
        rates = [found[world]["success_rate"] for world in worlds]
        cells = []
        for world in worlds:
            low, high = found[world]["success_interval"]
            cells.append(f"{found[world]['success_rate']:.2f} [{low:.2f}, {high:.2f}]")
        lines.append([agent, mode, *cells, f"{sum(rates) / len(rates):.3f}"])
    return lines


def _short(world: str) -> str:
    return world.removeprefix("poad/").removesuffix("-v0")


def _table(results: Sequence[dict[str, Any]], worlds: Sequence[str]) -> Table:
    """The success rates of one mode: a row for each world, a column for each agent."""
    lines = _lines(results, worlds)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"success, {lines[0][1]}", no_wrap=True)
    for agent, *_ in lines:
        table.add_column(agent, justify="right")
    for i, name in enumerate([*map(_short, worlds), "mean"]):
        style = "bold" if i == len(worlds) else ""
        table.add_row(name, *(line[i + 2].partition(" ")[0] for line in lines), style=style)
    return table


def _markdown(results: Sequence[dict[str, Any]], worlds: Sequence[str]) -> str:
    head = ["agent", "actions", *map(_short, worlds), "mean"]
    rows = [head, ["---"] * len(head), *_lines(results, worlds)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    episodes = results[0]["episodes"]
    note = f"Success rates with 95 % Wilson intervals over {episodes} episodes per world and mode."
    return f"{note}\n\n{text}\n"
