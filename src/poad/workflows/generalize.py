"""Evaluate an agent in worlds it was not trained in, and compare it with other agents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from poad.agent import Agent
from poad.display import Screen, Table, interval, number, watch
from poad.envs import same_class, world_arguments
from poad.errors import ConfigError
from poad.learn import evaluate, summarize
from poad.runs import (
    UNTRAINED,
    Evaluation,
    Generalization,
    Mode,
    Run,
    UnseenEvaluation,
    write_json,
    write_text,
)
from poad.turns import Episode
from poad.workflows.evaluate import MODES
from poad.workflows.load import load_run


class _Contender(NamedTuple):
    """An agent to evaluate."""

    label: str
    agent: Agent
    checkpoint: int | None
    env_steps: int
    run: Run | None
    """The run that records its episodes; None records none."""


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
    contenders = _contenders(path, beside)
    console = Screen(quiet=quiet)
    _warn_of_other_words(contenders[0].agent.config.env, worlds, console)
    results = [
        UnseenEvaluation(
            contender.label,
            contender.env_steps,
            world,
            mode,
            _evaluate(contender, world, episodes, mode, console),
        )
        for contender in contenders
        for world in worlds
        for mode in MODES
    ]
    for mode in MODES:
        table = _by_world([each for each in results if each.mode == mode], worlds)
        Screen().print(table.to_terminal(row_styles=[""] * len(worlds) + ["bold"]))
    if len({each.env_steps for each in contenders if each.checkpoint is not None}) > 1:
        console.print("Note: these agents did not train for the same number of steps.")
    _save(Run.open(path), results, worlds, console)
    return 0


def _warn_of_other_words(home: str, worlds: Sequence[str], console: Console) -> None:
    if not any(same_class(home, world) for world in worlds):
        console.print(
            f"Note: this agent was trained in {home}. None of these worlds uses the same words, so "
            "little can carry over. Choose worlds with --worlds."
        )


def _save(
    run: Run, results: Sequence[UnseenEvaluation], worlds: Sequence[str], console: Console
) -> None:
    file = run.path / "generalization.json"
    replaced = " They replace earlier ones." if file.exists() else ""
    write_json(file, Generalization(tuple(results)))
    write_text(file.with_suffix(".md"), _markdown(results, worlds))
    console.print(
        f"\nThe results are in {file} and .md.{replaced}", highlight=False, soft_wrap=True
    )


def _contenders(path: Path, beside: Sequence[Path]) -> list[_Contender]:
    run, agent, checkpoint = load_run(path)
    contenders = [_Contender(_label(agent), agent, checkpoint, _steps(run), run)]
    for other in beside:
        other_run, other_agent, at = load_run(other)
        steps = _steps(other_run)
        contenders.append(_Contender(_label(other_agent), other_agent, at, steps, None))
    _, untrained, _ = load_run(path, untrained=True)
    return [*contenders, _Contender(UNTRAINED, untrained, None, 0, None)]


def _label(agent: Agent) -> str:
    return f"{agent.config.credit.label}, seed {agent.config.seed}"


def _steps(run: Run) -> int:
    return int(next(reversed(run.metrics()), {}).get("env_steps", 0))


def _evaluate(
    contender: _Contender, world: str, episodes: int, mode: Mode, console: Console
) -> Evaluation:
    settings = contender.agent.config.eval
    records = evaluate(
        contender.agent,
        episodes=episodes,
        seed=settings.seed,
        greedy=MODES[mode],
        streams=settings.streams,
        env=world,
        env_args={},
        checkpoint=contender.checkpoint,
        turns=settings.turns,
    )
    label = f"{contender.label} in {world}, {mode}"
    outcomes = []
    for record in watch(records, episodes, label, console.quiet, console):
        outcomes.append(Episode(record.episode_return, record.length, record.success))
        if contender.run is not None:
            contender.run.add_episodes([record])
    return summarize(outcomes)


def _rows(results: Sequence[UnseenEvaluation], worlds: Sequence[str]) -> list[list[str]]:
    """A row per agent and mode: its labels, the success rate in each world, and their mean."""
    rows = []
    for agent, mode in dict.fromkeys((each.agent, each.mode) for each in results):
        found = {e.world: e.evaluation for e in results if (e.agent, e.mode) == (agent, mode)}
        rates = [found[world].success_rate for world in worlds]
        cells = [
            interval((found[world].success_rate, *(found[world].success_interval or ())), ".2f")
            for world in worlds
        ]
        rows.append([agent, mode, *cells, number(sum(rates) / len(rates))])
    return rows


def _short(world: str) -> str:
    return world.removeprefix("poad/").removesuffix("-v0")


def _by_world(results: Sequence[UnseenEvaluation], worlds: Sequence[str]) -> Table:
    """The success rates of one mode: a row per world, a column per agent."""
    rows = _rows(results, worlds)
    names = [*map(_short, worlds), "mean"]
    cells = [[row[i + 2].partition(" ")[0] for row in rows] for i in range(len(names))]
    columns = [f"success, {rows[0][1]}", *(row[0] for row in rows)]
    return Table(columns, [[name, *row] for name, row in zip(names, cells, strict=True)])


def _markdown(results: Sequence[UnseenEvaluation], worlds: Sequence[str]) -> str:
    columns = ["agent", "actions", *map(_short, worlds), "mean"]
    episodes = results[0].evaluation.episodes
    note = f"Success rates with 95 % Wilson intervals over {episodes} episodes per world and mode."
    align = "ll" + "r" * (len(worlds) + 1)
    return Table(columns, _rows(results, worlds), note=note, align=align).to_markdown() + "\n"
