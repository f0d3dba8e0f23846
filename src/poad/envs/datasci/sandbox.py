"""Run programs that nobody has read, scored by the thousand, so that they cannot do harm.

What it stops: a program reads and writes no file, opens no socket, starts no process, sends no
signal, sees no other program, no labels but those it is given, and nothing of one split in the
next. It has 2 GiB of memory, a few threads, and one time budget. Whatever it does to its own
process, the host only ever reads one table of numbers or 2,000 bytes of text.

What it does not stop: attacks on the kernel itself, timing channels, and counters of the kernel
(process numbers, say) that can carry a few bits from one split to the next; who must fear those
runs everything in a virtual machine. A program may also use the rows it is asked about, not their
labels, while it learns. With isolation "none" it stops nothing.

Locks, outermost first: bubblewrap (own namespaces, a read-only view of Python and /usr and of
nothing else), another user when started by root, Landlock, resource limits, and a seccomp filter
that knows no call to open anything. `layers` says which of them this machine has. Without
bubblewrap the others remain ("process"); without seccomp nothing is run.
"""

import atexit
import contextlib
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from poad.envs.datasci import confinement, selftest
from poad.envs.datasci.client import Job, Link, LostAtWork, Outcome, Setup, WorkerLost, setup
from poad.envs.datasci.confinement import Layer, Missing
from poad.envs.datasci.worker import LONGEST_TEXT
from poad.errors import SandboxError

__all__ = ["Answer", "Isolation", "Job", "Layer", "Sandbox", "SandboxError", "layers"]

ATTEMPTS = 3
"""How often a program is run when its worker is lost."""
Isolation = Literal["auto", "bubblewrap", "process", "none"]


@dataclass(frozen=True)
class Answer:
    """What became of one program."""

    probabilities: tuple[np.ndarray, ...] | None
    """Per job float64 [n_test, classes], finite; None when one failed (later ones are not run)."""
    status: str
    """"ok", "error" (its exception), "timeout", "killed" (its process died) or "output" (no such
    table)."""
    message: str
    """"" when ok; else one printable line of at most 2,000 bytes, for a prompt."""
    seconds: float
    """Wall seconds of all jobs."""
    cpu_seconds: float
    """CPU seconds of the program's processes."""


_Task = tuple[bytes, Sequence[Job], "Future[Answer]"]


class Sandbox:
    """Workers that run untrusted programs: `run` one, or `submit` many and wait later.

    `workers` 0 means one per core; `budget` is in wall seconds for one program, all jobs
    together. Starting takes seconds (scikit-learn is imported, the locks are tested) and raises
    `SandboxError` when a lock fails. `isolation` then says what is in use, `notes` what is missing
    and its cure. Any thread may submit. Close it, or use it in a `with` statement.
    """

    def __init__(
        self, isolation: Isolation = "auto", workers: int = 0, budget: float = 30.0
    ) -> None:
        if isolation not in get_args(Isolation):
            known = ", ".join(get_args(Isolation))
            raise ValueError(f"isolation={isolation!r} is unknown; there are {known}")
        if workers < 0 or budget <= 0:
            raise ValueError(f"{workers=} must not be negative and {budget=} must be positive")
        self.budget = budget
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._folders = _private_folders()
        self.isolation, self.notes = self._start(isolation, workers or _cores())
        atexit.register(self.close)

    def submit(self, source: str, jobs: Sequence[Job]) -> "Future[Answer]":
        """Queue the text of a module that defines `build_model(x_train, y_train)`."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            self._tasks.put((source.encode("utf-8", "replace"), tuple(jobs), future))
        return future

    def run(self, source: str, jobs: Sequence[Job]) -> Answer:
        """`submit` and wait."""
        return self.submit(source, jobs).result()

    def close(self) -> None:
        """End the workers, and what they run; futures not done raise `SandboxError`."""
        if os.getpid() != self._process:
            return  # a fork of the trainer: not its workers
        with self._lock:
            self._closed = True
        self._stop()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, wanted: Isolation, workers: int) -> tuple[str, tuple[str, ...]]:
        """Start with the best isolation there is, never with less than was asked for."""
        notes: list[str] = []
        for isolation in ("bubblewrap", "process") if wanted == "auto" else (wanted,):
            try:
                if isolation != "none":
                    _require_linux()
                self._start_workers(setup(isolation), workers)
            except Missing as error:
                notes.append(str(error))
                continue
            return isolation, (*notes, *_gaps(isolation))
        words = " ".join(dict.fromkeys(notes))
        if wanted != "none":
            words += (
                " Or type isolation='none' to run programs without any protection, in a virtual "
                "machine perhaps. `poad sandbox check` prints what this machine offers."
            )
        raise SandboxError(words)

    def _start_workers(self, chosen: Setup, workers: int) -> None:
        ready: list[Future[None]] = [Future() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._feed, args=(chosen, one), name="sandbox", daemon=True)
            for one in ready
        ]
        for thread in self._threads:
            thread.start()
        try:
            for one in ready:
                one.result()
        except BaseException as error:
            self._stop()
            if not isinstance(error, WorkerLost):
                raise
            raise confinement.does_not_work(chosen.isolation, str(error)) from None

    def _stop(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                task = self._tasks.get_nowait()
                if task and task[2].set_running_or_notify_cancel():
                    task[2].set_exception(SandboxError("the sandbox was closed"))
        for _ in self._threads:
            self._tasks.put(None)
        with self._lock:
            for link in self._links:
                link.hang_up()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._tasks.get_nowait()

    def _feed(self, chosen: Setup, ready: "Future[None]") -> None:
        """The life of one worker's thread: start it, serve the queue, replace it when lost."""
        link = None
        try:
            link = self._open(chosen)
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while task := self._tasks.get():
            if task[2].set_running_or_notify_cancel():
                link = self._serve(link, chosen, task)
        self._drop(link)

    def _serve(self, link: Link | None, chosen: Setup, task: _Task) -> Link | None:
        """Answer one task, on another worker when this one is lost; gives the one to go on with."""
        code, jobs, future = task
        for attempt in range(ATTEMPTS):
            try:
                link = link or self._open(chosen)
                future.set_result(self._answer(link, code, jobs))
                return link
            except BaseException as error:
                link = self._drop(link)
                again = isinstance(error, WorkerLost) and attempt + 1 < ATTEMPTS
                if again and not self._closed:
                    continue
                if isinstance(error, LostAtWork) and not self._closed:
                    words = "the worker was lost each time that this program ran"
                    future.set_result(Answer(None, "killed", words, 0.0, 0.0))
                else:
                    future.set_exception(SandboxError(f"a worker was lost: {error}"))
                break
        return link

    def _answer(self, link: Link, code: bytes, jobs: Sequence[Job]) -> Answer:
        start = time.monotonic()
        tables: list[np.ndarray] = []
        outcome, cpu = Outcome("ok"), 0.0
        for job in jobs:
            outcome = link.split(code, job, start + self.budget)
            cpu += outcome.cpu_seconds
            if outcome.table is None:
                break
            tables.append(outcome.table)
        message = _printable(outcome.message, self._folders)
        if outcome.status == "timeout":
            message = f"TimeoutError: took longer than {self.budget:g} s"
        elif outcome.status != "ok" and not message:
            message = "the program does not say what went wrong"
        return Answer(
            tuple(tables) if outcome.status == "ok" else None,
            outcome.status,
            message,
            time.monotonic() - start,
            cpu,
        )

    def _open(self, chosen: Setup) -> Link:
        with self._lock:
            if self._closed:
                raise WorkerLost("the sandbox was closed")
            link = Link(chosen)
            self._links.add(link)
        try:
            link.begin()
            if chosen.isolation != "none" and (found := selftest.losses(link)):
                raise SandboxError(
                    "programs are not safe here, so none is run: " + "; ".join(found)
                )
        except BaseException:
            self._drop(link)
            raise
        return link

    def _drop(self, link: Link | None) -> None:
        if link is not None:
            with self._lock:
                self._links.discard(link)
            link.close()


def _printable(text: str, folders: Sequence[str]) -> str:
    """One line without control characters and without these folders."""
    for folder in folders:
        text = text.replace(folder, "...")
    text = "".join(c if c.isprintable() else " " for c in text)
    text = re.sub(" +", " ", text).strip()
    return text.encode("utf-8", "replace")[:LONGEST_TEXT].decode("utf-8", "ignore")


def _private_folders() -> list[str]:
    here = {sys.prefix, sys.base_prefix, os.path.dirname(confinement.interpreter()), os.getcwd()}
    here |= {os.path.expanduser("~"), os.path.dirname(os.path.abspath(__file__)), *sys.path}
    here |= {os.path.realpath(folder) for folder in here}
    return sorted((folder for folder in here if len(folder) > 1), key=len, reverse=True)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_linux() -> None:
    if not sys.platform.startswith("linux"):
        cure = "run it on Linux, in a virtual machine or a container"
        raise Missing("seccomp", f"there is none on {sys.platform}", cure)


def _gaps(isolation: str) -> tuple[str, ...]:
    if isolation == "none":
        return ("isolation='none': a program can do whatever you can do.",)
    if isolation == "process" and not confinement.landlock_version():
        return ("Landlock: this kernel has none; seccomp alone keeps programs from files.",)
    return ()


def layers() -> list[Layer]:
    """What this machine offers, outermost lock first; takes a moment, as bubblewrap is tried."""
    return confinement.layers()
