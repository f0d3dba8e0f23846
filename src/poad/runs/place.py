"""The directory of a run: whether one may begin there, or is there, and how it is replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from poad.config import Config, dump, load, to_dict
from poad.errors import ConfigError, RunError
from poad.runs.files import PARTIAL, explained_as, remove_directory, write_text
from poad.runs.history import LINES, read_json, read_summary, write_sealed
from poad.runs.provenance import environment, source_hash, versions
from poad.runs.seals import settings_hash

OWN_FILES = frozenset(
    (
        *("config.yaml", "versions.json", "metrics.jsonl", "episodes.jsonl", "exported.jsonl"),
        "world_errors.jsonl",
        *("summary.json", "generalization.json", "generalization.md", "language.json"),
        *("report.html", "inspect.html", "checkpoints", "tensorboard", "wandb", "trackio"),
    )
)
"""Names in a run's directory that no world may use, in small letters."""


def check_new_run(path: Path, config: Config, *, overwrite: bool = False) -> None:
    """Raise RunError unless a new run may start in this directory.

    Args:
        path: the directory.
        config: the settings of the new run; they need not be resolved.
        overwrite: whether a run that is there may be deleted.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, and a run is a directory. Choose another name.")
    if (path / "config.yaml").is_file():
        if overwrite and (path / "versions.json").is_file():
            return
        # Checkpoint 0 holds nothing that was learned.
        learned = [each for each in path.glob("checkpoints/[0-9]*") if each.name.strip("0")]
        nothing = not learned and not (path / "summary.json").exists()
        if nothing and (not _has_begun(path) or _has_settings(path, config)):
            return  # there is nothing to lose: the same iterations are computed again
        raise RunError(
            f"{path} already holds a run. Go on with it by `poad train --resume {path}`, "
            "choose another name for the new run, or replace the old one with --overwrite."
        )
    if path.is_dir() and not is_unborn(path):
        raise RunError(f"{path} is neither empty nor a run. Choose another name.")


def is_unborn(path: Path) -> bool:
    """Tell whether a directory is empty, or holds only what a run writes before config.yaml."""
    for entry in path.iterdir():
        empty = entry.name == "checkpoints" and entry.is_dir() and not any(entry.iterdir())
        early = entry.name in (".lock", "versions.json") or entry.name.startswith(PARTIAL)
        if not (empty or early):
            return False
    return True


def begin_run(path: Path, config: Config, *, overwrite: bool = False) -> None:
    """Write what makes a directory a run; the caller holds its lock.

    config.yaml is written last, so that whoever finds it finds a run that can go on, whenever the
    process was killed.

    Args:
        path: the directory.
        config: the settings of the run.
        overwrite: whether a run that is there may be deleted.

    Raises:
        RunError: the directory cannot be written.
    """
    if (path / "config.yaml").is_file():
        (_delete_run if overwrite else _begin_again)(path)
    with explained_as(f"create the run {path}"):
        (path / "checkpoints").mkdir(exist_ok=True)
        created = {"created": datetime.now(UTC).isoformat(timespec="seconds")}
        seal = {"seal": {"config": settings_hash(config)}}
        write_sealed(path / "versions.json", created | environment() | seal)
        write_text(path / "config.yaml", dump(config))


def stored_config(path: Path) -> Config:
    """Read the configuration of a run.

    Raises:
        RunError: the directory is not a run; the message says what is missing and what is near.
        ConfigError: the configuration cannot be read or is incomplete.
    """
    needed = ("config.yaml", "versions.json")
    missing = [name for name in needed if not (path / name).is_file()]
    if missing:
        why = f"without {' and '.join(missing)}" if path.is_dir() else "no such directory"
        raise RunError(f"{path} is not a run: {why}. {_runs_nearby(path)}")
    return load(path / "config.yaml", complete=partial(_advice, path))


def _begin_again(path: Path) -> None:
    """Remove what a run that has learned nothing has recorded, and say so."""
    first = "checkpoint" if _has_begun(path) else "iteration"
    text = f"{path} holds a run that stopped before its first {first}; it starts again."
    warnings.warn(text, stacklevel=3)
    for each in path.glob("checkpoints/[0-9]*"):  # only checkpoint 0 can be there
        remove_directory(each)
    for name in (*LINES, "config.yaml"):
        (path / name).unlink(missing_ok=True)


def _delete_run(path: Path) -> None:
    """Delete the files of a run, and say which others are left.

    What makes it a run goes last, so that a crash on the way leaves one that can be deleted again.
    """
    with contextlib.suppress(RunError):
        summary = read_summary(path)
        if summary is not None and summary.best is not None:
            (path / Path(str(summary.best["file"])).name).unlink(missing_ok=True)
    last = ("versions.json", "config.yaml")
    with explained_as(f"delete the run {path}"):
        for name in (*sorted(OWN_FILES.difference(last)), *last):
            place = path / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    left = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    text = f"Deleted the run that was in {path}."
    warnings.warn(f"{text} Left there: {', '.join(left)}." if left else text, stacklevel=3)


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
    configs.discard(path / "config.yaml")
    if not configs:
        return "There are no runs nearby; `poad train` creates one."
    newest = sorted(configs, key=lambda file: file.stat().st_mtime, reverse=True)[:5]
    return f"Runs nearby: {', '.join(str(file.parent) for file in newest)}."


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
