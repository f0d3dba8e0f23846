"""Commands around whole runs: train one to its report, or examine one that exists."""

from __future__ import annotations

import math
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from poad.agent import Agent, load_agent
from poad.config import Config, to_dict
from poad.display import Progress, Screen, show_evaluation, show_work, watch, write_report
from poad.envs import make
from poad.errors import ConfigError
from poad.learn import Metrics, Trainer, evaluate, summarize
from poad.plan import hindsight
from poad.runs import (
    Drift,
    EpisodeRecord,
    Evaluation,
    Mode,
    Run,
    RunSummary,
    append_line,
    encode,
)
from poad.turns import Episode
from poad.workflows.export import export, refuse_taken, with_exported

MODES: dict[Mode, bool] = {"sampled": False, "greedy": True}
"""Whether a mode is greedy."""
_MAY_CHANGE = ("steps", "eval", "checkpoint_every", "keep_checkpoints", "threads", "mirrors")


def check_world(config: Config) -> None:
    """Open and close the world, so that a wrong name or argument is told before anything loads.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        make(config.env, **config.env_args).close()
    except (ValueError, TypeError) as error:
        reason = str(error).partition(" was raised from the environment creator")[0]
        given = f" with {config.env_args}" if config.env_args else ""
        raise ConfigError(f"Cannot make {config.env}{given}: {reason}") from error


def free_path(config: Config) -> Path:
    """A directory for a new run: ``runs/<world>-<method>-seed<n>``, numbered where it is taken."""
    world = config.env.rpartition(":")[2].rpartition("/")[2].removesuffix("-v0")
    world = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", world).lower()
    base = Path("runs") / f"{world}-{config.credit.method}-seed{config.seed}"
    path, number = base, 2
    while path.exists() and any(path.iterdir()):
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def train_run(config: Config, path: Path, *, quiet: bool = False) -> int:
    """Train a new run from the first step to its report; the exit status."""
    check_world(config)
    trainer = Trainer(config)  # before the run, so that a model that fails leaves none behind
    with Run.create(path, trainer.config) as run:
        trainer.run = run
        if trainer.collector.notes:
            run.add_notes(trainer.collector.notes)
        return _carry_out(trainer, run, quiet=quiet)


def resume_run(path: Path, config: Config, *, quiet: bool = False) -> int:
    """Go on with a run that was stopped; the exit status.

    Args:
        path: the run.
        config: its configuration, perhaps with more steps or another evaluation.
        quiet: show nothing.

    Raises:
        ConfigError: the configuration would make it another run.
    """
    with Run.open(path) as run:
        before, after = to_dict(run.config), to_dict(config)
        changed = [key for key in after if after[key] != before[key]]
        if forbidden := [key for key in changed if key not in _MAY_CHANGE]:
            raise ConfigError(
                f"Resuming {path} with another {', '.join(forbidden)} would make it another run; "
                f"only {', '.join(_MAY_CHANGE)} may change."
            )
        trainer = Trainer(config, run, resume=True)
        if config.steps < trainer.env_steps:
            raise ConfigError(
                f"{path} has already trained {trainer.env_steps:,} steps; --steps {config.steps:,} "
                "would go back. Give more, or leave it out."
            )
        if changed:
            run.change_config(config)
        run.record_versions()
        return _carry_out(trainer, run, quiet=quiet)


def _carry_out(trainer: Trainer, run: Run, *, quiet: bool) -> int:
    console, config = Screen(quiet=quiet), trainer.config
    last: Metrics = next(reversed(run.metrics()), {})
    size = f"{config.steps:,} steps, {config.streams} streams"
    if trainer.env_steps >= config.steps:
        size = f"already trained for its {trainer.env_steps:,} steps; --steps adds more"
    console.print(
        f"Training [bold]{config.env}[/] with [bold]{config.credit.method}[/] "
        f"({config.model.name}, seed {config.seed}, {size}) into {run.path}",
        highlight=False,
        soft_wrap=True,
    )
    with _polite_interrupt() as interrupted, Progress(config.steps, quiet, console) as progress:
        for metrics in trainer.train():
            last = metrics
            progress.update(metrics)
            if interrupted:
                break
    results: dict[Mode, Evaluation] = {}
    if not interrupted and config.eval.episodes:
        console.print()
        try:
            results = examine(
                run, trainer.agent, trainer.iteration, config.eval.episodes, console=console
            )
        except KeyboardInterrupt:  # training is complete and saved; only its evaluation is missing
            interrupted.append(True)
    best = None if trainer.best is None else trainer.best._asdict()
    if best is not None:
        show_work(console, best)
    metrics = run.metrics()
    summary = RunSummary(
        env=config.env,
        method=config.credit.method,
        seed=config.seed,
        status="stopped" if interrupted else "finished",
        iteration=_integer(last, "iteration"),
        env_steps=_integer(last, "env_steps"),
        cpu_seconds=last.get("cpu_seconds", math.nan),
        wall_seconds=last.get("wall_seconds", math.nan),
        training_episodes=_integer(last, "episodes"),
        sampled=results.get("sampled"),
        evaluation=results or None,
        best=best,
        logprob_drift=_drift(metrics),
        plan=hindsight(config, metrics),
    )
    run.write_summary(summary)
    report = write_report(run)
    console.print(_outcome(run, report, summary), highlight=False, soft_wrap=True)
    return 130 if interrupted else 0


def _integer(metrics: Metrics, key: str) -> int | None:
    return int(metrics[key]) if key in metrics else None


def _drift(metrics: Sequence[Metrics]) -> Drift | None:
    """Differences in log-probability between sampler and learner over the whole run."""
    largest, means = (
        [m[name] for m in metrics if math.isfinite(m.get(name, math.nan))]
        for name in ("logprob_drift", "logprob_drift_mean")
    )
    if not largest or not means:
        return None
    return Drift(max(largest), sum(means) / len(means))


def examine(
    run: Run,
    agent: Agent,
    checkpoint: int | None,
    episodes: int,
    *,
    seed: int | None = None,
    env: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    keep: Callable[[EpisodeRecord], None] | None = None,
    console: Console,
) -> dict[Mode, Evaluation]:
    """Evaluate sampled and greedy, keep the episodes in the run, and show the results."""
    settings = run.config.eval
    keep = keep or (lambda record: run.add_episodes([record]))
    results: dict[Mode, Evaluation] = {}
    for mode, greedy in MODES.items():
        records = evaluate(
            agent,
            episodes=episodes,
            seed=settings.seed if seed is None else seed,
            greedy=greedy,
            streams=settings.streams,
            env=env,
            env_args=env_args,
            checkpoint=checkpoint,
            turns=settings.turns,
        )
        outcomes = []
        for record in watch(records, episodes, f"evaluating, {mode}", console.quiet, console):
            keep(record)
            outcomes.append(Episode(record.episode_return, record.length, record.success))
        results[mode] = summarize(outcomes)
    if not console.quiet:
        show_evaluation(console, results)
    return results


def _outcome(run: Run, report: Path, summary: RunSummary) -> str:
    seconds = 0.0 if math.isnan(summary.cpu_seconds) else summary.cpu_seconds
    used = f"{summary.env_steps or 0:,} steps, {seconds:.1f} CPU seconds"
    if summary.status == "stopped":
        return (
            f"\nStopped after {used}; nothing is lost. Go on with\n"
            f"  poad train --resume {run.path}\nSo far: {report}"
        )
    return (
        f"\nTrained in {used}. See {report}\n"
        f"  poad play {run.path}                   watch it act, with probabilities and values\n"
        f"  poad eval {run.path} --episodes 1000   examine it more closely"
    )


@contextmanager
def _polite_interrupt() -> Iterator[list[bool]]:
    """Turn the first Ctrl-C into a request, true once it came; the second interrupts at once."""
    asked: list[bool] = []

    def ask(*_: object) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stderr.write("\nStopping after this iteration; Ctrl-C again stops at once.\n")

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: whoever called decides about interrupts
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def load_run(path: Path, checkpoint: int | None, untrained: bool) -> tuple[Run, Agent, int | None]:
    """A run with its agent as of a checkpoint (none: the newest), and that checkpoint's number."""
    run = Run.open(path)
    if untrained:
        return run, load_agent(run.config), None
    folder = run.checkpoint_path(checkpoint)
    tensors, _ = run.load_checkpoint(folder)
    return run, load_agent(run.config, tensors), int(folder.name)


def evaluate_run(
    path: Path,
    episodes: int,
    *,
    checkpoint: int | None,
    untrained: bool,
    seed: int | None,
    env: str | None,
    env_args: Mapping[str, Any],
    model: Path | None = None,
    quiet: bool,
) -> int:
    """Examine a run that exists, or an exported model in its place; the exit status."""
    console = Screen(quiet=quiet)
    run, agent, iteration = load_run(path, checkpoint, untrained)
    if model is not None:
        agent = with_exported(agent, model)
    config = run.config
    if env is not None or env_args:
        config = replace(config, env=env or config.env, env_args=dict(env_args))
        check_world(config)
    which = "untrained" if iteration is None else f"checkpoint {iteration}"
    which = which if model is None else f"the model {model}"
    episodes_file = run.path / ("episodes.jsonl" if model is None else "exported.jsonl")
    console.print(f"Evaluating {run.path}, {which}, on [bold]{config.env}[/]", highlight=False)
    with run:
        results = examine(
            run,
            agent,
            iteration,
            episodes,
            seed=seed,
            env=config.env,
            env_args=config.env_args,
            keep=None
            if model is None  # an export's episodes are not the checkpoint's: they stand apart
            else lambda record: append_line(episodes_file, replace(record, model=str(model))),
            console=console,
        )
        report = write_report(run)
    if quiet:
        for mode, result in results.items():
            print(mode, *(f"{key}={value}" for key, value in encode(result).items()))
    console.print(
        f"\nEvery turn is in {episodes_file}; see {report}", highlight=False, soft_wrap=True
    )
    return 0


def export_run(path: Path, to: Path, *, checkpoint: int | None, adapter: bool) -> int:
    """Write what a run learned as a model that others load; the exit status."""
    refuse_taken(to)
    run, agent, iteration = load_run(path, checkpoint, untrained=False)
    export(run, agent, iteration, to, adapter=adapter)
    what = "adapters" if adapter else "model"
    Screen().print(
        f"Exported the {what} of {run.path}, checkpoint {iteration}, to {to}\n"
        f"  poad eval {run.path} --model {to}   play it in the run's world",
        highlight=False,
        soft_wrap=True,
    )
    return 0
