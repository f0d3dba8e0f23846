"""Evaluate an agent in worlds it was not trained in, and compare it with other agents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from poad.agent import Agent
from poad.display import Screen, Table, counted, interval, number
from poad.envs import same_class
from poad.runs import (
    UNTRAINED,
    EpisodeRecord,
    Evaluation,
    Generalization,
    Mode,
    Run,
    UnseenEvaluation,
    write_sealed,
    write_text,
)
from poad.workflows.evaluate import MODES, evaluate_mode
from poad.workflows.load import Weights, load_weights


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
    """
    contenders = _contenders(path, beside)
    console = Screen(quiet=quiet)
    home = contenders[0].agent.config.env
    if not any(same_class(home, world) for world in worlds):
        console.print(
            f"Note: this agent was trained in {home}. None of these worlds uses the same words, so "
            "little can carry over. Choose worlds with --worlds."
        )
    results: list[UnseenEvaluation] = []
    with contenders[0].run or nullcontext():
        for contender, world, mode in product(contenders, worlds, MODES):
            # What is wrong with a world, or with its prompts, is said once.
            failed = any(each.evaluation.failed for each in results if each.world == world)
            found = _evaluate(contender, world, episodes, mode, console, failed=failed)
            about = contender.label, contender.env_steps, world, mode
            results.append(UnseenEvaluation(*about, found))
    for mode in MODES:
        table = _by_world([each for each in results if each.mode == mode], worlds)
        Screen().print(table.to_terminal(row_styles=[""] * len(worlds) + ["bold"]))
    if len({each.env_steps for each in contenders if each.checkpoint is not None}) > 1:
        console.print("Note: these agents did not train for the same number of steps.")
    for world in worlds:
        there = [each.evaluation for each in results if each.world == world]
        if failed := sum(each.failed for each in there):
            console.print(
                f"{world} failed in {failed} of {counted(episodes * len(there), 'episode')} "
                "altogether. They count as no success.",
                soft_wrap=True,
            )
    file = path / "generalization.json"
    kept = _keep_earlier(file)
    write_sealed(file, Generalization(tuple(results)))
    write_text(file.with_suffix(".md"), _markdown(results, worlds))
    console.print(f"\nThe results are in {file} and .md.{kept}", soft_wrap=True)
    return int(all(each.evaluation.failed == episodes > 0 for each in results))


def _keep_earlier(file: Path) -> str:
    """Give earlier results a number, and return a sentence about it."""
    if not file.exists():
        return ""
    free = next(n for n in count(1) if not (file.parent / f"generalization-{n}.json").exists())
    for each in (file, file.with_suffix(".md")):
        if each.exists():
            each.rename(each.with_stem(f"generalization-{free}"))
    return f" Earlier results are now in generalization-{free}.json and .md."


def _contenders(path: Path, beside: Sequence[Path]) -> list[_Contender]:
    """The run's agent, those of the other runs, and the run's agent before training."""
    contenders = []
    for place in (path, *beside):
        run, agent, checkpoint = load_weights(Weights(place))
        label = f"{agent.config.credit.label}, seed {agent.config.seed}"
        steps = int(next(reversed(run.metrics()), {}).get("env_steps", 0))
        contenders.append(_Contender(label, agent, checkpoint, steps, None if contenders else run))
    untrained = load_weights(Weights(path, untrained=True)).agent
    return [*contenders, _Contender(UNTRAINED, untrained, None, 0, None)]


def _evaluate(
    contender: _Contender,
    world: str,
    episodes: int,
    mode: Mode,
    console: Console,
    *,
    failed: bool,
) -> Evaluation:
    """Evaluate an agent in one world and mode; ``failed`` if the world's fault has been told."""

    def keep(record: EpisodeRecord) -> None:
        if contender.run is not None:
            contender.run.add_episodes([record])

    config = contender.agent.config
    settings = replace(config.eval, episodes=episodes)
    config = replace(config, env=world, env_args={}, eval=settings)
    label = f"{contender.label} in {world}, {mode}"
    return evaluate_mode(
        contender.agent,
        contender.checkpoint,
        config,
        mode,
        keep,
        label=label,
        console=console,
        remark=mode == "sampled" and contender.checkpoint is not None,
        world=None if failed else world,
    )


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
