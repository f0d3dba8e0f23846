"""``poad inspect``: see which token of an action earned what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from poad.cli.arguments import Switch
from poad.cli.browser import open_in_browser
from poad.cli.settings import check_episodes, check_seed
from poad.cli.trust import open_run
from poad.display import Screen
from poad.errors import ConfigError

if TYPE_CHECKING:
    from poad.pages import Inspection

EPILOG = """
Examples:
  poad inspect RUN --open                  in a browser
  poad inspect RUN --checkpoint 8 --against 32
  poad inspect RUN1 RUN2                   the same seeds, side by side
  poad inspect RUN --terminal --seed 1000004
  poad inspect traces.jsonl                episodes of other tools
"""


@dataclass(frozen=True)
class Options:
    """See which token of an action earned what, by every credit method.

    Writes one page that needs no network: episodes token by token, coloured by advantage, with
    sliders for γ and λ. It plays the episodes of the run's evaluation again, which depend on their
    seeds and the weights alone.
    """

    target: tyro.conf.Positional[Path]
    """A run, or a file of episodes: an episodes.jsonl or a trace (docs/inspect.md)."""
    other: Annotated[Path | None, tyro.conf.Positional] = None
    """Another run, to see the same seeds side by side."""
    episodes: int = 20
    """How many episodes."""
    seed: int | None = None
    """Seed of the first episode. Default: the run's own (eval.seed)."""
    greedy: Switch = False
    """Take the likeliest token instead of sampling."""
    checkpoint: int | Literal["best"] | None = None
    """Iteration whose weights are used, or `best`, the best by evaluation in training (eval.every).
    Default: the newest checkpoint."""
    untrained: Switch = False
    """Use the run's model as it was before training."""
    against: int | None = None
    """Show the same seeds with the weights of this iteration, too, beside the first."""
    reference: int | None = None
    """Compare probabilities with those of this iteration's weights, instead of the untrained
    model's. The page draws the ratio of the two with the clip range."""
    alone: Switch = False
    """Compare probabilities with nothing, which saves the memory of a second model."""
    to: Path | None = None
    """Where to write the page. Default: inspect.html in the run, or next to the file."""
    terminal: Switch = False
    """Show the first episode here instead of writing a page."""
    open: Switch = False
    """Open the page in a browser."""
    serve: int | None = None
    """Serve the page at this port of 127.0.0.1 until Ctrl-C, instead of writing a file. 0 takes any
    port."""
    tokenizer: str | None = None
    """For a trace without texts: a tokenizer's directory, or its name on the hub."""
    trust_code: Switch = False
    """Do what the settings of the run ask for: import modules that are not poad's, or run programs
    without protection. You are asked once (docs/security.md)."""


def run(options: Options) -> int:
    """Inspect; the exit status."""
    _check(options)
    console = Screen()
    inspection = _of_file(options) if options.target.is_file() else _of_runs(options)
    if options.terminal:
        return _show(console, inspection)
    from poad.pages import describe_episodes, inspector_page, write_page

    page = inspector_page(inspection)
    for name, episodes in inspection.agents.items():
        console.print(f"{name or 'Episodes'}: {describe_episodes(episodes)}", soft_wrap=True)
    if options.serve is not None:
        return _serve(page, options.serve, open_it=options.open)
    to = _default_place(options) if options.to is None else options.to
    write_page(to, page)
    console.print(f"The page is {to} ({len(page.encode()) / 1e6:.1f} MB).", soft_wrap=True)
    if options.open:
        open_in_browser(to.resolve().as_uri())
    return 0


def _check(options: Options) -> None:
    check_seed(options.seed)
    check_episodes(options.episodes)
    if options.against is not None and (options.other is not None or options.untrained):
        raise ConfigError(
            "--against compares two checkpoints of one run. Leave out the second run and "
            "--untrained."
        )
    if options.terminal and (options.open or options.serve is not None or options.to is not None):
        raise ConfigError(
            "--terminal writes no page. Leave out --open, --serve and --to, or --terminal."
        )
    if options.serve is not None and options.to is not None:
        raise ConfigError("--serve writes no file. Leave out --to.")
    is_file = options.target.is_file()
    if options.other is not None and (is_file or options.other.is_file()):
        raise ConfigError("Of two things to compare, both must be runs; one of these is a file.")
    plays = options.untrained or options.greedy or options.seed is not None
    others = options.against is not None or options.reference is not None or options.alone
    if is_file and (plays or others):
        raise ConfigError(
            f"{options.target} holds episodes that were played already. Leave out --seed, "
            "--greedy, --untrained, --against, --reference and --alone."
        )
    if options.alone and options.reference is not None:
        raise ConfigError("--alone compares with no reference. Leave out one of the two.")
    if is_file and options.checkpoint == "best":
        raise ConfigError(
            f"{options.target} does not say which checkpoint is the best. Name one by its number."
        )
    if options.untrained and options.checkpoint is not None:
        raise ConfigError("--untrained uses no checkpoint. Leave out one of the two.")
    if options.tokenizer is not None and not is_file:
        raise ConfigError("--tokenizer is for files. A run has its own.")


def _of_runs(options: Options) -> Inspection:
    runs = [options.target, *([] if options.other is None else [options.other])]
    for target in runs:
        run = open_run(target, trusted=options.trust_code)
        if not options.untrained:
            run.checkpoint_path(options.checkpoint)
        for named in (options.against, options.reference):
            if named is not None:
                run.checkpoint_path(named)
    from poad.workflows import Selection, Weights, inspect_runs

    chosen = [Weights(t, options.checkpoint, untrained=options.untrained) for t in runs]
    if options.against is not None:
        chosen.append(Weights(options.target, options.against))
    selection = Selection(1 if options.terminal else options.episodes, options.seed, options.greedy)
    return inspect_runs(
        chosen, selection, compare_before=not options.alone, reference=options.reference
    )


def _of_file(options: Options) -> Inspection:
    from poad.workflows import inspect_file

    assert options.checkpoint != "best", "_check refused it"
    return inspect_file(
        options.target,
        limit=options.episodes,
        checkpoint=options.checkpoint,
        tokenizer=options.tokenizer,
    )


def _show(console: Screen, inspection: Inspection) -> int:
    from poad.pages import inspect_in_terminal

    for name, episodes in inspection.agents.items():
        if name:
            console.print(f"{name}, seed {episodes[0].seed}")
        inspect_in_terminal(console, inspection, episodes[0])
    return 0


def _default_place(options: Options) -> Path:
    target = options.target
    return target.with_suffix(".html") if target.is_file() else target / "inspect.html"


def _serve(page: str, port: int, *, open_it: bool) -> int:
    import threading

    from poad.pages import LocalServer

    with LocalServer(lambda: page, port) as server:
        print(f"{server.url}   (Ctrl-C ends it)", flush=True)
        if open_it:
            open_in_browser(server.url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nNo longer served.")
    return 0
