"""The entry point of ``poad``: find the command, run it, and turn errors into messages."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from poad.errors import TRACEBACK, ConfigError, did_you_mean, explained
from poad.ranks import has_met, is_told_elsewhere, launched

COMMANDS = {
    "train": ("poad.cli.train", "train an agent in a text world"),
    "eval": ("poad.cli.eval", "evaluate a trained agent, sampled and greedy"),
    "play": ("poad.cli.play", "watch an agent turn by turn, or play yourself"),
    "inspect": ("poad.cli.inspect", "see which token of an action earned what, in a page"),
    "report": ("poad.cli.report", "show how runs learned, in a page or a figure"),
    "compare": ("poad.cli.compare", "tell what differs between runs, and what came of it"),
    "generalize": ("poad.cli.generalize", "evaluate an agent in worlds it was not trained in"),
    "export": ("poad.cli.export", "write a trained model for other programs"),
    "config": ("poad.cli.config_command", "print all settings of a training"),
    "plan": ("poad.cli.plan", "predict the memory and time of a training"),
    "study": ("poad.cli.study", "train with many methods and seeds, and compare them"),
    "verify": ("poad.cli.verify", "check the theory on problems with exact answers"),
    "pretrain": ("poad.cli.pretrain", "make a tiny model that knows the words of your world"),
    "models": ("poad.cli.models", "list the models poad knows, or fetch one of them"),
    "envs": ("poad.cli.envs", "list the worlds, describe one, or check your own"),
    "sandbox": ("poad.cli.sandbox", "check how safely this machine can run programs"),
}
"""The module of each command, and what the command does."""

_PATIENCE = 10
"""Seconds that a rank waits before it tells what rank 0 should have told already."""
_EXAMPLES = """\
Examples:
  poad train                                 learn to make a tomato salad
  poad play runs/tomato-salad-poad-seed0     watch the trained agent
  poad train --credit.method twosome --seed 1
  poad pretrain --env my_module:MyWorld-v0 --to my-model
  poad train --env my_module:MyWorld-v0 --model.name my-model

`poad help COMMAND` explains a command and its options.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 1 if the command found a failure; 2 for a usage error or another error
        that poad explains; 130 after Ctrl-C or SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0
    if arguments[0] == "--version":
        from poad.runs import versions

        print(f"poad {versions()['poad']}")
        return 0
    _prepare_process()
    try:
        with _terminations_as_interrupts():
            return _run(*arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Everything written so far is intact.\n")
        return 130
    except Exception as error:
        if launched().rank and not has_met(error):
            time.sleep(_PATIENCE)  # rank 0 says the same, and then the launcher ends this one
        elif is_told_elsewhere(error):
            return 2
        told = explained(error)
        if told is None and isinstance(error, BrokenPipeError):  # `poad ... | head`
            sys.stdout = None
            return 0
        if told is None or os.environ.get(TRACEBACK):
            raise
        _complain(f"poad: {told}\n")
        return 2


def _run(name: str, *arguments: str) -> int:
    """Import a command, parse its options and run it."""
    if name not in COMMANDS:
        raise ConfigError(
            f"There is no command {name!r}. {did_you_mean(name, COMMANDS)}"
            f"The commands are {', '.join(COMMANDS)}."
        )
    command: Any = importlib.import_module(COMMANDS[name][0])
    from poad.cli.arguments import parse

    default = command.defaults(arguments) if hasattr(command, "defaults") else None
    epilog = getattr(command, "EPILOG", "")
    options = parse(command.Options, f"poad {name}", arguments, default=default, epilog=epilog)
    return command.run(options)


@contextlib.contextmanager
def _terminations_as_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: schedulers, containers and `timeout` send it."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # outside the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _overview() -> str:
    rows = [f"  poad {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    title = "Train language agents by reinforcement learning, with credit for every token."
    return "\n".join([title, "", *rows, "", _EXAMPLES])


def _prepare_process() -> None:
    warnings.showwarning = _show_warning
    # What transformers logs is meant for developers, too, and would break the live table.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.excepthook = _show_crash
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a narrow encoding must not end a training
            stream.reconfigure(errors="replace")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Print our own warnings as one line, and drop those of libraries, meant for developers."""
    if category is UserWarning and launched().is_first:
        _complain(f"poad: note: {message}\n")


def _show_crash(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    _complain("".join(traceback.format_exception(kind, error, trace)))


def _complain(text: str) -> None:
    """Write to the standard error; worlds and models may have written a part of the text."""
    from poad.display import printable

    sys.stderr.write(printable(text))


if __name__ == "__main__":
    sys.exit(main())
