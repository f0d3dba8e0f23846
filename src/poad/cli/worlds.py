"""What ``poad envs`` and ``poad sandbox`` print.

The worlds, a world's manual page, whether it keeps the rules, and what this machine offers to run
an agent's programs in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from poad.display import Screen
from poad.envs import check_env, known_worlds, make, world_arguments
from poad.errors import ConfigError, SandboxError, WorldError


def list_worlds() -> int:
    """Print the worlds that come with poad."""
    console = Screen()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for env_id, summary in known_worlds():
        table.add_row(f"[bold]{env_id}[/]", summary)
    console.print(table)
    console.print(
        "\nA world's manual page: poad envs ID. One of your own: --env my_module:MyWorld-v0, a\n"
        "gymnasium.Env over text; poad envs my_module:MyWorld-v0 --check tests it.",
        highlight=False,
        markup=False,
    )
    return 0


def show_world(env_id: str, env_args: Mapping[str, Any]) -> int:
    """Print a world's manual page, its arguments and its first observation."""
    console = Screen()
    env = _open(env_id, env_args)
    console.rule(env_id, align="left")
    console.print(inspect.getdoc(type(env.unwrapped)) or "(no manual page)", markup=False)
    console.rule("Arguments", align="left", style="dim")
    arguments = world_arguments(env_id)
    for name, (annotation, default) in arguments.items():
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        shown = "" if default is inspect.Parameter.empty else f" = {default!r}"
        console.print(f"{name}: {kind.replace('typing.', '')}{shown}", markup=False)
    if not arguments:
        console.print("none")
    console.rule("First observation", align="left", style="dim")
    prompt, info = env.reset(seed=0)
    console.print(prompt, markup=False, highlight=False)
    for action in info.get("admissible_actions", ()):
        console.print(f"  {action}", markup=False, highlight=False)
    env.close()
    return 0


def check_one(env_id: str, env_args: Mapping[str, Any], aliased: bool) -> int:
    """Test a world against the rules every text world keeps; 0 when it does."""
    _open(env_id, env_args).close()
    try:
        allowed = check_env(lambda: make(env_id, **env_args), aliased=aliased)
    except WorldError as error:
        Screen(stderr=True).print(str(error), markup=False, highlight=False)
        return 1
    print(f"{env_id} keeps all the rules of a text world.", *allowed, sep="\n")
    return 0


def check_sandbox() -> int:
    """Print the layers of the sandbox, then start it and let it prove itself; 0 when it holds."""
    from poad.envs.datasci import Sandbox, layers

    console = Screen()
    found = layers()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("layer", "here", "what it does"):
        table.add_column(heading)
    for layer in found:
        mark, style = ("yes", "green") if layer.there else ("no", "bold red")
        table.add_row(layer.name, f"[{style}]{mark}[/]", escape(layer.what))
    console.print(table)
    for layer in found:
        if not layer.there:
            console.print(f"\n[bold]{layer.name}[/]: {escape(layer.detail)}", highlight=False)
            console.print(f"  To get it: {escape(layer.cure)}", highlight=False)
    console.print("\nStarting a worker and attacking it ...", highlight=False)
    try:
        with Sandbox(workers=1) as sandbox:
            console.print(
                f"It holds. Programs run with isolation [bold]{sandbox.isolation}[/].",
                highlight=False,
            )
    except SandboxError as error:
        console.print(f"Programs cannot be run safely here. {escape(str(error))}", highlight=False)
        return 1
    return 0


def _open(env_id: str, env_args: Mapping[str, Any]):
    try:
        return make(env_id, **env_args)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
