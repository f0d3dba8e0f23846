"""Attempts at the runs of a study: where they are carried out, and how they end.

On this machine, each is a process that is forked from a server, which loads the libraries once. On
a Ray cluster, each of several actors is such a machine with one run at a time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any, Protocol

from poad.cluster import ADDRESS, connect

PRELOADED = [
    "__main__",
    "poad.study.preload",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
]
"""Modules that every run needs and that take seconds to load; a missing one costs only time."""
KILL = signal.SIGKILL if os.name == "posix" else signal.SIGTERM

Work = Callable[[], None]
"""Carries out a run, in a process of its own. The exit status tells how it went."""


class Attempt(Protocol):
    """An attempt at a run."""

    @property
    def exitcode(self) -> int | None:
        """The exit status; negative for a signal, None while it is under way."""
        ...

    def ending(self) -> str:
        """Say how it ended."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        ...

    def join(self) -> None:
        """Wait for its end."""
        ...


class Place(Protocol):
    """Where runs are carried out."""

    def start(self, name: str, work: Work) -> Attempt:
        """Start an attempt."""
        ...

    def wait(self, attempts: Sequence[Any], seconds: float) -> None:
        """Wait until one of these attempts has ended, or so many seconds have passed."""
        ...


class Process:
    """An attempt in a process of this machine."""

    def __init__(self, process: Any) -> None:
        self.process = process

    @property
    def exitcode(self) -> int | None:
        """The exit status; negative for a signal, None while it is under way."""
        return self.process.exitcode

    def ending(self) -> str:
        """Say how it ended."""
        code = self.exitcode or 0
        return f"ended by signal {-code}" if code < 0 else f"exit status {code}"

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.process.pid is not None and self.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def join(self) -> None:
        """Wait for its end."""
        if self.process.pid is not None:
            self.process.join()


class Here:
    """The machine of the study."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads of a run would spin in turn
        forked = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
        self._context.set_forkserver_preload(PRELOADED)  # without effect where runs are spawned

    def start(self, name: str, work: Work) -> Process:
        """Start an attempt."""
        process = self._context.Process(target=work, name=name)
        process.start()
        return Process(process)

    def wait(self, attempts: Sequence[Any], seconds: float) -> None:
        """Wait until one of these attempts has ended, or so many seconds have passed."""
        wait([each.process.sentinel for each in attempts], timeout=seconds)


class Cluster:
    """A Ray cluster. Each attempt takes a CPU of it.

    Raises:
        ConfigError: ray is not installed, or no cluster answers.
    """

    def __init__(self) -> None:
        self._ray = connect()
        self._idle: list[Any] = []

    @property
    def cpus(self) -> int:
        """How many attempts have room at a time."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def start(self, name: str, work: Work) -> Remote:
        """Start an attempt, in an actor that has no other."""
        if self._idle:
            runner = self._idle.pop()
        else:
            kind = self._ray.remote(num_cpus=1, max_concurrency=2, scheduling_strategy="SPREAD")
            runner = kind(Runner).remote(os.getcwd())
        return Remote(self._ray, runner, name, work, self._idle.append)

    def wait(self, attempts: Sequence[Any], seconds: float) -> None:
        """Wait until one of these attempts has ended, or so many seconds have passed."""
        self._ray.wait([each.outcome for each in attempts], timeout=seconds)


class Remote:
    """An attempt in an actor.

    Args:
        ray: the package.
        runner: the actor.
        name: of the run.
        work: carries it out.
        give_back: takes the actor at the end.
    """

    def __init__(
        self, ray: Any, runner: Any, name: str, work: Work, give_back: Callable[[Any], None]
    ) -> None:
        self._ray, self._runner, self._give_back = ray, runner, give_back
        self._ready = runner.is_ready.remote()
        self.outcome = runner.carry_out.remote(name, work)
        self._ended: tuple[int, str] | None = None

    @property
    def exitcode(self) -> int | None:
        """The exit status; None while it is under way."""
        if self._ended is None and self._is_over(self.outcome):
            try:
                self._ended = self._ray.get(self.outcome)
                self._give_back(self._runner)
            except self._ray.exceptions.RayError as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                self._ended = 1, f"the Ray actor of the run has ended: {lines[-1]}"
        return None if self._ended is None else self._ended[0]

    def ending(self) -> str:
        """Say how it ended."""
        return self._ended[1] if self._ended else ""

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.exitcode is None and self._is_over(self._ready):
            self._runner.signal.remote(number)
        elif self.exitcode is None:  # it waits for a CPU
            self._ray.kill(self._runner)

    def join(self) -> None:
        """Wait for its end."""
        self._ray.wait([self.outcome])

    def _is_over(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])


class Runner:
    """An actor that carries out runs, one after the other. It ends with the study.

    Args:
        directory: where the study runs.
    """

    def __init__(self, directory: str) -> None:
        os.environ[ADDRESS] = connect().get_runtime_context().gcs_address  # for worlds of the runs
        self._directory, self._attempt = directory, None
        with contextlib.suppress(OSError):  # whether the files are there is told below
            os.chdir(directory)
        self._here = Here()

    def is_ready(self) -> bool:
        """Answer, which tells that there is a CPU."""
        return True

    def carry_out(self, name: str, work: Work) -> tuple[int, str]:
        """Carry out an attempt, and return its exit status and its ending."""
        if os.getcwd() != self._directory:
            return 2, (
                f"the machine {socket.gethostname()} does not see {self._directory}: a study on a "
                "cluster needs a directory that all its machines see under the same name"
            )
        self._attempt = attempt = self._here.start(name, work)
        attempt.join()
        return attempt.exitcode or 0, attempt.ending()

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._attempt is not None:
            self._attempt.signal(number)
