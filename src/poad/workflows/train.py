"""Train a run from its first iteration to its report, or go on with one that was stopped."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from poad.config import PRESETS, Config, from_dict, nested, to_dict
from poad.display import Progress, Screen, counted, show_work
from poad.errors import ConfigError
from poad.learn import Metrics, Trainer
from poad.pages import sample_page, write_report
from poad.plan import hindsight
from poad.ranks import Ranks, joined
from poad.runs import MAY_CHANGE, Evaluation, LogprobDrift, Mode, Run, RunSummary, show_page
from poad.workflows.load import check_world
from poad.workflows.prior import describe_prior, model_prior, remarks_on_prior, uniform_prior
from poad.workflows.together import check_alike, deferred_interrupt, evaluate_last, follow
from poad.workflows.watch import watched


def train_run(
    config: Config,
    path: Path,
    *,
    preset: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    watch: int | None = None,
) -> int:
    """Train a new run in the directory ``path`` and write its report.

    Args:
        config: what to train.
        path: the directory of the run.
        preset: the name of the preset that the configuration starts from. Unless that is the plain
            one, the untrained agent is looked at first, since a pretrained model may all but
            exclude what is rewarded.
        overwrite: replace a run that is there.
        quiet: print nothing.
        watch: serve the report meanwhile at this port of 127.0.0.1; 0 takes any, None serves none.

    Returns:
        The exit status: 0, or 130 if Ctrl-C or SIGTERM stopped it.
    """
    with joined() as ranks:
        check_world(config)
        # Before the run is created: a model that fails leaves no run behind.
        trainer = Trainer(config, ranks=ranks)
        check_alike(trainer)
        run = ranks.first_does(
            "create", lambda: Run.create(path, trainer.config, overwrite=overwrite)
        )
        if run is None:
            return follow(trainer)
        with run, watched(run.path, watch):
            chosen = None
            if preset not in (None, "plain"):
                chosen = _describe_preset(preset, config, trainer.config)
            return _train_new(trainer, run, chosen, quiet=quiet)


def _train_new(trainer: Trainer, run: Run, chosen: str | None, *, quiet: bool) -> int:
    """Train a run that was just created; ``chosen`` says what a preset sets, if one does."""
    trainer.run = run
    notes = [*trainer.collector.notes]
    if chosen is not None:
        Screen(quiet=quiet).print(chosen, soft_wrap=True)
        notes += [chosen, *_look(trainer, quiet)]
    if notes:
        run.add_notes(notes)
    return _carry_out(trainer, run, quiet=quiet)


def _describe_preset(name: str, asked: Config, decided: Config) -> str:
    """Say which settings come from a preset, as far as nothing else has replaced them.

    Args:
        name: the preset.
        asked: the configuration as it was given.
        decided: the same, with what `auto` means.
    """
    stored = from_dict(nested(PRESETS[name].settings))
    kept = []
    for setting in PRESETS[name].settings:
        group, _, key = setting.rpartition(".")
        theirs, given, value = (
            getattr(getattr(c, group) if group else c, key) for c in (stored, asked, decided)
        )
        if given == theirs:
            kept.append(
                f"{setting} = {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
            )
    return f"The preset `{name}` sets {', '.join(kept)}."


def _look(trainer: Trainer, quiet: bool) -> list[str]:
    """Look at how the untrained agent acts, and warn of what training could not mend."""
    config, console = trainer.config, Screen(quiet=quiet)
    console.print("Looking at the untrained agent ...")
    uniform = uniform_prior(config)
    model, _ = model_prior(trainer.agent.policy, config)
    found = describe_prior(model, uniform)
    console.print(found, soft_wrap=True)
    for remark in remarks_on_prior(config, model, uniform):
        warnings.warn(remark, stacklevel=2)
    return [found]


def resume_run(
    path: Path, config: Config | None = None, *, quiet: bool = False, watch: int | None = None
) -> int:
    """Go on with a run that was stopped.

    A run without a checkpoint starts again from its first iteration.

    Args:
        path: the directory of the run.
        config: its configuration, perhaps with more steps or another evaluation; None: as it is.
        quiet: print nothing.
        watch: as in `train_run`.

    Returns:
        The exit status: 0, or 130 if Ctrl-C or SIGTERM stopped it.

    Raises:
        ConfigError: the run cannot go on with this configuration.
    """
    with joined() as ranks, Run.open(path) as run:
        config = config or run.config
        before, after = to_dict(run.config), to_dict(config)
        changed = [key for key in after if after[key] != before[key]]
        if forbidden := [key for key in changed if key not in MAY_CHANGE]:
            raise ConfigError(
                f"{path} was trained with another {', '.join(forbidden)}. Only "
                f"{', '.join(MAY_CHANGE)} may change when a run is resumed. Start a new run for "
                "other settings."
            )
        trainer = _resumed_trainer(run, config, ranks)
        if config.steps < trainer.meters.env_steps:
            raise ConfigError(
                f"{path} has already trained {trainer.meters.env_steps:,} steps, more than --steps "
                f"{config.steps:,}. Ask for more steps, or leave out --steps."
            )
        if not ranks.is_first:
            return follow(trainer)
        if changed:
            run.change_config(config)
        run.record_versions()
        with watched(run.path, watch):
            return _carry_out(trainer, run, quiet=quiet)


def _resumed_trainer(run: Run, config: Config, ranks: Ranks) -> Trainer:
    """The trainer as of the newest checkpoint, or a fresh one if there never was a checkpoint."""
    begun = bool(run.checkpoints()) or run.summary() is not None
    if ranks.exchange("begun", begun)[0]:
        return Trainer(config, run, resume=True, ranks=ranks)
    warnings.warn(f"{run.path} has no checkpoint yet; it starts again.", stacklevel=3)
    trainer = Trainer(config, run, ranks=ranks)
    ranks.first_does("start again", lambda: run.truncate_metrics(0))
    return trainer


def _carry_out(trainer: Trainer, run: Run, *, quiet: bool) -> int:
    """Train to the end, evaluate, and write the summary and the report."""
    console, config = Screen(quiet=quiet), trainer.config
    _show_start(console, trainer, run)
    with deferred_interrupt() as interrupts, Progress(config.steps, console) as progress:
        for metrics in trainer.train():
            progress.update(metrics)
            if "eval_success" in metrics:
                _show_samples(run, metrics)
            if any(trainer.ranks.exchange("stop", bool(interrupts))):
                interrupts.append(True)
                break
    evaluation: dict[Mode, Evaluation] = {}
    if not interrupts and config.eval.episodes:
        console.print()
        run.forget_episodes(trainer.meters.iteration)
        try:
            evaluation = evaluate_last(trainer, lambda each: run.add_episodes([each]), console)
        except KeyboardInterrupt:  # the training is saved; only its evaluation is missing
            interrupts.append(True)
    summary = _summary(trainer, run.metrics(), evaluation, finished=not interrupts)
    if summary.best is not None:
        show_work(console, summary.best)
    run.write_summary(summary)
    if evaluation:
        _show_samples(run, run.metrics()[-1])
    report = write_report(run)
    if failed := trainer.meters.world_errors:
        console.print(
            f"The world failed in {counted(failed, 'episode')}, which world_errors.jsonl lists. "
            f"`poad play {run.path} --error 1` repeats the first.",
            soft_wrap=True,
        )
    console.print(_closing(run, report, summary), soft_wrap=True)
    return 130 if interrupts else 0


def _show_start(console: Console, trainer: Trainer, run: Run) -> None:
    config = trainer.config
    plan = f"{counted(config.steps, 'step')}, {counted(config.streams, 'stream')}"
    if trainer.meters.env_steps >= config.steps:
        plan = f"already trained for {trainer.meters.env_steps:,} steps; more with --steps"
    console.print(
        "Training",
        Text(config.env, style="bold"),
        "with",
        Text(config.credit.method, style="bold"),
        f"({config.model.name}, seed {config.seed}, {plan}) in {run.path}",
        soft_wrap=True,
    )


def _summary(
    trainer: Trainer,
    metrics: Sequence[Metrics],
    evaluation: Mapping[Mode, Evaluation],
    *,
    finished: bool,
) -> RunSummary:
    """The outcome of a training; ``evaluation`` is empty if it was not evaluated at its end."""
    config, best = trainer.config, trainer.works.best
    last: Metrics = metrics[-1] if metrics else {}
    return RunSummary(
        env=config.env,
        method=config.credit.label,
        seed=config.seed,
        status="finished" if finished else "stopped",
        iteration=_integer(last, "iteration"),
        env_steps=_integer(last, "env_steps"),
        cpu_seconds=last.get("cpu_seconds", math.nan),
        wall_seconds=last.get("wall_seconds", math.nan),
        training_episodes=_integer(last, "episodes"),
        sampled=evaluation.get("sampled"),
        evaluation=dict(evaluation) or None,
        best=None if best is None else best._asdict(),
        logprob_drift=_drift(metrics),
        plan=hindsight(config, metrics),
    )


def _show_samples(run: Run, metrics: Metrics) -> None:
    """Send sample episodes of an evaluation to trackers."""
    checkpoint, step = int(metrics["iteration"]), int(metrics["env_steps"])
    show_page(run, "eval/episodes", partial(sample_page, run, checkpoint), step)


def _integer(metrics: Metrics, key: str) -> int | None:
    return int(metrics[key]) if key in metrics else None


def _drift(metrics: Sequence[Metrics]) -> LogprobDrift | None:
    """Largest and mean difference of sampler and learner in log-probability, over the run."""
    largest, means = (
        [m[name] for m in metrics if math.isfinite(m.get(name, math.nan))]
        for name in ("logprob_drift", "logprob_drift_mean")
    )
    if not largest or not means:
        return None
    return LogprobDrift(max(largest), sum(means) / len(means))


def _closing(run: Run, report: Path, summary: RunSummary) -> str:
    """The last lines of a training: what it took and what to do next."""
    seconds = 0.0 if math.isnan(summary.cpu_seconds) else summary.cpu_seconds
    used = f"{summary.env_steps or 0:,} steps, {seconds:.1f} CPU seconds"
    if summary.status == "stopped":
        return (
            f"\nStopped after {used}. Nothing is lost. Go on with\n"
            f"  poad train --resume {run.path}\nThe report so far: {report}"
        )
    return (
        f"\nTrained for {used}. The report: {report}\n"
        f"  poad play {run.path}   watch the agent act\n"
        f"  poad eval {run.path}   evaluate it on more episodes (--episodes N)"
    )
