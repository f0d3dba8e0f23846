"""Run thousands of programs that nobody has read, without letting them do harm.

The sandbox stops this: a program cannot read or write files, open sockets, start processes or send
signals. It sees no other program, no labels except those it is given, and nothing of an earlier
split. It has 2 GiB of memory, a few threads and one time budget. Whatever a program does to its own
process, the host only reads one table of numbers or 2,000 bytes of text, and it passes on a text
only if the same program says the same where the labels are shuffled. Without a seed of its own, a
program draws random numbers that depend on its text and the split alone.

The sandbox does not stop this:

* Attacks on the kernel itself.
* Timing. Programs that run at once can notice each other by the load on cores, caches and memory.
  A split that ends at a chosen moment tells the next one some bits by the time at which it begins,
  and a page of a library that one was the first to read is read faster by the other.
* Memory that runs out. Where the kernel promises no more than it has (vm.overcommit_memory = 2), or
  where the machine has little, what one program takes another one lacks.
* Its score, and whether it fails, tell the agent something of the labels, as they are meant to.
* While it learns, a program may use the rows it will be asked about, though not their labels.
* Where the kernel grants no user namespaces (see `layers`), all splits share one space of process
  numbers and one count of threads. Both are counters that carry some ten bits from one program to
  another. `notes` says so.
* A program that reads a clock, an address or memory that nobody wrote, or that races its own
  threads, may not repeat its score. `id(x)`, the order of a set of objects and `np.empty` are such.
* With isolation "none" the sandbox stops nothing.

Use a virtual machine if these matter to you.

The layers, outermost first: bubblewrap (separate namespaces and a read-only view of Python and /usr
alone), another user if root started the sandbox, Landlock, user and process namespaces of each
split, resource limits, and a seccomp filter that allows no call that opens anything, names another
process or counts what others do. `layers` reports which of them this machine has. Without
bubblewrap the other layers remain ("process"). Without seccomp no program is run. If memory runs
out, the kernel ends programs before the trainer.
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
"""A program is run at most so many times if its worker is lost."""
Isolation = Literal["auto", "bubblewrap", "process", "none"]


@dataclass(frozen=True)
class Answer:
    """The result of one program."""

    probabilities: tuple[np.ndarray, ...] | None
    """For each job [n_test, classes] float64, finite. None if one failed; later ones do not run."""
    status: str
    """"ok", "error" (it raised an exception), "timeout", "killed" (its process died) or "output"
    (it returned something other than such a table)."""
    message: str
    """Empty if ok; otherwise one printable line of at most 2,000 bytes, for a prompt."""
    seconds: float
    """Wall-clock seconds of all jobs."""
    cpu_seconds: float
    """CPU seconds of the program's processes."""


_Task = tuple[bytes, Sequence[Job], "Future[Answer]"]


class Sandbox:
    """Workers that run untrusted programs: `run` one, or `submit` many and wait later.

    Starting takes seconds, because scikit-learn is imported and the layers are tested. Afterwards
    the attribute `isolation` names the isolation in use, and `notes` lists missing layers and how
    to get them. Any thread may submit. Close the sandbox, or use it in a `with` statement.

    Args:
        isolation: "bubblewrap", "process" (without bubblewrap) or "none". "auto" takes the best of
            the first two that this machine has.
        workers: how many programs run at once; 0 means one per core.
        budget: wall-clock seconds for one program with all of its jobs.

    Raises:
        ValueError: an argument is out of range.
        SandboxError: the isolation is not available here, or a layer does not hold.
    """

    def __init__(
        self, isolation: Isolation = "auto", workers: int = 0, budget: float = 30.0
    ) -> None:
        if isolation not in get_args(Isolation):
            known = ", ".join(get_args(Isolation))
            raise ValueError(f"isolation={isolation!r} is unknown; known: {known}.")
        if workers < 0 or budget <= 0:
            raise ValueError(f"{workers=} must not be negative, and {budget=} must be positive.")
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
        """Queue a program and return a future of its answer.

        Args:
            source: the text of a module that defines `build_model(x_train, y_train)`.
            jobs: the splits to run it on, in this order.

        Raises:
            SandboxError: the sandbox is closed. The future raises it if no worker can be kept.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            self._tasks.put((source.encode("utf-8", "replace"), tuple(jobs), future))
        return future

    def run(self, source: str, jobs: Sequence[Job]) -> Answer:
        """Submit a program and wait for its answer."""
        return self.submit(source, jobs).result()

    def close(self) -> None:
        """End the workers and their programs. Unfinished futures raise `SandboxError`."""
        if os.getpid() != self._process:
            return  # a fork of this process does not own the workers
        with self._lock:
            self._closed = True
        self._stop()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, wanted: Isolation, workers: int) -> tuple[str, tuple[str, ...]]:
        """Start with the best isolation available, never with less than requested."""
        notes: list[str] = []
        for isolation in ("bubblewrap", "process") if wanted == "auto" else (wanted,):
            try:
                if isolation != "none":
                    _require_linux()
                self._start_workers(setup(isolation), workers)
            except Missing as error:
                notes.append(str(error))
                continue
            return isolation, (*notes, *_gaps(isolation, all(e.apart for e in self._links)))
        words = " ".join(dict.fromkeys(notes))
        if wanted != "none":
            words += (
                " Or pass isolation='none' to run programs without any protection, for example in "
                "a virtual machine. `poad sandbox check` lists the layers of this machine."
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
        """Run one worker's thread: start it, serve the queue, and replace it if it is lost."""
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
        """Answer one task, on a new worker if this one is lost; return the worker to go on with."""
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
        start, cpu = time.monotonic(), 0.0
        tables: list[np.ndarray] = []
        for job in jobs:
            outcome = link.split(code, job, start + self.budget)
            cpu += outcome.cpu_seconds
            if outcome.table is None:
                message, more = self._message(link, code, job, outcome)
                seconds = time.monotonic() - start
                return Answer(None, outcome.status, message, seconds, cpu + more)
            tables.append(outcome.table)
        return Answer(tuple(tables), "ok", "", time.monotonic() - start, cpu)

    def _message(self, link: Link, code: bytes, job: Job, outcome: Outcome) -> tuple[str, float]:
        """Say why a program failed, for the agent, and how many CPU seconds it took to find out.

        A program may put labels into its message, so only what it also says of a decoy is told.
        """
        if outcome.status == "timeout":
            return f"TimeoutError: took longer than {self.budget:g} s", 0.0
        decoy = link.split(code, job.decoy(), time.monotonic() + self.budget)
        said, other = (_printable(each.message, self._folders) for each in (outcome, decoy))
        if said != other:
            said = "the program fails in a way that depends on the classes of the rows"
        return said or "the program does not say what went wrong", decoy.cpu_seconds

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
    """Reduce a text to one line without control characters and without these folders."""
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


def _gaps(isolation: str, apart: bool) -> tuple[str, ...]:
    if isolation == "none":
        return ("isolation='none': a program can do whatever you can do.",)
    found = []
    if isolation == "process" and not confinement.landlock_version():
        found.append("Landlock: this kernel has none, so seccomp alone protects your files.")
    if not apart:
        found.append(
            "namespaces: splits share process numbers here, by which programs can pass on a few "
            f"bits about labels. Cure: {confinement.ALLOW_NAMESPACES}."
        )
    return tuple(found)


def layers() -> list[Layer]:
    """List the layers and whether this machine has them, outermost first. This tries bubblewrap."""
    return confinement.layers()
