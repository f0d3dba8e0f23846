"""Evaluate an agent, sampled and greedy, and record every episode in its run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from poad.agent import Agent
from poad.config import Config
from poad.display import Screen, counted, show_evaluation, watch
from poad.envs import Workers
from poad.learn import evaluate
from poad.pages import write_report
from poad.ranks import ALONE, Ranks
from poad.runs import EpisodeRecord, Evaluation, Mode, append_line, encode, summarize
from poad.turns import Episode
from poad.workflows.load import Weights, load_weights

MODES: dict[Mode, bool] = {"sampled": False, "greedy": True}
"""The two evaluations of an agent, and whether each is greedy."""


def evaluate_run(weights: Weights, config: Config, *, quiet: bool = False) -> int:
    """Evaluate the agent of a run, print the outcome and update the run's report.

    Args:
        weights: which weights of which run.
        config: the run's configuration, perhaps with another world or other ``eval`` settings.
        quiet: print one plain line per mode.

    Returns:
        The exit status: 1 if the world failed in every episode, so that nothing was found out.
    """
    console = Screen(quiet=quiet)
    run, agent, iteration = load_weights(weights)
    console.print(
        f"Evaluating {run.path}, {weights.describe(iteration)}, in",
        Text(config.env, style="bold"),
        soft_wrap=True,
    )
    # Episodes of an exported model do not belong to a checkpoint, so they get a file of their own.
    file = run.path / ("episodes.jsonl" if weights.exported is None else "exported.jsonl")

    def keep(record: EpisodeRecord) -> None:
        if weights.exported is None:
            run.add_episodes([record])
        else:
            append_line(file, replace(record, model=str(weights.exported)))

    with run:
        results = evaluate_modes(agent, iteration, config, keep, console)
        report = write_report(run)
    if quiet:
        for mode, result in results.items():
            print(mode, *(f"{key}={value}" for key, value in encode(result).items()))
    console.print(f"\nEvery turn is in {file}. The report is {report}.", soft_wrap=True)
    return int(all(result.failed == result.episodes > 0 for result in results.values()))


def evaluate_modes(
    agent: Agent,
    iteration: int | None,
    config: Config,
    keep: Callable[[EpisodeRecord], None],
    console: Console,
    *,
    remark: bool = True,
    ranks: Ranks = ALONE,
    stopping: Sequence[bool] = (),
) -> dict[Mode, Evaluation]:
    """Evaluate an agent sampled and greedy, and print the results.

    Args:
        agent: the agent.
        iteration: its checkpoint; None if it is untrained.
        config: the world and the settings of the evaluation.
        keep: receives every record.
        console: where to print.
        remark: warn if prompts were too long, unless training has said so.
        ranks: divide the episodes. The results are the first one's.
        stopping: has an entry once this rank is asked to stop.
    """
    results: dict[Mode, Evaluation] = {}
    for mode in MODES:
        if not console.is_terminal:  # there is no progress bar then
            console.print(f"Playing {counted(config.eval.episodes, 'episode')}, {mode} ...")
        label = f"evaluating, {mode}"
        results[mode] = evaluate_mode(
            agent,
            iteration,
            config,
            mode,
            keep,
            label=label,
            console=console,
            remark=remark and mode == "sampled",
            ranks=ranks,
            stopping=stopping,
        )
    if not console.quiet:
        show_evaluation(console, results)
    return results


def evaluate_mode(
    agent: Agent,
    iteration: int | None,
    config: Config,
    mode: Mode,
    keep: Callable[[EpisodeRecord], None],
    *,
    label: str,
    console: Console,
    remark: bool = True,
    world: str | None = "The world",
    ranks: Ranks = ALONE,
    stopping: Sequence[bool] = (),
) -> Evaluation:
    """Evaluate an agent in one mode, with a progress bar.

    Args:
        agent: the agent.
        iteration: its checkpoint; None if it is untrained.
        config: the world and the settings of the evaluation.
        mode: whether it is sampled or greedy.
        keep: receives every record.
        label: what the progress bar says.
        console: where to print.
        remark: warn if prompts were too long.
        world: how a warning calls the world if it fails; None says nothing.
        ranks: divide the episodes. The result is the first one's.
        stopping: has an entry once this rank is asked to stop.
    """
    settings = config.eval
    records = evaluate(
        agent,
        episodes=settings.episodes,
        seed=settings.seed,
        greedy=MODES[mode],
        streams=settings.streams,
        env=config.env,
        env_args=config.env_args,
        checkpoint=iteration,
        turns=settings.turns,
        remark=remark,
        max_turns=settings.max_turns,
        workers=Workers(config.workers, config.step_timeout, config.reset_timeout),
        ranks=ranks,
        stopping=stopping,
    )
    outcomes, failures = [], list[str]()  # without turns, which would fill the memory
    for record in watch(records, settings.episodes, label, console):
        keep(record)
        outcomes.append(Episode(record.episode_return, record.length, record.success))
        if record.ending == "failed":
            failures.append(f"seed {record.seed}: {record.error}")
    if failures and world is not None:
        warnings.warn(
            f"{world} failed in {len(failures)} of {counted(len(outcomes), 'episode')}, which "
            f"count as no success. The first, {failures[0]}",
            stacklevel=2,
        )
    return replace(summarize(outcomes), failed=len(failures))
