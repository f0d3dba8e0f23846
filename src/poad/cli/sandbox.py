"""``poad sandbox``: check how safely this machine can run an agent's programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro
from rich.markup import escape
from rich.table import Table

from poad.display import Screen
from poad.errors import SandboxError


@dataclass(frozen=True)
class Options:
    """Check how safely this machine can run an agent's programs.

    In data-science worlds the agent writes programs, and a sandbox runs them. This command lists
    the layers of the sandbox and how to install the missing ones. Then it starts a worker and
    attacks it. The exit status is 1 if the sandbox does not hold.
    """

    action: tyro.conf.Positional[Literal["check"]] = "check"
    """The only action."""


def run(_: Options) -> int:
    """List the layers, then start the sandbox, which tests itself; the exit status."""
    from poad.envs.datasci import Sandbox, layers

    console = Screen(markup=True)
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
            console.print(f"  To install it: {escape(layer.cure)}", highlight=False)
    console.print("\nStarting a worker and attacking it ...", highlight=False)
    try:
        with Sandbox(workers=1) as sandbox:
            console.print(
                f"The sandbox holds. Its isolation is [bold]{sandbox.isolation}[/].",
                highlight=False,
            )
    except SandboxError as error:
        console.print(f"Programs cannot be run safely here. {escape(str(error))}", highlight=False)
        return 1
    return 0
