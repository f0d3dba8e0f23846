"""Processes that need not load torch again: each is forked from one that has, as a study's are.

A test that says something of a fresh interpreter starts one instead.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poad.cli.main import main

PRELOADED = [
    "__main__",
    "poad.study.preload",
    "poad.cli.main",
    "torch.distributed",
    "matplotlib.backends.backend_svg",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
]
"""What the server of all forks loads when the first one is asked for."""


PATH = [*sys.path]
"""Where modules are looked for before a test has added a folder of its own."""


class Forked:
    """Some work in a process of its own, with what it prints in files.

    Args:
        work: a function at the top of a module; an int that it returns is the exit status.
        args: its arguments.
        folder: where the process works; None for here.
        environment: what differs from this process's.
    """

    def __init__(
        self, work: Callable[..., Any], *args: Any, folder: Path | None = None, **environment: str
    ) -> None:
        told_in = Path(tempfile.mkdtemp(prefix="poad-test-"))
        weakref.finalize(self, shutil.rmtree, told_in, ignore_errors=True)
        self._files = [told_in / "out", told_in / "err"]
        for file in self._files:
            file.touch()
        context: Any = multiprocessing.get_context("forkserver")
        # It can import the tests, but not what another test of this process has made importable.
        tests = Path(__file__).parent
        path = [each for each in sys.path if each in PATH or Path(each).is_relative_to(tests)]
        told = (work, args, folder or Path.cwd(), path, {**os.environ, **environment}, self._files)
        self._process = context.Process(target=_carry_out, args=told)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        """What it has complained of so far."""
        return self._files[1].read_text()

    def line(self, *, after: str = "") -> str:
        """The first whole line that begins like this, as soon as it is there."""
        while True:
            ended = self.poll() is not None
            for line in self.stdout.splitlines(keepends=True):
                if line.startswith(after) and line.endswith("\n"):
                    return line
            assert not ended, self.stderr
            time.sleep(0.02)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it works."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait until it ends, for its exit status."""
        self._process.join()
        return self._process.exitcode


def poad(*words: str, folder: Path | None = None, **environment: str) -> Forked:
    """Start a command of poad."""
    return Forked(main, words, folder=folder, **environment)


def refuse_each(commands: list[list[str]]) -> None:
    """Run commands of poad, all of which are mistakes."""
    for words in commands:
        assert main(words) == 2, words


def _carry_out(
    work: Callable[..., Any],
    args: tuple[Any, ...],
    folder: Path,
    path: list[str],
    environment: dict[str, str],
    files: list[Path],
) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    os.chdir(folder)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = work(*args)
    sys.exit(found if isinstance(found, int) else 0)
