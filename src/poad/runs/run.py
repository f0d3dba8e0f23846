"""A run is a directory: what was asked for, what happened, and what was learned.

    config.yaml       the resolved configuration, reusable as it is
    versions.json     what ran: Python, platform, packages, poad's source
    metrics.jsonl     a line per training iteration
    episodes.jsonl    a line per evaluation episode, turn by turn
    summary.json      the outcome
    checkpoints/      000024/<name>.safetensors and state.json
    best_program.py   the best thing the agent made, where a world calls for making things
    report.html       the same, to look at

Text is strict JSON (what is not a number is null) and tensors are safetensors: a run can be read by
anything, and nothing is ever pickled. A file is written whole or not at all, except the two .jsonl
files: a crash may tear their last line, which readers skip.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poad.config import Config, dump, load, to_dict
from poad.errors import LockedError, RunError, TrackerError
from poad.runs.checkpoint import discard, read_checkpoint, write_checkpoint
from poad.runs.files import append_line, json_line, read_lines, take_lock, write_json, write_text
from poad.runs.provenance import PACKAGES, source_commit, source_hash, versions
from poad.runs.trackers import Tracker, open_trackers

if TYPE_CHECKING:
    from torch import Tensor


UNTRAINED = "untrained"
"""What the agent before training is called in a table of agents."""


class Run:
    """A run's directory: everything that is written to it or read from it goes through here.

    Make one with :meth:`create` or :meth:`open`. The first write takes the run's lock, so that two
    processes never write to the same run; reading needs no lock. ``close`` it or use it in a
    ``with`` statement; the end of the process does as well.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self._lock: int | None = None
        self._mirrors: list[Tracker] | None = None

    @classmethod
    def create(cls, path: str | Path, config: Config) -> Run:
        """Start a new run in a directory that does not exist yet or is empty.

        A run that stopped before its first iteration is replaced.

        Raises:
            RunError: the directory is taken or cannot be written, or a mirror cannot be opened
                (nothing is left behind then).
        """
        path = Path(path)
        check_new_run(path)
        replaced = (path / "config.yaml").is_file()
        run = cls(path, config)
        with _reporting(f"create the run {path}"):
            path.mkdir(parents=True, exist_ok=True)
        run._begin_writing()
        check_new_run(path)  # somebody else may have been quicker
        if replaced:
            warnings.warn(
                f"{path} holds a run that stopped before its first iteration; it starts again.",
                stacklevel=2,
            )
        try:
            with _reporting(f"create the run {path}"):
                (path / "checkpoints").mkdir(exist_ok=True)
                write_text(path / "config.yaml", dump(config))
                made = {"created": datetime.now(UTC).isoformat(timespec="seconds")}
                made |= _here()
                write_json(path / "versions.json", made)
            run._open_mirrors(first=1)
        except BaseException:
            run.close()
            if not replaced:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run that exists, to read it or to go on with it.

        Raises:
            RunError: the directory is not a run; says what is missing and names runs nearby.
            ConfigError: its configuration cannot be read.
        """
        path = Path(path)
        needed = ("config.yaml", "versions.json")
        missing = [name for name in needed if not (path / name).is_file()]
        if missing:
            why = f"without {' and '.join(missing)}" if path.is_dir() else "no such directory"
            raise RunError(f"{path} is not a run: {why}. {_runs_nearby(path)}")
        return cls(path, load(path / "config.yaml"))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, env={self.config.env!r}, checkpoints={self.checkpoints()})"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the mirrors and let go of the lock."""
        for mirror in self._mirrors or ():
            mirror.close()
        self._mirrors = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # What happened: metrics and episodes, a line each; the outcome.

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append one iteration's metrics, and send them to the mirrors.

        Args:
            metrics: numbers by name; ``iteration`` (from 1) orders them.
        """
        path = self.path / "metrics.jsonl"
        self._begin_writing()
        with _reporting(f"write to {path}"):
            append_line(path, metrics)
        iteration = int(metrics.get("iteration", 0))
        for mirror in self._open_mirrors(first=iteration):
            mirror.log(metrics, iteration)

    def metrics(self) -> list[dict[str, float]]:
        """All metrics logged so far, a dict per iteration; null reads as NaN."""
        lines = read_lines(self.path / "metrics.jsonl")
        return [{k: math.nan if v is None else v for k, v in line.items()} for line in lines]

    def truncate_metrics(self, iteration: int) -> None:
        """Forget what was logged after ``iteration``, before training goes on from there.

        Evaluation episodes of later checkpoints go with the metrics.
        """
        self._begin_writing()
        for name, key in (("metrics.jsonl", "iteration"), ("episodes.jsonl", "checkpoint")):
            path = self.path / name
            kept = [line for line in read_lines(path) if (line.get(key) or 0) <= iteration]
            with _reporting(f"write {path}"):
                write_text(path, "".join(map(json_line, kept)))
        with _reporting(f"write to {self.path}"):
            (self.path / "summary.json").unlink(missing_ok=True)  # no longer the outcome
        self._open_mirrors(first=iteration + 1)

    def change_config(self, config: Config) -> None:
        """Write another configuration, for going on with more steps, say."""
        self._begin_writing()
        with _reporting(f"write {self.path / 'config.yaml'}"):
            write_text(self.path / "config.yaml", dump(config))
        self.config = config

    def add_episodes(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append evaluation episodes, each as it comes, so that an interruption keeps the rest."""
        path = self.path / "episodes.jsonl"
        self._begin_writing()
        for record in records:
            with _reporting(f"write to {path}"):
                append_line(path, record)

    def episodes(self) -> Iterator[dict[str, Any]]:
        """The evaluation episodes so far, in the order they were written."""
        return read_lines(self.path / "episodes.jsonl")

    def keep(self, file: str, text: str) -> None:
        """Write the best thing the agent has made so far, replacing the one before."""
        path = self.path / Path(file).name
        self._begin_writing()
        with _reporting(f"write {path}"):
            write_text(path, text)

    def add_notes(self, notes: Sequence[str]) -> None:
        """Write down what the world said of the machine, beside the versions."""
        self._begin_writing()
        with _reporting(f"write {self.path / 'versions.json'}"):
            write_json(self.path / "versions.json", self.versions() | {"notes": list(notes)})

    def sign(self) -> None:
        """Write down with what a run goes on, where that is not what it was made with."""
        now, told = _here(), self.versions()
        names = ("python", *PACKAGES, "source")
        if not any(
            all(each.get(name) == now[name] for name in names)
            for each in (told, *told.get("later", ()))
        ):
            self._begin_writing()
            with _reporting(f"write {self.path / 'versions.json'}"):
                later = [*told.get("later", ()), now]
                write_json(self.path / "versions.json", told | {"later": later})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the outcome, replacing an earlier one."""
        path = self.path / "summary.json"
        self._begin_writing()
        with _reporting(f"write {path}"):
            write_json(path, summary)

    def summary(self) -> dict[str, Any] | None:
        """The outcome; none while the run is unfinished."""
        return _read_json(self.path / "summary.json")

    def versions(self) -> dict[str, Any]:
        """What the run was made with."""
        return _read_json(self.path / "versions.json") or {}

    # What was learned: checkpoints.

    def save_checkpoint(
        self,
        iteration: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
    ) -> Path:
        """Write checkpoint ``iteration``, and drop the oldest beyond ``config.keep_checkpoints``.

        Later ones, there when a run was resumed from before them, are dropped too: they belong to
        a past that did not happen.

        Args:
            iteration: the training iteration it stands after; names the directory.
            tensors: tensors by name, by group; each group becomes ``<group>.safetensors``.
            state: whatever else is needed to go on, as JSON can say it.

        Returns:
            The checkpoint's directory.

        Raises:
            RunError: it could not be written; earlier checkpoints are as they were.
        """
        self._begin_writing()
        folder = self._folder(iteration)
        try:
            write_checkpoint(folder, iteration, tensors, state)
        except OSError as error:
            raise RunError(
                f"Cannot write checkpoint {iteration} of {self.path}: {error}. Is the disk full? "
                f"Intact: {self._listed()}."
            ) from error
        there = self.checkpoints()
        kept = [i for i in there if i <= iteration][-self.config.keep_checkpoints :]
        for old in set(there) - set(kept):
            discard(self._folder(old))
        return folder

    def checkpoints(self) -> list[int]:
        """The iterations that have a checkpoint, ascending."""
        entries = (self.path / "checkpoints").glob("[0-9]*")
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())

    def checkpoint_path(self, iteration: int | None = None) -> Path:
        """Where the checkpoint of an iteration (none: the newest) lies.

        Raises:
            RunError: there is no such checkpoint; lists those there are.
        """
        there = self.checkpoints()
        if not there:
            raise RunError(
                f"The run {self.path} has no checkpoint: it was stopped before the first."
            )
        if iteration is not None and iteration not in there:
            raise RunError(
                f"The run {self.path} has no checkpoint {iteration}; it has {self._listed()}."
            )
        return self._folder(there[-1] if iteration is None else iteration)

    def load_checkpoint(
        self, path: str | Path | None = None
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read a checkpoint (none: the newest) as the (tensors, state) it was saved from.

        Raises:
            RunError: it is missing or damaged; says how, and which others there are.
        """
        folder = self.checkpoint_path() if path is None else Path(path)
        try:
            return read_checkpoint(folder)
        except (OSError, ValueError) as error:
            others = [str(self._folder(i)) for i in self.checkpoints() if self._folder(i) != folder]
            hint = (
                f"Delete it to go on from the newest of: {', '.join(others)}."
                if others
                else "There is no other."
            )
            raise RunError(
                f"The checkpoint {folder} is missing or damaged: {error}. {hint}"
            ) from error

    def _folder(self, iteration: int) -> Path:
        return self.path / "checkpoints" / f"{iteration:06d}"

    def _listed(self) -> str:
        return ", ".join(map(str, self.checkpoints())) or "none"

    # One writer at a time.

    def _begin_writing(self) -> None:
        """Take the lock, once. The system frees it when its process ends, however that ends."""
        if self._lock is not None:
            return
        try:
            with _reporting(f"write to the run {self.path}"):
                self._lock = take_lock(self.path / ".lock")
        except LockedError as error:
            raise RunError(
                f"Another process ({error}) is writing to the run {self.path}. Wait until it ends, "
                "stop it, or use another directory."
            ) from error

    def _open_mirrors(self, first: int) -> Sequence[Tracker]:
        if self._mirrors is None:
            name = f"{self.path.name} {self.versions().get('created')}"
            run_id = hashlib.sha256(name.encode()).hexdigest()[:12]
            names, settings = self.config.trackers, to_dict(self.config)
            try:
                self._mirrors = open_trackers(names, self.path, run_id, settings, first)
            except TrackerError as error:
                raise RunError(str(error)) from error
        return self._mirrors


@contextlib.contextmanager
def _reporting(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"Cannot {what}: {error.strerror or error}.") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {path}: {error}. Was it edited by hand?") from error


def _here() -> dict[str, str | None]:
    """What runs here and now."""
    poad = {"source": source_hash(), "git": source_commit()}
    return {**versions(), "platform": platform.platform(), **poad}


def check_new_run(path: Path) -> None:
    """Raise RunError unless a new run may start in this directory."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, and a run is a directory. Give the run another name.")
    if (path / "config.yaml").is_file():
        begun = (path / "metrics.jsonl", path / "summary.json", *path.glob("checkpoints/*"))
        if not any(entry.exists() for entry in begun):
            return  # stopped before its first iteration: there is nothing to lose
        raise RunError(
            f"{path} already holds a run. Go on with it by `poad train --resume {path}`, "
            "or give the new run another name."
        )
    if path.is_dir() and {entry.name for entry in path.iterdir()} - {".lock"}:
        raise RunError(f"{path} is neither empty nor a run. Give the run another name.")


def _runs_nearby(path: Path) -> str:
    """A sentence that names the newest runs inside ``path`` and beside it."""
    configs: set[Path] = set()
    for place in (path, path.parent):
        with contextlib.suppress(OSError):
            configs.update(place.glob("*/config.yaml"))
    if not configs:
        return "There are no runs nearby; `poad train` makes one."
    newest = sorted(configs, key=lambda file: file.stat().st_mtime, reverse=True)[:5]
    return f"Runs nearby: {', '.join(str(file.parent) for file in newest)}."
