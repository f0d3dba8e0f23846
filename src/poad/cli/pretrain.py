"""``poad pretrain``: make a tiny model that knows the words of a world."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from poad.cli.arguments import Switch
from poad.cli.trust import trust
from poad.config import Config
from poad.envs import make
from poad.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Make a tiny model that knows the words of a world, but not its task.

    It learns to continue the texts of random play, in a minute or two on one core. Train
    it on the task with `poad train --env WORLD --model.name DIR`. The world must offer actions. The
    same options give the same model, to the byte, on the same machine.
    """

    env: str
    """The world: a registered name, or package.module:EnvId."""
    to: Path
    """The directory to write: one that is empty or does not exist yet."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world."""
    turns: int = 10_000
    """Random turns to play. Take fewer where a world is slow."""
    steps: int | None = None
    """Training steps. Default: 400."""
    minutes: float | None = None
    """Train about so long instead of --steps. The number of steps is estimated, and written into
    making.json."""
    vocabulary: int = 1000
    """The largest number of tokens. Small worlds have fewer words."""
    width: int = 96
    """Size of a hidden state, a multiple of 8."""
    layers: int = 2
    """Layers of the model."""
    history: Literal["none", "last", "episode"] = "none"
    """What prompts show of earlier turns: the prompt.history that you will train with."""
    last: int = 4
    """With --history last: the number of turns, as in prompt.last."""
    context: int | None = None
    """The most tokens that the model reads at once. Default: at least twice the longest random
    turn, from 512 to 4096 (1024 with --history episode)."""
    seed: int = 0
    """Seed of the first episode, of the actions and of the weights."""
    overwrite: Switch = False
    """Replace a model that `poad pretrain` made in the directory."""
    quiet: Switch = False
    """Print nothing but errors."""


def run(options: Options) -> int:
    """Make the model; the exit status."""
    if options.steps is not None and options.minutes is not None:
        raise ConfigError("--steps and --minutes both say how long to train. Leave out one.")
    trust(Config(env=options.env, env_args=options.env_args))
    make(options.env, **options.env_args).close()  # before torch is loaded
    from poad.workflows import TinyModel, pretrain_model

    model = TinyModel(
        options.env,
        options.env_args,
        turns=options.turns,
        steps=400 if options.steps is None else options.steps,
        minutes=options.minutes,
        vocabulary=options.vocabulary,
        width=options.width,
        layers=options.layers,
        history=options.history,
        last=options.last,
        context=options.context,
        seed=options.seed,
    )
    return pretrain_model(model, options.to, overwrite=options.overwrite, quiet=options.quiet)
