"""``poad envs``: list the worlds, describe one, or check one of your own."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from rich.status import Status
from rich.table import Table
from rich.text import Text

from poad.cli.arguments import Switch
from poad.cli.settings import check_episodes
from poad.cli.trust import trust
from poad.config import Config
from poad.display import Screen
from poad.envs import (
    CheckedWorld,
    check_env,
    docstring_of,
    known_schemes,
    known_worlds,
    make,
    manual_of_adapter,
    world_arguments,
)
from poad.errors import ConfigError, WorldError, beginning
from poad.trie import Form, Grammar

LONGEST_TEXT = 2_000
"""Characters of an observation or action that are shown."""
MOST_ACTIONS = 40
"""Offered actions that are shown."""
PAUSE = 5.0
"""Seconds between two plain lines of progress."""


@dataclass(frozen=True)
class Options:
    """List the worlds, describe one of them, or check a world of your own."""

    env: Annotated[str | None, tyro.conf.Positional] = None
    """A world: a registered name, package.module:EnvId, or one of another project, SCHEME:REST."""
    check: Switch = False
    """Check that the world keeps the contract of text worlds. The exit status is 1 if it does
    not."""
    aliased: Switch = False
    """With --check: allow the same prompt to come with different offered actions."""
    episodes: int = 20
    """With --check: the number of random episodes."""
    max_turns: int = 1000
    """With --check: the number of turns after which an episode is abandoned. One must end before
    that."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world."""


def run(options: Options) -> int:
    """List, describe or check; the exit status is 1 if a check fails."""
    check_episodes(options.episodes)
    if options.max_turns < 1:
        raise ConfigError(f"--max-turns {options.max_turns}: there must be at least 1.")
    if options.env is None and options.check:
        raise ConfigError("--check needs a world: poad envs WORLD --check.")
    if options.env is None:
        return _list()
    trust(Config(env=options.env, env_args=options.env_args))
    if options.check:
        return _check(options.env, options)
    return _describe(options.env, options.env_args)


def _list() -> int:
    console = Screen()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for env_id, summary in known_worlds():
        table.add_row(Text(env_id, style="bold"), summary)
    console.print(table)
    console.print("\nWorlds of other projects, SCHEME:REST:\n")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for example, summary in known_schemes():
        table.add_row(Text(example, style="bold"), f"{summary[0].upper()}{summary[1:]}.")
    console.print(table)
    console.print(
        "\n  poad envs poad/TomatoSalad-v0            describe a world\n"
        "  poad envs my_module:MyWorld-v0 --check   check a world of your own\n"
        "  poad train --env my_module:MyWorld-v0    train in it",
        highlight=False,
        markup=False,
    )
    return 0


def _describe(env_id: str, env_args: Mapping[str, Any]) -> int:
    """Print a world's docstring, its arguments and its first observation."""
    console = Screen()
    env = make(env_id, **env_args)
    console.rule(env_id, align="left")
    doc = docstring_of(env) or "This world has no docstring."
    console.print(_reflowed(inspect.cleandoc(doc)), markup=False, highlight=False)
    if (manual := manual_of_adapter(env)) is not None:
        console.rule("As a text world", align="left", style="dim")
        console.print(_reflowed(inspect.cleandoc(manual)), markup=False, highlight=False)
    console.rule("Arguments", align="left", style="dim")
    arguments = world_arguments(env_id)
    for name, (annotation, default) in arguments.items():
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        kind = "" if annotation is inspect.Parameter.empty else f": {kind.replace('typing.', '')}"
        value = "" if default is inspect.Parameter.empty else f" = {default!r}"
        console.print(f"{name}{kind}{value}", markup=False)
    if not arguments:
        console.print("none")
    console.rule("First observation", align="left", style="dim")
    world = CheckedWorld(env)
    prompt, offered, _ = world.reset(0)
    console.print(beginning(prompt, LONGEST_TEXT), markup=False, highlight=False)
    offered = (str(offered),) if isinstance(offered, Form | Grammar) else offered
    for action in (offered or ())[:MOST_ACTIONS]:
        console.print(f"  {beginning(action, LONGEST_TEXT)}", markup=False, highlight=False)
    if offered and len(offered) > MOST_ACTIONS:
        console.print(f"  and {len(offered) - MOST_ACTIONS:,} more actions", style="dim")
    world.close()
    return 0


def _reflowed(text: str) -> str:
    """Join the lines of each paragraph; headings, list items and indented lines stay apart."""
    lines = [""]
    for line in text.splitlines():
        if line and line[0] not in " #*-" and lines[-1] and not lines[-1].startswith("#"):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines[1:])


def _check(env_id: str, options: Options) -> int:
    make(env_id, **options.env_args).close()
    screen = Screen(stderr=True)
    try:
        with screen.status("checking") as status:  # shown in a terminal only
            notes = check_env(
                lambda: make(env_id, **options.env_args),
                aliased=options.aliased,
                episodes=options.episodes,
                max_turns=options.max_turns,
                watch=_Progress(screen, status, options.episodes),
            )
    except WorldError as error:
        screen.print(str(error), markup=False, highlight=False)
        return 1
    lines = (f"{env_id} keeps the contract of text worlds.", *notes)
    Screen().print(*lines, sep="\n", soft_wrap=True)
    return 0


class _Progress:
    """Tells how far a check is: in one line of a terminal, or now and then in a line of its own."""

    def __init__(self, screen: Screen, status: Status, episodes: int) -> None:
        self._screen, self._status, self._episodes = screen, status, episodes
        self._told = time.monotonic()

    def __call__(self, episode: int, turn: int) -> None:
        """Tell the number of episodes so far, and of turns in the current one."""
        line = f"checking: {episode} of {self._episodes} episodes played, turn {turn}"
        pause = 0.1 if self._screen.is_terminal else PAUSE
        if time.monotonic() - self._told < pause:
            return
        self._told = time.monotonic()
        if self._screen.is_terminal:
            self._status.update(line)
        else:
            self._screen.print(line)
