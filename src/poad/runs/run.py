"""A run is a directory that holds its configuration, its history and what it learned.

    config.yaml       the resolved configuration; `poad train --config` repeats the run from it
    versions.json     versions of Python, packages and poad's source, and the platform
    metrics.jsonl     a line per training iteration
    episodes.jsonl    a line per evaluation episode, turn by turn
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
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poad.config import Config, dump, load, to_dict
from poad.errors import LockedError, RunError, WorldError
from poad.runs.checkpoint import Checkpoints, Tensors
from poad.runs.codec import decode, encode, plain
from poad.runs.files import (
    append_line,
    json_line,
    numbered_lines,
    read_lines,
    take_lock,
    write_bytes,
    write_json,
    write_text,
)
from poad.runs.provenance import PACKAGES, environment
from poad.runs.records import EpisodeRecord, RunSummary
from poad.runs.seals import MAY_CHANGE, Seal, check_beginning, measure, settings_hash
from poad.runs.trackers import Tracker, open_trackers

if TYPE_CHECKING:
    from torch import Tensor


OWN_FILES = frozenset(
    (
        *("config.yaml", "versions.json", "metrics.jsonl", "episodes.jsonl", "exported.jsonl"),
        *("summary.json", "generalization.json", "generalization.md", "language.json"),
        *("report.html", "checkpoints", "tensorboard", "wandb", "trackio"),
    )
)
"""Names in a run's directory that no world may use, in small letters."""
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

    @classmethod
    def create(cls, path: str | Path, config: Config) -> Run:
        """Start a new run in a directory that does not exist yet or is empty.

        A run that stopped before its first iteration is replaced.

        Raises:
            RunError: the directory is taken or cannot be written, or a tracker cannot be opened
                (nothing is left behind then).
        """
        path = Path(path)
        check_new_run(path)
        replaced = (path / "config.yaml").is_file()
        run = cls(path, config)
        with _explained(f"create the run {path}"):
            path.mkdir(parents=True, exist_ok=True)
        run._take_lock()
        check_new_run(path)  # another process may have been quicker
        if replaced:
            warnings.warn(
                f"{path} holds a run that stopped before its first iteration; it starts again.",
                stacklevel=2,
            )
        try:
            with _explained(f"create the run {path}"):
                (path / "checkpoints").mkdir(exist_ok=True)
                write_text(path / "config.yaml", dump(config))
                created = {"created": datetime.now(UTC).isoformat(timespec="seconds")}
                seal = {"seal": {"config": settings_hash(config)}}
                write_json(path / "versions.json", created | environment() | seal)
            run._open_trackers(first=1)
        except BaseException:
            run.close()
            if not replaced:
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
        needed = ("config.yaml", "versions.json")
        missing = [name for name in needed if not (path / name).is_file()]
        if missing:
            why = f"without {' and '.join(missing)}" if path.is_dir() else "no such directory"
            raise RunError(f"{path} is not a run: {why}. {_runs_nearby(path)}")
        run = cls(path, load(path / "config.yaml", complete=True))
        run._check_versions()
        return run

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, env={self.config.env!r}, checkpoints={self.checkpoints()})"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the trackers and release the lock."""
        for tracker in self._trackers or ():
            tracker.close()
        self._trackers = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Configuration and versions.

    def change_config(self, config: Config) -> None:
        """Replace the configuration, for example by one with more steps."""
        with self._writing("config.yaml") as path:
            write_text(path, dump(config))
        self.config = config

    def versions(self) -> dict[str, Any]:
        """Read the versions that the run was created with, and those of later sessions."""
        return _read_json(self.path / "versions.json") or {}

    def _check_versions(self) -> None:
        """Check that versions.json is whole and was written for this configuration."""
        versions = self.versions()
        needed = ("python", *PACKAGES, "platform", "source", "git")
        for recorded in (versions, *versions.get("later", ())):
            if missing := [name for name in needed if name not in recorded]:
                raise RunError(
                    f"{self.path / 'versions.json'} was damaged: it lacks {', '.join(missing)}. "
                    "Restore it from a copy."
                )
        sealed = versions.get("seal", {}).get("config", "")
        if sealed and sealed != settings_hash(self.config):
            raise RunError(
                f"{self.path / 'config.yaml'} holds other settings than the run was created with, "
                "or versions.json comes from another run. Restore them from a copy. Only "
                f"{', '.join(MAY_CHANGE)} may change in a run."
            )

    def add_notes(self, notes: Sequence[str]) -> None:
        """Record the world's remarks about this machine in versions.json."""
        with self._writing("versions.json") as path:
            write_json(path, self.versions() | {"notes": list(notes)})

    def record_versions(self) -> None:
        """Record the current versions in versions.json if no earlier session ran with the same."""
        now, recorded = environment(), self.versions()
        names = ("python", *PACKAGES, "source")
        sessions = (recorded, *recorded.get("later", ()))
        if not any(all(each.get(name) == now[name] for name in names) for each in sessions):
            with self._writing("versions.json") as path:
                write_json(path, recorded | {"later": [*recorded.get("later", ()), now]})

    # Metrics, episodes and the outcome.

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append one iteration's metrics to metrics.jsonl and send them to the trackers."""
        with self._writing("metrics.jsonl", "write to") as path:
            append_line(path, metrics)
        iteration = int(metrics.get("iteration", 0))
        for tracker in self._open_trackers(first=iteration):
            tracker.log(metrics, iteration)

    def metrics(self) -> list[dict[str, float]]:
        """Read all metrics logged so far, a dictionary per iteration; null reads as NaN.

        Raises:
            RunError: lines are missing, changed or out of order.
        """
        self._check_lines("metrics.jsonl")
        lines = [line for line, _ in groupby(read_lines(self.path / "metrics.jsonl"))]
        return [{k: math.nan if v is None else v for k, v in line.items()} for line in lines]

    def truncate_metrics(self, iteration: int) -> None:
        """Remove metrics logged after ``iteration``, before training goes on from there.

        Evaluation episodes of later checkpoints and the summary are removed as well.

        Raises:
            RunError: lines up to the checkpoint of that iteration are not as they were.
        """
        seal: Seal = {}
        if iteration in self.checkpoints():
            seal = self._seal_of(iteration)
        kept: dict[str, bytes] = {}
        for name, key in (("metrics.jsonl", "iteration"), ("episodes.jsonl", "checkpoint")):
            path = self.path / name
            kept[name] = check_beginning(path, seal, f"checkpoint {iteration}")
            if name == "metrics.jsonl" and seal:
                continue
            for _, line in numbered_lines(path, len(kept[name])):
                if (line.get(key) or 0) <= iteration:
                    kept[name] += json_line(line).encode()
        with self._writing("summary.json", "remove") as path:
            path.unlink(missing_ok=True)
        for name, content in kept.items():
            with self._writing(name) as path:
                write_bytes(path, content)
        self._open_trackers(first=iteration + 1)

    def forget_episodes(self, checkpoint: int) -> None:
        """Remove what an interrupted final evaluation of a checkpoint left, before it is repeated.

        An episode depends on its seed and the weights alone, so playing it again brings it back.
        """
        config, path = self.config, self.path / "episodes.jsonl"
        seeds = range(config.eval.seed, config.eval.seed + config.eval.episodes)
        played = {"env": config.env, "env_args": plain(config.env_args), "checkpoint": checkpoint}
        seal = self._seal_of(checkpoint) if checkpoint in self.checkpoints() else {}
        kept = check_beginning(path, seal, f"checkpoint {checkpoint}")
        for _, line in numbered_lines(path, len(kept)):
            if line.get("seed") not in seeds or line | played != line:
                kept += json_line(line).encode()
        if path.is_file() and path.stat().st_size > len(kept):
            with self._writing(path.name):
                write_bytes(path, kept)

    def add_episodes(self, records: Iterable[EpisodeRecord]) -> None:
        """Append evaluation episodes one by one, so that an interruption loses none."""
        for record in records:
            with self._writing("episodes.jsonl", "write to") as path:
                append_line(path, record)

    def episodes(self) -> Iterator[EpisodeRecord]:
        """Read the evaluation episodes in the order they were written.

        Raises:
            RunError: a line is not such a record, or lines are missing, changed or out of order.
        """
        path = self.path / "episodes.jsonl"
        self._check_lines(path.name)
        for number, line in numbered_lines(path):
            yield decode(EpisodeRecord, line, f"{path}, line {number}")

    def keep(self, file: str, text: str) -> None:
        """Write the best work of the agent so far, replacing the one before.

        Args:
            file: its name, which the world gives. It must not be that of a file of the run.
            text: its content.

        Raises:
            WorldError: the name is none, or it is taken.
        """
        if not file or file != Path(file).name or file.startswith(".") or file.lower() in OWN_FILES:
            raise WorldError(
                f"The world {self.config.env} calls its work {file!r} (info['work']['file']). That "
                "is not a plain file name, or the run has such a file itself. Let the world use "
                "another name, such as best_program.py."
            )
        with self._writing(file) as path:
            write_text(path, text)

    def write_summary(self, summary: RunSummary) -> None:
        """Write the outcome, replacing an earlier one."""
        with self._writing("summary.json") as path:
            write_json(path, encode(summary) | {"seal": self._new_seal()})

    def summary(self) -> RunSummary | None:
        """Read the outcome; None while the run is unfinished.

        Raises:
            RunError: the file cannot be read, or comes from another run.
        """
        seal = (_read_json(self.path / "summary.json") or {}).get("seal", {})
        if seal.get("config", self._settings) != self._settings:
            raise RunError(
                f"{self.path / 'summary.json'} comes from a run with other settings. Restore it "
                f"from a copy, or write it anew by `poad train --resume {self.path}`."
            )
        return read_summary(self.path)

    # Seals.

    @property
    def _settings(self) -> str:
        return settings_hash(self.config)

    def _new_seal(self) -> Seal:
        files = (self.path / name for name in ("metrics.jsonl", "episodes.jsonl"))
        return {"config": self._settings} | {file.name: measure(file) for file in files}

    def _seal_of(self, iteration: int) -> Seal:
        return self._checkpoints.seal(self._checkpoints.folder(iteration), self._settings)

    def _check_lines(self, name: str) -> None:
        """Check a .jsonl file by the summary or else by the newest checkpoint."""
        seal: Seal = (_read_json(self.path / "summary.json") or {}).get("seal", {})
        sealed_by = "summary.json"
        if not seal and (existing := self.checkpoints()):
            seal, sealed_by = self._seal_of(existing[-1]), f"checkpoint {existing[-1]}"
        check_beginning(self.path / name, seal, sealed_by)

    # Checkpoints.

    def save_checkpoint(self, iteration: int, tensors: Tensors, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and remove the oldest beyond ``config.keep_checkpoints``.

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
        seal, keep = self._new_seal(), self.config.keep_checkpoints
        return self._checkpoints.save(iteration, tensors, state, seal, keep)

    def checkpoints(self) -> list[int]:
        """List the iterations that have a checkpoint, in ascending order."""
        return self._checkpoints.iterations()

    def checkpoint_path(self, iteration: int | None = None) -> Path:
        """Return the directory of a checkpoint (default: the newest).

        Raises:
            RunError: there is no such checkpoint; the message lists those that exist.
        """
        return self._checkpoints.find(iteration)

    def load_checkpoint(
        self, path: Path | None = None
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read the (tensors, state) of a checkpoint (default: the newest).

        Raises:
            RunError: it is missing or damaged; the message names the others.
        """
        return self._checkpoints.load(path, self._settings)

    # One writer at a time.

    @contextlib.contextmanager
    def _writing(self, name: str, verb: str = "write") -> Iterator[Path]:
        """Yield the path of a file that the block writes, with the run locked."""
        self._take_lock()
        with _explained(f"{verb} {self.path / name}"):
            yield self.path / name

    def _take_lock(self) -> None:
        """Take the lock, once; the system releases it when the process ends."""
        if self._lock is not None:
            return
        try:
            with _explained(f"write to the run {self.path}"):
                self._lock = take_lock(self.path / ".lock")
        except LockedError as error:
            raise RunError(
                f"Another process ({error}) is writing to the run {self.path}. Wait until it ends, "
                "stop it, or use another directory."
            ) from error

    def _open_trackers(self, first: int) -> Sequence[Tracker]:
        if self._trackers is None:
            name = f"{self.path.name} {self.versions().get('created')}"
            run_id = hashlib.sha256(name.encode()).hexdigest()[:12]
            names, settings = self.config.trackers, to_dict(self.config)
            self._trackers = open_trackers(names, self.path, run_id, settings, first)
        return self._trackers


def read_summary(path: Path) -> RunSummary | None:
    """Read the outcome of the run at ``path`` without its configuration; None if there is none.

    Raises:
        RunError: the file cannot be read.
    """
    file = path / "summary.json"
    content = _read_json(file)
    if content is None:
        return None
    content.pop("seal", None)
    return decode(RunSummary, content, str(file))


@contextlib.contextmanager
def _explained(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"Cannot {action}: {error.strerror or error}.") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {path}: {error}. Was it edited by hand?") from error
    return content


def check_new_run(path: Path) -> None:
    """Raise RunError unless a new run may start in this directory."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, and a run is a directory. Choose another name.")
    if (path / "config.yaml").is_file():
        begun = (path / "metrics.jsonl", path / "summary.json", *path.glob("checkpoints/*"))
        if not any(entry.exists() for entry in begun):
            return  # stopped before its first iteration: there is nothing to lose
        raise RunError(
            f"{path} already holds a run. Go on with it by `poad train --resume {path}`, "
            "or choose another name for the new run."
        )
    if path.is_dir() and {entry.name for entry in path.iterdir()} - {".lock"}:
        raise RunError(f"{path} is neither empty nor a run. Choose another name.")


def _runs_nearby(path: Path) -> str:
    """List the newest runs inside ``path`` and in its parent directory, as a sentence."""
    configs: set[Path] = set()
    for folder in (path, path.parent):
        with contextlib.suppress(OSError):
            configs.update(folder.glob("*/config.yaml"))
    if not configs:
        return "There are no runs nearby; `poad train` creates one."
    newest = sorted(configs, key=lambda file: file.stat().st_mtime, reverse=True)[:5]
    return f"Runs nearby: {', '.join(str(file.parent) for file in newest)}."
