"""``poad eval``: evaluate a trained agent, or its model as a language model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from poad.cli.arguments import Switch
from poad.cli.settings import check_episodes, check_seed, check_settings, starting_point
from poad.cli.trust import open_run, trust
from poad.config import Config
from poad.envs import make
from poad.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Evaluate a trained agent on fixed seeds, sampled and greedy.

    The run keeps every episode, turn by turn. With --language the model answers language tasks
    instead, before and after training. `poad eval MODEL --untrained --env WORLD` looks at a model
    that has no run yet: how it acts by prompt format and temperature, and in examples.
    """

    run: tyro.conf.Positional[Path]
    """The directory of the run, or a model."""
    episodes: int = 100
    """Episodes in each mode."""
    seed: int | None = None
    """Seed of the first episode. Default: the run's own (eval.seed)."""
    checkpoint: int | Literal["best"] | None = None
    """Iteration whose weights are used, or `best`, the best by evaluation in training (eval.every).
    Default: the newest checkpoint."""
    untrained: Switch = False
    """Use the model as it was before training."""
    env: str | None = None
    """Play in another world than the one the agent was trained in."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world."""
    max_turns: int | None = None
    """Cut episodes off after so many turns; 0 never does. Default: the run's (eval.max_turns)."""
    workers: str | None = None
    """Where worlds work: `serial`, `threads:N` or `processes:N`. Default: the run's own."""
    model: Path | None = None
    """Evaluate this exported model instead of the run's own weights; the critic stays the run's."""
    language: Switch = False
    """Evaluate the model on language tasks, before and after training, with the Language Model
    Evaluation Harness."""
    tasks: tuple[str, ...] = ()
    """With --language: tasks of the harness. Default: arc_challenge hellaswag piqa mmlu."""
    task_folder: Path | None = None
    """With --language: a directory with tasks of your own, in the format of the harness."""
    limit: int | None = None
    """With --language: at most this many items of each task."""
    text: Path | None = None
    """With --language: measure how well the model predicts this text file instead; needs neither
    the harness nor a network."""
    trust_code: Switch = False
    """Do what the settings of the run ask for: import modules that are not poad's, or run programs
    without protection. You are asked once (docs/security.md)."""
    quiet: Switch = False
    """Print one plain line per mode and nothing else."""


def run(options: Options) -> int:
    """Evaluate; the exit status."""
    check_episodes(options.episodes)
    check_seed(options.seed)
    if options.model is not None and (options.untrained or options.checkpoint is not None):
        raise ConfigError(
            "--model replaces the run's weights. Leave out --untrained and --checkpoint."
        )
    if options.untrained and options.checkpoint is not None:
        raise ConfigError("--untrained uses no checkpoint. Leave out one of the two.")
    language = options.tasks or options.task_folder or options.limit is not None or options.text
    if language and not options.language:
        raise ConfigError("--tasks, --task-folder, --limit and --text belong to --language.")
    if options.untrained and not language and not (options.run / "config.yaml").is_file():
        return _prior(options)
    config = open_run(options.run, trusted=options.trust_code).config
    if options.language:
        return _language(options)
    seed = config.eval.seed if options.seed is None else options.seed
    limit = config.eval.max_turns if options.max_turns is None else options.max_turns
    settings = replace(config.eval, episodes=options.episodes, seed=seed, max_turns=limit)
    config = replace(config, eval=settings, workers=options.workers or config.workers)
    if options.env is not None or options.env_args:
        config = replace(config, env=options.env or config.env, env_args=options.env_args)
        trust(Config(env=config.env, env_args=config.env_args))
        make(config.env, **config.env_args).close()
    from poad.workflows import Weights, evaluate_run

    weights = Weights(options.run, options.checkpoint, options.untrained, options.model)
    return evaluate_run(weights, config, quiet=options.quiet)


def _prior(options: Options) -> int:
    """Look at a model before any training."""
    name = str(options.run)
    arguments = [f"--model.name={name}"]
    chosen, config = starting_point(arguments)
    seed = config.eval.seed if options.seed is None else options.seed
    config = replace(
        config,
        env=options.env or config.env,
        env_args=options.env_args,
        model=replace(config.model, name=name),
        eval=replace(config.eval, seed=seed),
    )
    trust(config)
    check_settings(config)
    from poad.workflows import show_prior

    return show_prior(config, chosen, episodes=options.episodes, quiet=options.quiet)


def _language(options: Options) -> int:
    if options.env is not None or options.env_args or options.untrained:
        raise ConfigError(
            "--language plays no episodes, and it always evaluates the untrained model, too. Leave "
            "out --env, --env-args and --untrained."
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: there must be at least 1 item.")
    if options.text and (options.tasks or options.task_folder or options.limit is not None):
        raise ConfigError(
            "--text replaces the tasks. Leave out --tasks, --task-folder and --limit."
        )
    if options.task_folder is not None and not options.tasks:
        raise ConfigError("--task-folder needs --tasks: name the tasks in it to evaluate.")
    from poad.workflows import TASKS, Weights, evaluate_tasks, evaluate_text

    weights = Weights(options.run, options.checkpoint, exported=options.model)
    if options.text is not None:
        return evaluate_text(weights, options.text)
    tasks = options.tasks or TASKS
    return evaluate_tasks(weights, tasks, limit=options.limit, folder=options.task_folder)
