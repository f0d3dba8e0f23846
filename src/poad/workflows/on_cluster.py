"""One training on a Ray cluster: Ray Train places its processes, and starts them again.

Each process calls the function that a launcher would let it call, and finds the others as it would
with `torchrun`. What rank 0 prints is seen where the command was given, and so is what it warns of.
Checkpoints are those of the run, in a directory that all machines see; Ray Train is given none.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import os
import shutil
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import poad.errors
from poad.cluster import connect, last_line
from poad.errors import TRACEBACK, RankError, RunError, explained
from poad.ranks import PATIENCE, Ranks, is_lost, is_told_elsewhere, joined
from poad.workflows.together import STOPPING, deferred_interrupt

_PAUSE = 0.2
"""Seconds between two letters from rank 0, and between two looks for them."""
_TERMINAL = (
    *("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("COLUMNS", "LINES", TRACEBACK),
)
"""What is known of the terminal, and of how errors are told."""


@dataclass(frozen=True)
class Placement:
    """How many processes a cluster starts for a training."""

    workers: int
    """The number of processes."""
    fewest: int
    """How many are enough to go on when machines are gone."""
    restarts: int
    """How often processes that died are replaced; -1 sets no limit."""
    gpus: bool | None = None
    """Whether each has a GPU; None, if the cluster has enough of them."""


@dataclass(frozen=True)
class _Order:
    """What every process is to do."""

    train: Callable[[], int]
    again: Callable[[], int]
    path: Path
    before: tuple[int, int] | None
    """The mark of the run that was there before."""
    directory: str
    notes: Path
    terminal: dict[str, str]
    live: bool


def train_on_cluster(
    train: Callable[[], int], again: Callable[[], int], path: Path, placement: Placement
) -> int:
    """Train a run on a Ray cluster.

    Processes that die are started again, and go on from the last checkpoint. The first Ctrl-C or
    SIGTERM stops the training after its iteration; a second one ends its processes.

    Args:
        train: trains, in each process: a `functools.partial` of `train_run` or `resume_run`.
        again: goes on with the run that this has begun.
        path: the directory of the run, which all machines see.
        placement: how many processes there are.

    Returns:
        The exit status: 0, or 130 if it was stopped.

    Raises:
        ConfigError: ray is not installed, or no cluster answers.
        PoadError: what a process raised.
        RankError: processes died more often than they may be replaced.
    """
    ray = connect(placement.workers)
    desk = _open_desk(ray)
    if (cpus := int(ray.cluster_resources().get("CPU", 0))) < placement.fewest:
        warnings.warn(
            f"The cluster has {cpus} CPUs. The training waits until there is one for each of its "
            f"{placement.fewest} processes.",
            stacklevel=2,
        )
    notes = path.absolute().parent / f".{path.name}.ray"
    size = shutil.get_terminal_size()
    live = sys.stdout.isatty()
    terminal = {"COLUMNS": str(size.columns), "LINES": str(size.lines)} if live else {}
    terminal |= {name: os.environ[name] for name in _TERMINAL if name in os.environ}
    order = _Order(train, again, path, _mark(path), os.getcwd(), notes, terminal, live)
    notes.mkdir(parents=True, exist_ok=True)
    fitting = _Fitting(partial(_fit, ray, order, desk, placement))
    try:
        outcome = _follow(ray, desk, fitting)
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    if fitting.error is not None and not outcome:
        raise RankError(
            f"The processes of this training ended, and were started again as often as they may "
            f"(--ray.restarts): {last_line(fitting.error)}. The last checkpoint is intact: go on "
            f"with `poad train --resume {path}`."
        ) from fitting.error
    kind, told = outcome or ("RankError", "No process told how the training has ended.")
    if kind == "status":
        return int(told)
    raise getattr(poad.errors, kind, RankError)(told)


def _follow(ray: Any, desk: Any, fitting: _Fitting) -> tuple[str, str] | None:
    """Show what rank 0 says until the training is over, and return what came of it."""
    with deferred_interrupt() as interrupts:
        fitting.start()
        try:
            while fitting.is_alive():
                fitting.join(_PAUSE)
                _show(ray.get(desk.fetch.remote(bool(interrupts))))
        except BaseException:
            ray.shutdown()  # ends the processes; the last checkpoint is intact
            raise
    _show(ray.get(desk.fetch.remote(False)))
    return ray.get(desk.outcome.remote())


def _show(said: list[tuple[str, str]]) -> None:
    for kind, text in said:
        if kind in ("stdout", "stderr"):
            stream = getattr(sys, kind)
            stream.write(text)
            stream.flush()
        else:
            warnings.warn(text, getattr(builtins, kind, UserWarning), stacklevel=2)


def _fit(ray: Any, order: _Order, desk: Any, placement: Placement) -> None:
    """Let Ray Train do it; returns at the end, and raises if processes die too often."""
    train, torch = (importlib.import_module(name) for name in ("ray.train", "ray.train.torch"))
    here = ray.cluster_resources()
    gpus = placement.gpus
    if gpus is None:
        gpus = here.get("GPU", 0) >= placement.fewest
    most, fewest = placement.workers, min(placement.fewest, placement.workers)
    torch.TorchTrainer(
        partial(_take_part, order, desk),
        torch_config=torch.TorchConfig(
            "cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=int(PATIENCE.total_seconds())
        ),
        scaling_config=train.ScalingConfig(
            num_workers=most if fewest == most else (fewest, most), use_gpu=gpus
        ),
        run_config=train.RunConfig(
            name=order.notes.name,
            storage_path=str(order.notes.parent),
            failure_config=train.FailureConfig(max_failures=placement.restarts),
        ),
    ).fit()


class _Fitting(threading.Thread):
    """The thread that waits for Ray Train, so that the main one can listen."""

    def __init__(self, fit: Callable[[], None]) -> None:
        super().__init__(name="poad: Ray Train", daemon=True)
        self.error: Exception | None = None
        self._fit = fit

    def run(self) -> None:
        """Wait for the end."""
        try:
            self._fit()
        except Exception as error:
            self.error = error


def _mark(path: Path) -> tuple[int, int] | None:
    """What tells the run in a directory from one that was there before; None if there is none."""
    try:
        found = (path / "config.yaml").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class _Desk:
    """An actor beside the command: it keeps what rank 0 says until the command fetches it."""

    def __init__(self) -> None:
        self._said: list[tuple[str, str]] = []
        self._outcome: tuple[str, str] | None = None
        self._stopping, self._attempts = False, 0

    def enter(self) -> int:
        """Count the times that rank 0 was started."""
        self._attempts += 1
        return self._attempts

    def tell(self, said: list[tuple[str, str]]) -> bool:
        """Take what rank 0 says, and tell whether it should stop."""
        self._said += said
        return self._stopping

    def close(self, kind: str, told: str) -> None:
        """Note the exit status, or the error that a rank tells; the first one counts."""
        self._outcome = self._outcome or (kind, told)

    def fetch(self, stopping: bool) -> list[tuple[str, str]]:
        """Hand over what was said."""
        self._stopping = self._stopping or stopping
        said, self._said = self._said, []
        return said

    def outcome(self) -> tuple[str, str] | None:
        """Return what came of the training."""
        return self._outcome


def _open_desk(ray: Any) -> Any:
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote()


# In the processes of the training.


def _take_part(order: _Order, desk: Any) -> None:
    """Be one of the processes. An error that would come again is told, others start it again."""
    import torch.distributed as dist

    ray = connect()
    try:
        with joined() as ranks, _heard(order, desk, ranks):
            status = _train(order, desk, ranks)
            if ranks.is_first:
                ray.get(desk.close.remote("status", str(status)))
    except Exception as error:
        told = explained(error)
        if told is None or (is_lost(error) and not is_told_elsewhere(error)):
            raise
        if not is_told_elsewhere(error):
            ray.get(desk.close.remote(type(error).__name__, told))
    finally:
        if dist.is_initialized():  # so that the others notice
            dist.destroy_process_group()


def _train(order: _Order, desk: Any, ranks: Ranks) -> int:
    with contextlib.suppress(OSError):
        os.chdir(order.directory)
    if not order.notes.is_dir():
        raise RunError(
            f"The machine {socket.gethostname()} does not see {order.notes.parent}. A training on "
            "a cluster needs a directory that all its machines see under the same name: use --run "
            "on a shared file system."
        )
    attempt = connect().get(desk.enter.remote()) if ranks.is_first else 0
    mark = _mark(order.path)
    begun = mark is not None and mark != order.before
    begun, first = ranks.exchange("attempt", (begun, attempt <= 1))[0]
    if not first:
        warnings.warn(
            "Processes of this training have ended or joined. It goes on from its last checkpoint, "
            f"with {ranks.size}.",
            stacklevel=2,
        )
    return order.again() if begun else order.train()


@contextmanager
def _heard(order: _Order, desk: Any, ranks: Ranks) -> Iterator[None]:
    """Let what rank 0 prints, and warns of, be seen where the command was given."""
    os.environ |= order.terminal
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not ranks.is_first:
        with warnings.catch_warnings(action="ignore"):
            yield
        return
    ray = connect()
    said: list[tuple[str, str]] = []
    requests: list[bool] = []
    over = threading.Event()

    def deliver() -> None:
        batch = said[:]
        del said[: len(batch)]
        if ray.get(desk.tell.remote(batch)) and not requests:
            requests.append(True)

    def keep_delivering() -> None:
        while not over.wait(_PAUSE):
            deliver()

    def warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if category is UserWarning:  # those of libraries are for developers
            said.append((category.__name__, str(message)))

    STOPPING.set(requests)
    thread = threading.Thread(target=keep_delivering, daemon=True)
    thread.start()
    streams = [_Voice(name, said, live=order.live) for name in ("stdout", "stderr")]
    try:
        with (
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            warnings.catch_warnings(),
        ):
            warnings.showwarning = warn
            yield
    finally:
        over.set()
        thread.join()
        deliver()


class _Voice(io.TextIOBase):
    """A stream of text that is delivered elsewhere."""

    encoding = "utf-8"

    def __init__(self, name: str, said: list[tuple[str, str]], *, live: bool) -> None:
        self._name, self._said, self._live = name, said, live

    def write(self, text: str) -> int:
        """Take a text."""
        self._said.append((self._name, text))
        return len(text)

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return self._live
