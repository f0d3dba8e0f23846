"""A run is a directory that holds its configuration, its history and what it learned.

    config.yaml       the resolved configuration; `poad train --config` repeats the run from it
    versions.json     versions of Python, packages and poad's source, and the platform
    metrics.jsonl     a line per training iteration
    episodes.jsonl    a line per evaluation episode, turn by turn
    world_errors.jsonl  a line per failure of a world in training
    summary.json      the outcome
    checkpoints/      000024/<name>.safetensors and state.json
    best_program.py   the agent's best program, in worlds that ask for one
    report.html       curves, tables and one episode as a page

Text files are strict JSON (null stands for NaN) and tensors are safetensors; nothing is pickled. A
file is written completely or not at all, except the two .jsonl files: a crash may tear their last
line, which readers skip. The files vouch for each other (:mod:`poad.runs.seals`), so that one that
was damaged or comes from another run is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from poad.config import Config, dump, to_dict
from poad.errors import LockedError, RunError, WorldError
from poad.runs.checkpoint import Checkpoints, Saved, Tensors
from poad.runs.codec import encode
from poad.runs.files import (
    append_line,
    explained_as,
    take_lock,
    write_bytes,
    write_text,
)
from poad.runs.history import (
    History,
    best_of,
    read_json,
    read_world_errors,
    reseal,
    write_sealed,
)
from poad.runs.place import OWN_FILES, begin_run, check_new_run, stored_config
from poad.runs.provenance import with_environment
from poad.runs.records import EpisodeRecord, RunSummary, WorldErrorRecord
from poad.runs.seals import (
    check_versions,
)
from poad.runs.trackers import Tracker, open_trackers

UNTRAINED = "untrained"
"""Label of the agent before training in tables of agents."""


class Run:
    """A run's directory; everything written to it or read from it goes through here.

    Use :meth:`create` or :meth:`open`. The first write takes the run's lock, so that two processes
    never write to the same run; reading needs no lock. Close a run, or use it in a ``with``
    statement; the end of the process closes it as well.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self._checkpoints = Checkpoints(path / "checkpoints")
        self._lock: int | None = None
        self._trackers: list[Tracker] | None = None
        self._added = False  # whether there are episodes that the summary does not know

    @classmethod
    def create(cls, path: str | Path, config: Config, *, overwrite: bool = False) -> Run:
        """Start a new run in a directory that does not exist yet or is empty.

        A run that has learned nothing is replaced if it never began or had the same settings. With
        ``overwrite``, any run is.

        Raises:
            RunError: the directory is taken or cannot be written, or a tracker cannot be opened
                (nothing is left behind then).
        """
        path = Path(path)
        check_new_run(path, config, overwrite=overwrite)
        run, is_new = cls(path, config), False
        with explained_as(f"create the run {path}"):
            path.mkdir(parents=True, exist_ok=True)
        run._take_lock()
        try:
            check_new_run(path, config, overwrite=overwrite)  # another may have been quicker
            is_new = not (path / "config.yaml").is_file()
            begin_run(path, config, overwrite=overwrite)
            run._open_trackers(first=1)
        except BaseException:
            run.close()
            if is_new:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run, to read it or to go on with it.

        Raises:
            RunError: the directory is not a run, or its files do not belong together; the message
                says what is wrong.
            ConfigError: its configuration cannot be read or is incomplete.
        """
        path = Path(path)
        run = cls(path, stored_config(path))
        check_versions(path / "versions.json", run.versions(), run._history.settings)
        return run

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, env={self.config.env!r}, checkpoints={self.checkpoints()})"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Seal the episodes that were added, close the trackers and release the lock."""
        if self._added:  # if earlier lines were damaged, the next reader tells
            with contextlib.suppress(RunError), self._writing("summary.json"):
                self._history.renew_seal()
        for tracker in self._trackers or ():
            tracker.close()
        self._trackers = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def change_config(self, config: Config) -> None:
        """Replace the configuration, for example by one with more steps."""
        with self._writing("config.yaml") as path:
            write_text(path, dump(config))
            reseal(path.with_name("versions.json"), config)
        self.config = config
        self.__dict__.pop("_history", None)

    def versions(self) -> dict[str, Any]:
        """Read the versions that the run was created with, and those of later sessions."""
        return read_json(self.path / "versions.json") or {}

    def add_notes(self, notes: Sequence[str]) -> None:
        """Record remarks in versions.json: the world's, and what was found before training."""
        with self._writing("versions.json") as path:
            write_sealed(path, self.versions() | {"notes": list(notes)})

    def record_versions(self) -> None:
        """Record the current versions in versions.json if no earlier session ran with the same."""
        if (recorded := with_environment(self.versions())) is not None:
            with self._writing("versions.json") as path:
                write_sealed(path, recorded)

    # Metrics, episodes and the outcome.

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append one iteration's metrics to metrics.jsonl and send them to the trackers."""
        with self._writing("metrics.jsonl", "write to") as path:
            append_line(path, metrics)
        step = int(metrics.get("env_steps", 0))
        for tracker in self._open_trackers(first=step):
            tracker.log(metrics, step)

    def metrics(self) -> list[dict[str, float]]:
        """Read all metrics logged so far, a dictionary per iteration; null reads as NaN."""
        return self._history.metrics()

    def truncate_metrics(self, iteration: int) -> None:
        """Remove what was recorded after ``iteration``, before training goes on from there.

        Raises:
            RunError: lines up to the checkpoint of that iteration are not as they were.
        """
        kept = self._history.until(iteration)
        with self._writing("summary.json", "remove") as path:
            path.unlink(missing_ok=True)
        for name, content in kept.items():
            with self._writing(name) as path:
                write_bytes(path, content)
        self._open_trackers(first=1 + int(max((m["env_steps"] for m in self.metrics()), default=0)))

    def forget_episodes(self, checkpoint: int) -> None:
        """Remove what an interrupted final evaluation of a checkpoint left, before it is repeated.

        An episode depends on its seed and the weights alone, so playing it again brings it back.
        """
        kept, path = self._history.without_evaluation(checkpoint), self.path / "episodes.jsonl"
        if path.is_file() and path.stat().st_size > len(kept):
            with self._writing(path.name):
                write_bytes(path, kept)

    def add_episodes(self, records: Iterable[EpisodeRecord]) -> None:
        """Append evaluation episodes one by one, so that an interruption loses none."""
        for record in records:
            with self._writing("episodes.jsonl", "write to") as path:
                append_line(path, record)
            self._added = True

    def episodes(self) -> Iterator[EpisodeRecord]:
        """Read the evaluation episodes in the order they were written."""
        return self._history.episodes()

    def keep(self, file: str, text: str) -> None:
        """Write the best work of the agent so far, replacing the one before.

        Raises:
            WorldError: the world gives it the name of a file of the run, or none at all.
        """
        _check_work_name(file, self.config.env)
        with self._writing(file) as path:
            write_text(path, text)

    def write_summary(self, summary: RunSummary) -> None:
        """Write the outcome, replacing an earlier one, and send it to the trackers."""
        with self._writing("summary.json") as path:
            write_sealed(path, encode(summary) | {"seal": self._history.new_seal()})
        for tracker in self._trackers or ():
            tracker.log(_final_scores(summary), summary.env_steps or 0)

    def summary(self) -> RunSummary | None:
        """Read the outcome; None while the run is unfinished."""
        return self._history.summary()

    @cached_property
    def _history(self) -> History:
        return History(self.path, self.config, self._checkpoints)

    # Checkpoints.

    def save_checkpoint(self, iteration: int, tensors: Tensors, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and remove old ones beyond ``config.keep_checkpoints`` and the best.

        Args:
            iteration: the training iteration after which it is written.
            tensors: tensors by name, by group; each group becomes ``<group>.safetensors``.
            state: whatever else resuming needs, in values that JSON can hold.

        Returns:
            The checkpoint's directory.

        Raises:
            RunError: it could not be written; earlier checkpoints are intact.
        """
        self._take_lock()
        seal, keep = self._history.new_seal(), self.config.keep_checkpoints
        best = self.best_of((*self.checkpoints(), iteration))
        return self._checkpoints.save(iteration, tensors, state, seal, keep, best)

    def checkpoints(self) -> list[int]:
        """List the iterations that have a checkpoint, in ascending order."""
        return self._checkpoints.iterations()

    def checkpoint_path(self, iteration: int | Literal["best"] | None = None) -> Path:
        """Return the directory of a checkpoint (default: the newest).

        Raises:
            RunError: there is no such checkpoint; the message lists those that exist.
        """
        return self._checkpoints.find(_best(self) if iteration == "best" else iteration)

    def best_of(self, iterations: Collection[int]) -> int | None:
        """Find the iteration at which evaluation during training went best; None without any."""
        return best_of(self.metrics(), iterations) if self.config.eval.every else None

    def load_checkpoint(self, path: Path | None = None) -> Saved:
        """Read the (tensors, state) of a checkpoint (default: the newest).

        Raises:
            RunError: it is missing or damaged; the message names the others.
        """
        return self._checkpoints.load(path, self._history.settings)

    def recover_checkpoint(self) -> Saved:
        """Read the newest checkpoint that is whole; newer ones are set aside, with a warning.

        Raises:
            RunError: none is whole.
        """
        with self._writing("checkpoints", "set a damaged checkpoint aside in"):
            return self._checkpoints.recover(self._history.settings)

    # One writer at a time.

    @contextlib.contextmanager
    def _writing(self, name: str, verb: str = "write") -> Iterator[Path]:
        """Yield the path of a file that the block writes, with the run locked."""
        self._take_lock()
        with explained_as(f"{verb} {self.path / name}"):
            yield self.path / name

    def _take_lock(self) -> None:
        """Take the lock, once; the system releases it when the process ends."""
        if self._lock is None:
            self._lock = _lock(self.path)

    def _open_trackers(self, first: int) -> Sequence[Tracker]:
        if self._trackers is None:
            self._trackers = _open_trackers(self, first)
        return self._trackers


def add_world_error(run: Run, record: WorldErrorRecord) -> int:
    """Append a failure of a world to world_errors.jsonl; return the number of its line, from 1."""
    with run._writing("world_errors.jsonl", "write to") as path:
        append_line(path, record)
    return len(read_world_errors(run.path))


def show_page(run: Run, name: str, draw: Callable[[], str | None], step: int) -> None:
    """Send an HTML page to those of a run's trackers that show pages.

    Args:
        run: the run.
        name: what the trackers call the page.
        draw: builds the page, or returns None if there is nothing to show. It is not called if
            no tracker would show the page.
        step: environment steps so far.
    """
    showing = [tracker for tracker in run._trackers or () if tracker.shows_pages]
    page = draw() if showing else None
    if page is not None:
        for tracker in showing:
            tracker.show(name, page, step)


def _best(run: Run) -> int:
    best = run.best_of(run.checkpoints())
    if best is None:
        raise RunError(
            f"The run {run.path} has no checkpoint that was evaluated in training, as with "
            "eval.every. Leave out --checkpoint for the newest."
        )
    return best


def _final_scores(summary: RunSummary) -> dict[str, float]:
    """The evaluation at the end, as trackers get it."""
    return {
        f"final/{mode}_{what}": value
        for mode, each in (summary.evaluation or {}).items()
        for what, value in (("success", each.success_rate), ("return", each.mean_return))
    }


def _open_trackers(run: Run, first: int) -> list[Tracker]:
    name = f"{run.path.name} {run.versions().get('created')}"
    run_id = hashlib.sha256(name.encode()).hexdigest()[:12]
    return open_trackers(run.config.trackers, run.path, run_id, to_dict(run.config), first)


def _lock(path: Path) -> int | None:
    try:
        with explained_as(f"write to the run {path}"):
            return take_lock(path / ".lock")
    except LockedError as error:
        raise RunError(
            f"Another process ({error}) is writing to the run {path}. Wait until it ends, stop it, "
            "or use another directory."
        ) from error


def _check_work_name(file: str, env: str) -> None:
    """Raise WorldError unless a world may keep its work in a file of this name."""
    if not file or file != Path(file).name or file.startswith(".") or file.lower() in OWN_FILES:
        raise WorldError(
            f"The world {env} calls its work {file!r} (info['work']['file']). That is not a plain "
            "file name, or the run has such a file itself. Let the world use another name, such as "
            "best_program.py."
        )
