"""``poad play``: watch an episode turn by turn, or choose the actions yourself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from poad.cli.arguments import Switch
from poad.cli.settings import check_seed
from poad.cli.trust import open_run, trust
from poad.config import Config, world_seed
from poad.display import Screen, counted, show_ending, show_turn
from poad.envs import CheckedWorld, known_worlds, make
from poad.errors import ConfigError
from poad.runs import Run, read_world_errors
from poad.trie import Form, Grammar, Offer
from poad.turns import Action, Observation

if TYPE_CHECKING:
    from poad.learn import NoPrompts


@dataclass(frozen=True)
class Options:
    """Watch an agent turn by turn, or choose the actions yourself.

    Each turn shows the prompt, the probabilities of the offered actions, the value that the critic
    expects, and the tokens of the action with their values.
    """

    target: tyro.conf.Positional[str]
    """The directory of a run, or a world. In a world its untrained model plays, or you with
    --human."""
    human: Switch = False
    """Choose the actions yourself."""
    seed: int | None = None
    """Seed of the episode. Default: the run's own (eval.seed), the first episode of its
    evaluation."""
    greedy: Switch = False
    """Take the likeliest token instead of sampling."""
    checkpoint: int | Literal["best"] | None = None
    """Iteration whose weights are used, or `best`, the best by evaluation in training (eval.every).
    Default: the newest checkpoint."""
    untrained: Switch = False
    """Use the run's model as it was before training."""
    error: int | None = None
    """Repeat a failure of the run's world: the number of a line of world_errors.jsonl, from 1."""
    trust_code: Switch = False
    """Do what the settings of the run ask for: import modules that are not poad's, or run programs
    without protection. You are asked once (docs/security.md)."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world, if the target is one."""


def run(options: Options) -> int:
    """Play one episode; the exit status."""
    check_seed(options.seed)
    if not Path(options.target).is_dir() and _is_world(options.target):
        return _play_in_world(options)
    if options.env_args:
        raise ConfigError(
            "--env-args belong to a world. A run has its own; see `poad eval --help`."
        )
    if options.human:
        raise ConfigError(f"{options.target} is not a world. `poad envs` lists those for --human.")
    run = open_run(Path(options.target), trusted=options.trust_code)
    if options.error is not None:
        return _repeat_error(run, options.error)
    if not options.untrained:
        run.checkpoint_path(options.checkpoint)
    from poad.workflows import Weights, load_weights

    _, agent, iteration = load_weights(
        Weights(run.path, options.checkpoint, untrained=options.untrained)
    )
    return _watch(agent, options.seed, options.greedy, iteration)


def _is_world(target: str) -> bool:
    return ":" in target or target.startswith("poad/") or target in dict(known_worlds())


def _play_in_world(options: Options) -> int:
    if options.checkpoint is not None or options.untrained or options.error is not None:
        raise ConfigError("--checkpoint, --untrained and --error belong to a run, not to a world.")
    trust(Config(env=options.target, env_args=options.env_args))
    if options.human:
        return _play_human(options.target, options.env_args, options.seed or 0)
    make(options.target, **options.env_args).close()
    from poad.agent import load_agent

    agent = load_agent(Config(env=options.target, env_args=options.env_args))
    return _watch(agent, options.seed or 0, options.greedy, None)


def _watch(agent: Any, seed: int | None, greedy: bool, checkpoint: int | None) -> int:
    """Show an episode of an agent, the same one that an evaluation of that seed plays."""
    from poad.learn import evaluate

    first: int = agent.config.eval.seed if seed is None else seed
    (record,) = evaluate(
        agent, episodes=1, seed=first, greedy=greedy, streams=1, checkpoint=checkpoint
    )
    console = Screen()
    for number, turn in enumerate(record.turns, 1):
        show_turn(console, turn, number)
    show_ending(console, record)
    if any(not all(turn.choice) for turn in record.turns):
        console.print(
            "A token without a percentage had no alternative. Its value stands in brackets.",
            style="dim",
        )
    return 0


def _repeat_error(run: Run, number: int) -> int:
    """Repeat the actions after which the world of a run failed, turn by turn; the exit status."""
    known = read_world_errors(run.path)
    if not 1 <= number <= len(known):
        held = f"{counted(len(known), 'failure')} of its world" if known else "no failure"
        raise ConfigError(f"--error {number}: {run.path} holds {held}.")
    error, config, console = known[number - 1], run.config, Screen()
    console.print(
        Text(config.env, style="bold"), f"seed {error.seed}, as in iteration {error.iteration}\n"
    )
    world = CheckedWorld(make(config.env, **config.env_args))
    try:
        shown = world.reset(world_seed(error.seed))
        for turn, action in enumerate(error.actions, 1):
            console.print(Text(shown.prompt))
            console.print(Text(f"  {turn}  {action}", style="bold"))
            shown = world.step(action)
            console.print(f"  reward {shown.reward:+.3f}\n")
        console.print(Text(shown.prompt))
    finally:
        world.close()
    console.print(f"The world did not fail this time. Then it said: {error.error}", soft_wrap=True)
    return 0


def _play_human(env_id: str, env_args: Mapping[str, Any], seed: int) -> int:
    """Let a person choose the actions; an empty line, Ctrl-D or Ctrl-C leaves."""
    from poad.learn import WorldStream, play

    console, turns = Screen(), 0
    person = _Person(console)
    world = WorldStream(partial(make, env_id, **env_args), person.dialogue(), seed)
    console.print(
        Text(env_id, style="bold"),
        ": answer with a number or in words. An empty line leaves.\n",
        sep="",
    )
    try:
        for step in play(person, [world], lambda _: None):
            turns += 1
            console.print(f"  reward {step.reward:+.3f}\n", highlight=False)
            if "invalid_action" in step.info:
                shown = repr(step.info["invalid_action"])
                console.print(f"  {shown} is not one of the offered actions.\n")
            if step.ended:
                end = step.episode()
                word, style = ("Success", "green") if end.success else ("No success", "red")
                outcome = f" after {counted(turns, 'turn')}; return {end.episode_return:.3f}"
                console.print(Text.assemble((word, f"bold {style}"), outcome))
    except _Left:
        console.print(f"\nYou left after {counted(turns, 'turn')}.")
    finally:
        world.close()
    return 0


class _Left(Exception):
    """The person does not want to go on."""


class _Person:
    """An actor that asks in the terminal what to do."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def dialogue(self) -> NoPrompts:
        from poad.learn import NoPrompts

        return NoPrompts()

    def act_each(
        self, observations: Sequence[Observation], generator: object, **_: object
    ) -> Iterator[tuple[int, Action]]:
        for i, observation in enumerate(observations):
            answer = self._ask(observation.prompt, observation.admissible_actions or ())
            yield i, Action(answer, (), (), ())

    def _ask(self, prompt: str, offered: Offer) -> str:
        """Ask for the next action."""
        self._console.print(Text(prompt))
        if isinstance(offered, Form | Grammar):
            self._console.print(f"  {offered}", highlight=False, markup=False)
            offered = ()
        for number, action in enumerate(offered, 1):
            self._console.print(f"  {number:2d}  {action}", highlight=False, markup=False)
        try:
            answer = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            raise _Left from None
        if not answer:
            raise _Left
        if answer.isdecimal() and 1 <= int(answer) <= len(offered):
            return offered[int(answer) - 1]
        return answer
