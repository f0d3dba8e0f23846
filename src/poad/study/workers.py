"""Several runs at once, each in a process of its own, here or on a cluster.

A server process loads the libraries once and is forked for each run, so that short runs do not pay
for loading them. A run that is stopped, killed or fails leaves what an ordinary run leaves: the
next attempt goes on from its checkpoint, or starts again if there is none yet.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from poad.config import load
from poad.display import printable
from poad.errors import TRACEBACK, PoadError, RunError, explained
from poad.runs import (
    UNTRAINED,
    Generalization,
    Run,
    UnseenEvaluation,
    append_line,
    decode,
    is_unborn,
    read_json,
    read_lines,
    read_summary,
    take_lock,
    write_text,
)
from poad.study.attempts import KILL, Attempt, Here, Place
from poad.study.records import Expense

MAX_ATTEMPTS = 2
EXPENSES = "spent.jsonl"


Evaluations = list[UnseenEvaluation]


@dataclass(frozen=True)
class Task:
    """A run to carry out."""

    path: Path
    """Directory of the run; `<path>.yaml` is its configuration, `<path>.log` its output."""
    unseen: tuple[str, ...] = ()
    """Worlds to evaluate it in afterwards."""
    episodes: int = 0
    """Episodes in each of them."""

    def sibling(self, ending: str) -> Path:
        """Return the path of a file that stands next to the run's directory."""
        return self.path.with_name(self.path.name + ending)

    @property
    def finished(self) -> bool:
        """Whether the run and all its evaluations are complete."""
        return self.trained and self.evaluated_unseen

    @property
    def trained(self) -> bool:
        """Whether the run itself is finished, with its final evaluation."""
        try:  # opening the whole run would take a hundred times as long
            summary = read_summary(self.path)
        except RunError:
            return False
        return summary is not None and summary.status == "finished" and bool(summary.evaluation)

    @property
    def evaluated_unseen(self) -> bool:
        """Whether the evaluations in all unseen worlds exist."""
        done = {(each.world, each.mode) for each in self.unseen_evaluations()[0]}
        return done >= {(world, mode) for world in self.unseen for mode in ("sampled", "greedy")}

    def unseen_evaluations(self) -> tuple[Evaluations, Evaluations]:
        """Read the requested evaluations in unseen worlds, of the run and its untrained agent."""
        file = self.path / "generalization.json"
        try:
            content = read_json(file)
            if content is None:
                return [], []
            content.pop("seal", None)
            results = decode(Generalization, content, str(file)).results
        except RunError:
            return [], []  # damaged, so it is evaluated again
        requested = [
            each
            for each in results
            if each.world in self.unseen and each.evaluation.episodes == self.episodes
        ]
        # The first agent is the run's own; a user may have added others beside it.
        trained = [each for each in requested if each.agent == results[0].agent]
        return trained, [each for each in requested if each.agent == UNTRAINED]

    @property
    def failure(self) -> str | None:
        """The last lines of the output of a failed attempt; None if the last one did not fail."""
        with contextlib.suppress(FileNotFoundError):
            return self.sibling(".failed").read_text(encoding="utf-8")
        return None


class Event(NamedTuple):
    """Something that happened to a run; ``waiting`` if nothing did for a moment."""

    kind: Literal["started", "finished", "retried", "failed", "waiting"]
    task: Task | None = None
    why: str = ""
    """The last lines of a failed run's output."""


Events = Generator[Event, None, None]


def run_tasks(
    tasks: Iterable[Task], jobs: int, may_start: Callable[[], bool], place: Place | None = None
) -> Events:
    """Carry out unfinished runs, several at once, and report what happens.

    Closing the generator, or Ctrl-C, asks the active runs to stop after their iteration and waits
    for them; a second Ctrl-C ends them at once. While ``may_start()`` is false no run starts, and
    the generator ends with the active runs. It yields at least once a second while runs are active.

    Args:
        tasks: the runs.
        jobs: how many at once.
        may_start: whether more runs may start.
        place: where they are carried out; default: on this machine.
    """
    place = place or Here()
    waiting, attempts = deque(tasks), dict[Path, int]()
    running: dict[Path, tuple[Task, Attempt, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs and may_start():
                task = waiting.popleft()
                if task.finished:
                    continue
                _move_aside(task)
                attempts[task.path] = attempts.get(task.path, 0) + 1
                before = len(_read_log(task))
                attempt = place.start(task.path.name, partial(_run_task, task))
                running[task.path] = task, attempt, before
                yield Event("started", task)
            if not running:
                return
            place.wait([attempt for _, attempt, _ in running.values()], 1.0)
            ended = [each for each in running.values() if each[1].exitcode is not None]
            for task, attempt, log_start in ended:
                del running[task.path]
                output = _read_log(task)[log_start:]
                event = _outcome(task, attempt, output, attempts[task.path])
                if event.kind == "retried":
                    waiting.appendleft(task)
                yield event
            if not ended:
                yield Event("waiting")
    finally:
        _stop([attempt for _, attempt, _ in running.values()])


def _outcome(task: Task, attempt: Attempt, output: str, count: int) -> Event:
    attempt.join()
    _record_killed(task)
    if attempt.exitcode == 0 and task.finished:
        task.sibling(".failed").unlink(missing_ok=True)
        return Event("finished", task)
    last_lines = [line for line in output.splitlines() if line.strip()][-4:]
    why = "\n".join([*last_lines, attempt.ending()])
    write_text(task.sibling(".failed"), why)
    return Event("retried" if count < MAX_ATTEMPTS else "failed", task, why)


def _record_killed(task: Task) -> None:
    """Record the cost of an attempt that was killed before it could do so itself."""
    meter = task.sibling(".cpu")
    with contextlib.suppress(OSError, ValueError):
        seconds = float(meter.read_text(encoding="utf-8"))
        meter.unlink()
        append_line(task.path.parent / EXPENSES, Expense(task.path.name, seconds, killed=True))


def _read_log(task: Task) -> str:
    try:
        return task.sibling(".log").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _stop(attempts: list[Attempt]) -> None:
    for attempt in attempts:
        attempt.signal(signal.SIGINT)
    try:
        for attempt in attempts:
            attempt.join()
    except KeyboardInterrupt:
        for attempt in attempts:
            attempt.signal(KILL)


def cpu_seconds_spent(folder: Path, prefix: str = "") -> float:
    """Sum the CPU seconds of all attempts at the runs whose name begins with ``prefix``."""
    file = folder / EXPENSES
    expenses = (decode(Expense, line, str(file)) for line in read_lines(file))
    return sum(each.cpu_seconds for each in expenses if each.run.startswith(prefix))


# In the process of a run.


def _run_task(task: Task) -> None:
    """Carry out one run; the exit status is that of the command line."""
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal's Ctrl-C reaches the study alone, which passes it on once
    for each in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C is ignored by default in the background
        signal.signal(each, signal.default_int_handler)
    _record_killed(task)
    threading.Thread(target=_watch_parent, args=(task,), daemon=True).start()
    log = os.open(task.sibling(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    start = time.process_time()
    try:
        status = _train(task) or _evaluate_unseen(task)
    except Exception as error:
        told = explained(error)
        if told is None or os.environ.get(TRACEBACK):
            raise
        sys.stderr.write(f"{printable(told)}\n")
        status = 2
    finally:
        expense = Expense(task.path.name, time.process_time() - start)
        append_line(task.path.parent / EXPENSES, expense)
        task.sibling(".cpu").unlink(missing_ok=True)
    sys.exit(status)


def _watch_parent(task: Task) -> None:
    """Write down the CPU time now and then, and stop the run when the study's process is gone."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        with contextlib.suppress(OSError):
            task.sibling(".cpu").write_text(str(time.process_time()), encoding="utf-8")
        parent.join(timeout=5.0)
    os.kill(os.getpid(), signal.SIGINT)


def _train(task: Task) -> int:
    from poad.workflows import resume_run, train_run

    _wait_for_lock(task)
    if not (task.path / "config.yaml").is_file():
        return train_run(
            load(task.sibling(".yaml"), complete=lambda: "Was it cut off?"), task.path, quiet=True
        )
    if task.trained:
        return 0
    return resume_run(task.path, Run.open(task.path).config, quiet=True)


def _move_aside(task: Task) -> None:
    """Free the place of a run from what cannot be opened as one, and lose nothing of it."""
    try:
        if task.path.is_dir() and not is_unborn(task.path):
            Run.open(task.path)
    except PoadError as error:
        number, aside = 1, task.sibling(".aside")
        while aside.exists():
            number, aside = number + 1, task.sibling(f".aside-{number + 1}")
        task.path.rename(aside)
        warnings.warn(f"{error} It was moved to {aside}; the run starts anew.", stacklevel=2)


def _wait_for_lock(task: Task) -> None:
    """Wait for a run whose study was killed: it keeps its lock until its iteration ends."""
    if task.path.is_dir():
        lock = take_lock(task.path / ".lock", wait=True)
        if lock is not None:
            os.close(lock)


def _evaluate_unseen(task: Task) -> int:
    if task.evaluated_unseen:
        return 0
    from poad.workflows import generalize_run

    with Run.open(task.path) as run:
        run.record_versions()
    return generalize_run(task.path, (), task.unseen, task.episodes, quiet=True)
