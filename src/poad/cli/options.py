"""What each command of ``poad`` can be told: its flags, their defaults and their help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from poad.config import Config


@dataclass(frozen=True)
class TrainOptions:
    """Train an agent in a text world.

    A run is a directory: configuration, metrics, episodes, checkpoints and a report. Ctrl-C stops
    after the current iteration and loses nothing; --resume goes on exactly where it was.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    config: Path | None = None
    """A YAML file of settings (configs/ holds complete ones); other flags override it."""
    run: Path | None = None
    """Directory of the new run; default runs/<world>-<method>-seed<n>."""
    resume: Path | None = None
    """Go on with this run instead of starting a new one; more --steps are allowed."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show nothing but errors."""


@dataclass(frozen=True)
class PlanOptions:
    """Predict memory and time of a training before any weights are loaded.

    Takes the settings of `poad train`. Exit status 1 if it does not fit; then what to change.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    config: Path | None = None
    """A YAML file of settings (configs/ holds complete ones); other flags override it."""
    memory: str | None = None
    """What the machine has, as 24GB or 80GiB; default what this one has."""
    flops: float | None = None
    """Operations per second it sustains in matrix products, as 150e12; default: measured here."""


@dataclass(frozen=True)
class EvalOptions:
    """Examine a trained agent: play episodes sampled and greedy, and keep every turn on record."""

    run: tyro.conf.Positional[Path]
    """The run."""
    episodes: int = 100
    """Episodes in each mode."""
    checkpoint: int | None = None
    """Iteration to take; default the newest."""
    untrained: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the model as it was before training."""
    seed: int | None = None
    """Seed of the first episode; default the run's own (eval.seed)."""
    env: str | None = None
    """Another world than the one it was trained in."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that world."""
    model: Path | None = None
    """Examine this exported model in the run's world instead of the run's own weights; the critic
    is the run's."""
    language: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Examine language instead: the model before and after training on the tasks below, with the
    Language Model Evaluation Harness."""
    tasks: tuple[str, ...] = ()
    """Tasks of the harness; default arc_challenge hellaswag piqa mmlu."""
    task_folder: Path | None = None
    """A directory with tasks of your own, described as the harness does."""
    limit: int | None = None
    """Only so many items of each task."""
    text: Path | None = None
    """Instead of tasks: how well this text is predicted; needs neither harness nor network."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one plain line per mode, nothing else."""


@dataclass(frozen=True)
class PlayOptions:
    """Watch an agent turn by turn, with the probabilities of the offered actions; or play."""

    target: tyro.conf.Positional[str]
    """A run, or a world: its untrained model plays, or you with --human."""
    human: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Choose the actions yourself."""
    seed: int | None = None
    """Seed of the episode; a run plays the episode its evaluation played."""
    greedy: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the likeliest token instead of sampling."""
    checkpoint: int | None = None
    """Iteration to take; default the newest."""
    untrained: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the run's model as it was before training."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world, when the target is one."""


@dataclass(frozen=True)
class GeneralizeOptions:
    """Examine an agent in worlds it was not trained in, next to its untrained self and others."""

    run: tyro.conf.Positional[Path]
    """The run; the table is saved in it."""
    beside: tuple[Path, ...] = ()
    """Other runs to put beside it: another method with the same budget, say."""
    worlds: tuple[str, ...] = ()
    """Where; default the six household tasks that test a food-preparation agent."""
    episodes: int = 100
    """Episodes per world, sampled and greedy each."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the table and nothing else."""


@dataclass(frozen=True)
class StudyOptions:
    """Run what a study is missing, then write its tables, drawings and page.

    A study file names worlds, methods and seeds (studies/ holds some). Ctrl-C stops after the
    iterations under way; the same command goes on. A run that fails is tried once more and listed.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """The study file."""
    jobs: int = 2
    """Runs at once, one thread each; 0 runs nothing and writes what there is."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """At toy size, to see that everything works."""
    out: Path | None = None
    """Where everything goes; default runs/studies/<name>."""
    only: tuple[str, ...] = ()
    """Worlds or methods to run now."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show nothing but errors."""
    compare: tuple[Path, Path] | None = None
    """Instead: two results of studies side by side, or why they cannot be compared."""


@dataclass(frozen=True)
class VerifyOptions:
    """Check the theory, and our estimators of credit, on random problems with exact answers.

    Prints every law with the largest deviation found. Exit status 1 if one fails.
    """

    states: int = 32
    """States of each problem."""
    actions: int = 6
    """Actions that a state offers, at most."""
    depth: int = 6
    """Tokens of an action, at most."""
    problems: int = 20
    """Problems with rewards of any sign; as many with positive and with negative ones."""
    seed: int = 0
    """Seed of all chance."""
    out: Path = Path("runs/verify")
    """Directory for verify.json and the figure."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show only the laws that fail."""


@dataclass(frozen=True)
class ExportOptions:
    """Write what a run learned as a model in the Hugging Face layout, with a card."""

    run: tyro.conf.Positional[Path]
    """The run."""
    to: Path
    """A directory that does not exist yet or is empty."""
    checkpoint: int | None = None
    """Iteration to take; default the newest."""
    adapter: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the adapters alone, for PEFT, instead of merging them (model.tuning = lora)."""


@dataclass(frozen=True)
class EnvsOptions:
    """List the worlds, or show the manual page of one."""

    env: Annotated[str | None, tyro.conf.Positional] = None
    """A world: a registered name, or package.module:EnvId."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Test whether it keeps what every text world must keep."""
    aliased: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """When checking, allow one prompt to come with different offered actions."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world."""


@dataclass(frozen=True)
class SandboxOptions:
    """Tell what this machine offers to run an agent's programs in, and how to get what is missing.

    Data-science coding runs programs that nobody has read. The layers that lock them in are listed
    one by one; then a worker is started and attacked.
    """

    do: tyro.conf.Positional[Literal["check"]] = "check"
    """There is only this."""
