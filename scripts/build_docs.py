"""Write docs/environments.md from the worlds themselves: `make docs`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import load_env_creator

from poad.envs import Form, known_worlds, make, world_arguments
from poad.envs.schemes import SCHEMES, Scheme

TARGET = Path(__file__).parent.parent / "docs" / "environments.md"
HEAD = """\
# The worlds

This page is the manual of every world that poad ships, and of the schemes that open worlds of other
projects. `make docs` generates it from the docstrings of the worlds, so edit those instead. In the
terminal, `poad envs` lists the worlds and `poad envs ID` shows one of these manuals.

"""
OTHERS = """\
## Worlds of other projects

A name of the form SCHEME:REST opens a world of another project.
[your-own-world.md](your-own-world.md) has examples.
"""


def page() -> str:
    """Write the whole page: an overview, then the manual of each kind of world."""
    overview = ["| world | task |", "|---|---|"]
    overview += [f"| `{env_id}` | {summary} |" for env_id, summary in known_worlds()]
    kinds: dict[type, list[str]] = {}
    for env_id, _ in known_worlds():
        kinds.setdefault(type(make(env_id).unwrapped), []).append(env_id)
    manuals = [manual(kind, names) for kind, names in kinds.items()]
    schemes = [scheme(row) for row in SCHEMES.values()]
    return HEAD + "\n".join(overview) + "\n\n" + "\n".join([*manuals, OTHERS, *schemes])


def scheme(row: Scheme) -> str:
    """Write the manual of the worlds of another project."""
    kind = load_env_creator(row.entry_point)
    first, *lines = (inspect.getdoc(kind) or "").replace("\n### ", "\n#### ").splitlines()
    return "\n".join([f"### `{row.shown}`", "", first, *lines, ""])


def manual(kind: type, names: list[str]) -> str:
    """Write one manual: the docstring of a kind of world, and its first scene."""
    lines = (inspect.getdoc(kind) or "").replace("\n## ", "\n### ").splitlines()
    env = make(names[0])
    prompt, info = env.reset(seed=0)
    env.close()
    taken = ", ".join(f"`{name}`" for name in world_arguments(names[0]))
    offered = info.get("admissible_actions", ())
    offered = (offered,) if isinstance(offered, Form) else offered
    offered = offered or [
        signature(tool) for tool in info.get("action_grammar", {}).get("tools", ())
    ]
    scene = "\n".join([prompt.rstrip("\n"), *(f"  {action}" for action in offered)])
    worlds = ", ".join(f"`{name}`" for name in names)
    return "\n".join(
        [
            f"## {lines[0].rstrip('.')}",
            "",
            f"Names: {worlds}. Arguments: {taken}.",
            *lines[1:],
            "",
            f"### First scene of `{names[0]}`",
            "",
            "```",
            scene,
            "```",
            "",
        ]
    )


def signature(tool: dict[str, Any]) -> str:
    """Write a tool of a grammar as a function with its parameters."""
    function = tool["function"]
    return f"{function['name']}({', '.join(function['parameters']['properties'])})"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
