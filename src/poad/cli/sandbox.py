"""``poad sandbox``: check how safely this machine can run an agent's programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.markup import escape

from poad.cli.arguments import Positional
from poad.display import Screen, Table
from poad.errors import SandboxError


@dataclass(frozen=True)
class Options:
    """Check how safely this machine can run an agent's programs.

    In data-science worlds the agent writes programs, and a sandbox runs them. This command lists
    the layers of the sandbox and how to install the missing ones. Then it starts a worker and
    attacks it. The exit status is 1 if the sandbox does not hold.
    """

    action: Positional[Literal["check"]] = "check"
    """The only action."""


def run(_: Options) -> int:
    """List the layers, then start the sandbox, which tests itself; the exit status."""
    from poad.envs.datasci import Sandbox, layers

    console = Screen()
    found = layers()
    rows = [(layer.name, "yes" if layer.there else "no", layer.what) for layer in found]
    table = Table(("layer", "here", "what it does"), rows, align="lll")
    console.print(table.to_terminal(row_styles=["" if each.there else "red" for each in found]))
    for layer in found:
        if not layer.there:
            console.print(f"\n[bold]{layer.name}[/]: {escape(layer.detail)}")
            console.print(f"  To install it: {escape(layer.cure)}")
    console.print("\nStarting a worker and attacking it ...")
    try:
        with Sandbox(workers=1) as sandbox:
            console.print(f"The sandbox holds. Its isolation is [bold]{sandbox.isolation}[/].")
    except SandboxError as error:
        console.print(f"Programs cannot be run safely here. {escape(str(error))}")
        return 1
    return 0
