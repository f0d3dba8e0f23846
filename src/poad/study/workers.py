"""Several runs at once, each in a process of its own.

A server process loads the libraries once and is forked for each run, so that a short run does not
pay for them. A run that stops, is killed or fails leaves what an ordinary run leaves: the next
attempt goes on from its checkpoint, or begins anew if there is none yet.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

from poad.config import load
from poad.errors import PoadError, RunError
from poad.runs import UNTRAINED, Run, append_line, read_lines, take_lock, write_text

ATTEMPTS = 2
PRELOAD = [
    "__main__",
    "poad.study.preload",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
]
"""What every run needs and takes seconds to load; a name that is gone costs only the seconds."""


@dataclass(frozen=True)
class Task:
    """A run to carry out: its configuration lies beside its directory."""

    path: Path
    """Directory of the run; `<path>.yaml` is its configuration, `<path>.log` what it said."""
    unseen: tuple[str, ...] = ()
    """Worlds to examine it in afterwards."""
    episodes: int = 0
    """Episodes in each of them."""

    def beside(self, ending: str) -> Path:
        """A file beside the run's directory."""
        return self.path.with_name(self.path.name + ending)

    @property
    def finished(self) -> bool:
        """Whether everything that was asked for is there."""
        return self.trained and self.examined

    @property
    def trained(self) -> bool:
        """Whether the run itself is finished, and examined."""
        try:  # reading the whole run would take a hundred times as long
            summary = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return summary.get("status") == "finished" and "evaluation" in summary

    @property
    def examined(self) -> bool:
        """Whether the unseen worlds have been seen, in as many episodes as asked."""
        seen = {(line["world"], line["mode"]) for line in self.results() if line["trained"]}
        return seen >= {(world, mode) for world in self.unseen for mode in ("sampled", "greedy")}

    def results(self) -> list[dict[str, Any]]:
        """What the run and its untrained self did in the unseen worlds that are asked for."""
        if not self.unseen:
            return []
        try:
            file = self.path / "generalization.json"
            lines = json.loads(file.read_text(encoding="utf-8"))["results"]
            own = lines[0]["agent"]  # others may have been put beside it by hand
            found = {
                (line["agent"], line["world"], line["mode"]): line
                | {"trained": line["agent"] != UNTRAINED}
                for line in reversed(lines)  # the first of a name stays
                if line["agent"] in (own, UNTRAINED)
                and line["world"] in self.unseen
                and line["episodes"] == self.episodes
            }
        except (OSError, ValueError, LookupError, TypeError):
            return []
        return list(reversed(found.values()))

    @property
    def failure(self) -> str | None:
        """The last lines of an attempt that failed; none if the last one did not."""
        with contextlib.suppress(FileNotFoundError):
            return self.beside(".failed").read_text(encoding="utf-8")
        return None


class Event(NamedTuple):
    """Something that happened to a run, or nothing for a moment."""

    kind: Literal["started", "finished", "retried", "failed", "waiting"]
    task: Task | None = None
    why: str = ""
    """The last lines of what a failed run said."""


Events = Generator[Event, None, None]


def carry_out(tasks: Iterable[Task], jobs: int, may_start: Callable[[], bool]) -> Events:
    """Run what is not finished, several at once, and tell what happens.

    Closing the generator, or Ctrl-C, asks the runs under way to stop after their iteration and
    waits for them; Ctrl-C again ends them at once.

    Args:
        tasks: in order; the finished ones are passed over.
        jobs: how many at once.
        may_start: asked before each start; false lets those under way finish and then ends.

    Yields:
        Events, at least one a second while runs are under way.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the children's; two would spin against another
    forked = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
    context.set_forkserver_preload(PRELOAD)  # of no consequence where runs are spawned
    waiting, attempts = deque(tasks), dict[Path, int]()
    running: dict[Path, tuple[Task, BaseProcess, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs and may_start():
                task = waiting.popleft()
                if task.finished:
                    continue
                attempts[task.path] = attempts.get(task.path, 0) + 1
                process = context.Process(target=_work, args=(task,), name=task.path.name)
                running[task.path] = task, process, len(_log(task))
                process.start()
                yield Event("started", task)
            if not running:
                return
            wait([process.sentinel for _, process, _ in running.values()], timeout=1.0)
            ended = [each for each in running.values() if each[1].exitcode is not None]
            for task, process, before in ended:
                del running[task.path]
                told = _log(task)[before:]
                event = _outcome(task, process, told, attempts[task.path])
                if event.kind == "retried":
                    waiting.appendleft(task)
                yield event
            if not ended:
                yield Event("waiting")
    finally:
        _stop([process for _, process, _ in running.values()])


def _outcome(task: Task, process: BaseProcess, said: str, attempt: int) -> Event:
    process.join()
    _bill(task)
    if process.exitcode == 0 and task.finished:
        task.beside(".failed").unlink(missing_ok=True)
        return Event("finished", task)
    told = [line for line in said.splitlines() if line.strip()][-4:]
    code = process.exitcode or 0
    ended = f"ended by signal {-code}" if code < 0 else f"exit status {code}"
    why = "\n".join([*told, ended])
    write_text(task.beside(".failed"), why)
    return Event("retried" if attempt < ATTEMPTS else "failed", task, why)


def _bill(task: Task) -> None:
    """Count what an attempt has cost that was killed before it could say so itself."""
    meter = task.beside(".cpu")
    with contextlib.suppress(OSError, ValueError):
        seconds = float(meter.read_text(encoding="utf-8"))
        meter.unlink()
        line = {"run": task.path.name, "cpu_seconds": seconds, "killed": True}
        append_line(task.path.parent / "spent.jsonl", line)


def _log(task: Task) -> str:
    try:
        return task.beside(".log").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        _signal(process, signal.SIGINT)
    try:
        for process in processes:
            if process.pid is not None:
                process.join()
    except KeyboardInterrupt:
        for process in processes:
            _signal(process, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)


def _signal(process: BaseProcess, number: int) -> None:
    if process.pid is not None and process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def spent(folder: Path, run: str = "") -> float:
    """CPU seconds of all attempts in a directory of runs, those that failed included.

    Args:
        folder: the directory.
        run: only runs whose name begins so.
    """
    lines = read_lines(folder / "spent.jsonl")
    return sum(line["cpu_seconds"] for line in lines if line["run"].startswith(run))


# In the process of a run.


def _work(task: Task) -> None:
    """Carry out one run; the exit status is the command line's."""
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal's Ctrl-C reaches the study alone, which passes it on once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    _bill(task)
    threading.Thread(target=_follow_the_study, args=(task,), daemon=True).start()
    log = os.open(task.beside(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    start = time.process_time()
    try:
        status = _train(task) or _generalize(task)
    except PoadError as error:
        sys.stderr.write(f"{error}\n")
        status = 2
    finally:
        seconds = time.process_time() - start
        line = {"run": task.path.name, "cpu_seconds": seconds}
        append_line(task.path.parent / "spent.jsonl", line)
        task.beside(".cpu").unlink(missing_ok=True)
    sys.exit(status)


def _follow_the_study(task: Task) -> None:
    """Say now and then what was spent; stop politely when the study is gone, however it ended."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        with contextlib.suppress(OSError):
            task.beside(".cpu").write_text(str(time.process_time()), encoding="utf-8")
        parent.join(timeout=5.0)
    os.kill(os.getpid(), signal.SIGINT)


def _train(task: Task) -> int:
    from poad.workflows import resume_run, train_run

    _await_its_writer(task)
    try:
        begun = bool(Run.open(task.path).checkpoints())
    except RunError:
        begun = False
    if not begun:  # nothing to go on from
        shutil.rmtree(task.path, ignore_errors=True)
        return train_run(load(task.beside(".yaml")), task.path, quiet=True)
    if task.trained:
        return 0
    return resume_run(task.path, Run.open(task.path).config, quiet=True)


def _await_its_writer(task: Task) -> None:
    """A run of a study that was killed ends after its iteration; until then it is not ours."""
    if task.path.is_dir():
        lock = take_lock(task.path / ".lock", wait=True)
        if lock is not None:
            os.close(lock)


def _generalize(task: Task) -> int:
    if task.examined:
        return 0
    from poad.workflows import generalize_run

    with Run.open(task.path) as run:
        run.sign()
    return generalize_run(task.path, (), task.unseen, task.episodes, quiet=True)
