"""How an agent does in worlds it was not trained in, next to others and to its untrained self."""

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
from poad.workflows.train import MODES, load_run


class _Row(NamedTuple):
    """One agent of the table."""

    label: str
    agent: Agent
    checkpoint: int | None
    env_steps: int
    keep: Run | None
    """Where its episodes are kept."""


def generalize_run(
    path: Path, beside: Sequence[Path], worlds: Sequence[str], episodes: int, *, quiet: bool
) -> int:
    """Examine a run's agent in each world, sampled and greedy; print the table and save it.

    Args:
        path: the run.
        beside: other runs to put beside it; they should have trained for as many steps.
        worlds: where to examine.
        episodes: per world and mode.
        quiet: print nothing but the table.

    Returns:
        The exit status. ``generalization.json`` and ``generalization.md`` are left in the run.

    Raises:
        ConfigError: a world that does not exist.
    """
    for world in worlds:
        try:
            world_arguments(world)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    rows = _rows(path, beside)
    console = Screen(quiet=quiet)
    home = rows[0].agent.config.env
    if not any(same_class(home, world) for world in worlds):
        console.print(
            f"Note: none of these worlds speaks as {home} does, where this agent was trained; "
            "little can carry over."
        )
    results: list[dict[str, Any]] = []
    for row in rows:
        for world in worlds:
            for mode, greedy in MODES.items():
                found = _examine(row, world, episodes, greedy, console)
                labels = {"agent": row.label, "env_steps": row.env_steps, "world": world}
                results.append(labels | {"mode": mode} | found)
    run = Run.open(path)
    write_json(run.path / "generalization.json", {"results": results})
    write_text(run.path / "generalization.md", _markdown(results, worlds))
    for mode in MODES:
        Screen().print(_table([r for r in results if r["mode"] == mode], worlds))
    if len({row.env_steps for row in rows if row.checkpoint is not None}) > 1:
        console.print("Note: these agents did not train for the same number of steps.")
    console.print(f"\nSaved as {run.path / 'generalization.json'} and .md", highlight=False)
    return 0


def _rows(path: Path, beside: Sequence[Path]) -> list[_Row]:
    run, agent, checkpoint = load_run(path, None, untrained=False)
    rows = [_Row(_label(agent), agent, checkpoint, _steps(run), run)]
    for other in beside:
        other_run, other_agent, at = load_run(other, None, untrained=False)
        rows.append(_Row(_label(other_agent), other_agent, at, _steps(other_run), None))
    _, untrained, _ = load_run(path, None, untrained=True)
    return [*rows, _Row(UNTRAINED, untrained, None, 0, None)]


def _label(agent: Agent) -> str:
    return f"{agent.config.credit.method}, seed {agent.config.seed}"


def _steps(run: Run) -> int:
    return int(next(reversed(run.metrics()), {}).get("env_steps", 0))


def _examine(
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
    """A line per agent and mode: names, the success rate in each world, and their mean."""
    lines = []
    for agent, mode in dict.fromkeys((r["agent"], r["mode"]) for r in results):
        of = {r["world"]: r for r in results if (r["agent"], r["mode"]) == (agent, mode)}
        rates = [of[world]["success_rate"] for world in worlds]
        cells = []
        for world in worlds:
            low, high = of[world]["success_interval"]
            cells.append(f"{of[world]['success_rate']:.2f} [{low:.2f}, {high:.2f}]")
        lines.append([agent, mode, *cells, f"{sum(rates) / len(rates):.3f}"])
    return lines


def _short(world: str) -> str:
    return world.removeprefix("poad/").removesuffix("-v0")


def _table(results: Sequence[dict[str, Any]], worlds: Sequence[str]) -> Table:
    """The success rates of one mode: worlds downwards, agents across."""
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
    note = f"Success rate with its 95 % Wilson interval, {episodes} episodes per world and mode."
    return f"{note}\n\n{text}\n"
