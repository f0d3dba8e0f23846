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
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poad.config import Config, dump, load, to_dict
from poad.errors import ConfigError, LockedError, RunError, WorldError
from poad.runs.checkpoint import Checkpoints, Tensors
from poad.runs.codec import encode
from poad.runs.files import (
    append_line,
    take_lock,
    write_bytes,
    write_text,
)
from poad.runs.history import LINES, History, read_json, write_sealed
from poad.runs.provenance import environment, new_environment, source_hash, versions
from poad.runs.records import EpisodeRecord, RunSummary
from poad.runs.seals import (
    check_versions,
    settings_hash,
)
from poad.runs.trackers import Tracker, open_trackers

if TYPE_CHECKING:
    from torch import Tensor


OWN_FILES = frozenset(
    (
        *("config.yaml", "versions.json", "metrics.jsonl", "episodes.jsonl", "exported.jsonl"),
        *("summary.json", "generalization.json", "generalization.md", "language.json"),
        *("report.html", "inspect.html", "checkpoints", "tensorboard", "wandb", "trackio"),
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
        self._added = False  # whether there are episodes that the summary does not know

    @classmethod
    def create(cls, path: str | Path, config: Config) -> Run:
        """Start a new run in a directory that does not exist yet or is empty.

        A run that stopped before its first iteration is replaced, and one that stopped before its
        first checkpoint if it had the same settings.

        Raises:
            RunError: the directory is taken or cannot be written, or a tracker cannot be opened
                (nothing is left behind then).
        """
        path = Path(path)
        check_new_run(path, config)
        replaced = (path / "config.yaml").is_file()
        run = cls(path, config)
        with _explained(f"create the run {path}"):
            path.mkdir(parents=True, exist_ok=True)
        run._take_lock()
        check_new_run(path, config)  # another process may have been quicker
        if replaced:
            _begin_again(path)
        try:
            with _explained(f"create the run {path}"):
                (path / "checkpoints").mkdir(exist_ok=True)
                write_text(path / "config.yaml", dump(config))
                created = {"created": datetime.now(UTC).isoformat(timespec="seconds")}
                seal = {"seal": {"config": settings_hash(config)}}
                write_sealed(path / "versions.json", created | environment() | seal)
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
        run = cls(path, load(path / "config.yaml", complete=partial(_advice, path)))
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
            _reseal(path.with_name("versions.json"), config)
        self.config = config
        self.__dict__.pop("_history", None)

    def versions(self) -> dict[str, Any]:
        """Read the versions that the run was created with, and those of later sessions."""
        return read_json(self.path / "versions.json") or {}

    def add_notes(self, notes: Sequence[str]) -> None:
        """Record the world's remarks about this machine in versions.json."""
        with self._writing("versions.json") as path:
            write_sealed(path, self.versions() | {"notes": list(notes)})

    def record_versions(self) -> None:
        """Record the current versions in versions.json if no earlier session ran with the same."""
        recorded = self.versions()
        if (now := new_environment([recorded, *recorded.get("later", ())])) is not None:
            with self._writing("versions.json") as path:
                write_sealed(path, recorded | {"later": [*recorded.get("later", ()), now]})

    # Metrics, episodes and the outcome.

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append one iteration's metrics to metrics.jsonl and send them to the trackers."""
        with self._writing("metrics.jsonl", "write to") as path:
            append_line(path, metrics)
        iteration = int(metrics.get("iteration", 0))
        for tracker in self._open_trackers(first=iteration):
            tracker.log(metrics, iteration)

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
        self._open_trackers(first=iteration + 1)

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
        """Write the outcome, replacing an earlier one."""
        with self._writing("summary.json") as path:
            write_sealed(path, encode(summary) | {"seal": self._history.new_seal()})

    def summary(self) -> RunSummary | None:
        """Read the outcome; None while the run is unfinished."""
        return self._history.summary()

    @cached_property
    def _history(self) -> History:
        return History(self.path, self.config, self._checkpoints)

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
        seal, keep = self._history.new_seal(), self.config.keep_checkpoints
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
        return self._checkpoints.load(path, self._history.settings)

    # One writer at a time.

    @contextlib.contextmanager
    def _writing(self, name: str, verb: str = "write") -> Iterator[Path]:
        """Yield the path of a file that the block writes, with the run locked."""
        self._take_lock()
        with _explained(f"{verb} {self.path / name}"):
            yield self.path / name

    def _take_lock(self) -> None:
        """Take the lock, once; the system releases it when the process ends."""
        if self._lock is None:
            self._lock = _lock(self.path)

    def _open_trackers(self, first: int) -> Sequence[Tracker]:
        if self._trackers is None:
            created = self.versions().get("created")
            self._trackers = _open_trackers(self.path, created, self.config, first)
        return self._trackers


@contextlib.contextmanager
def _explained(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"Cannot {action}: {error.strerror or error}.") from error


def _reseal(file: Path, config: Config) -> None:
    """Let versions.json vouch for the settings of a run that has just begun."""
    recorded, seal = read_json(file) or {}, {"config": settings_hash(config)}
    if recorded.get("seal", seal)["config"] != seal["config"]:
        write_sealed(file, recorded | {"seal": seal})


def _advice(path: Path) -> str:
    """Say what to do about a run whose configuration lacks settings."""
    file = path / "config.yaml"
    cut_off = "If it was cut off, restore it from a copy."
    written, now = read_json(path / "versions.json") or {}, {**versions(), "source": source_hash()}
    if all(written.get(name) == now[name] for name in ("poad", "source")):
        return cut_off
    then, today = (f"poad {e.get('poad')} (source {e.get('source')})" for e in (written, now))
    return (
        f"The run was created by {then}, and this is {today}, which may have settings that did not "
        "exist then. poad does not guess what they were. To train anew, write them out by `poad "
        f"config {file} > settings.yaml`, check those named here, and run `poad train --config "
        "settings.yaml`. To go on with the run or its weights, use the version that created it. "
        f"{cut_off}"
    )


def _begin_again(path: Path) -> None:
    """Remove what a run without a checkpoint has recorded, and say so."""
    first = "checkpoint" if _has_begun(path) else "iteration"
    text = f"{path} holds a run that stopped before its first {first}; it starts again."
    warnings.warn(text, stacklevel=3)
    for name in LINES:
        (path / name).unlink(missing_ok=True)


def _open_trackers(path: Path, created: object, config: Config, first: int) -> list[Tracker]:
    run_id = hashlib.sha256(f"{path.name} {created}".encode()).hexdigest()[:12]
    return open_trackers(config.trackers, path, run_id, to_dict(config), first)


def _lock(path: Path) -> int | None:
    try:
        with _explained(f"write to the run {path}"):
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


def check_new_run(path: Path, config: Config) -> None:
    """Raise RunError unless a new run may start in this directory.

    Args:
        path: the directory.
        config: the settings of the new run; they need not be resolved.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, and a run is a directory. Choose another name.")
    if (path / "config.yaml").is_file():
        kept = any(
            entry.exists() for entry in (path / "summary.json", *path.glob("checkpoints/[0-9]*"))
        )
        if not kept and (not _has_begun(path) or _has_settings(path, config)):
            return  # there is nothing to lose: the same iterations are computed again
        raise RunError(
            f"{path} already holds a run. Go on with it by `poad train --resume {path}`, "
            "or choose another name for the new run."
        )
    if path.is_dir() and {entry.name for entry in path.iterdir()} - {".lock"}:
        raise RunError(f"{path} is neither empty nor a run. Choose another name.")


def _has_begun(path: Path) -> bool:
    """Tell whether a run has recorded an iteration."""
    return (path / "metrics.jsonl").exists()


def _has_settings(path: Path, config: Config) -> bool:
    """Tell whether a run that has trained may be one of these settings."""
    try:
        stored = load(path / "config.yaml", complete=partial(_advice, path))
    except ConfigError:
        return False
    if os.path.exists(config.model.name):
        model = replace(config.model, name=os.path.abspath(config.model.name))
        config = replace(config, model=model)
    # Whatever trains is resolved.
    resolved = stored.model.name != "auto"
    return resolved and _agree(to_dict(stored), to_dict(config), to_dict(Config()))


def _agree(stored: Any, wanted: Any, default: Any) -> bool:
    """Tell whether settings may be what others resolve to."""
    if isinstance(default, dict) and default:
        return all(_agree(stored[name], wanted[name], default[name]) for name in default)
    is_open = wanted == default and wanted in ("auto", None)
    return is_open or stored == wanted


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
