"""What a run has recorded: metrics, evaluation episodes and the outcome, checked by the seals."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from poad.config import Config
from poad.errors import RunError
from poad.runs.checkpoint import Checkpoints
from poad.runs.codec import decode, exact
from poad.runs.files import numbered_lines, read_lines, write_json
from poad.runs.records import EpisodeRecord, RunSummary, WorldErrorRecord
from poad.runs.seals import (
    Seal,
    check_beginning,
    is_whole,
    kept_lines,
    measure,
    sealed,
    settings_hash,
)

LINES = {
    "metrics.jsonl": "iteration",
    "episodes.jsonl": "checkpoint",
    "world_errors.jsonl": "iteration",
}
"""The files that grow, with the key by which their lines belong to an iteration."""


class History:
    """Reads the records of a run.

    Args:
        path: the directory of the run.
        config: its settings.
        checkpoints: its checkpoints.
    """

    def __init__(self, path: Path, config: Config, checkpoints: Checkpoints) -> None:
        self._path, self._config, self._checkpoints = path, config, checkpoints
        self.settings = settings_hash(config)
        """The hash of the settings."""

    def new_seal(self) -> Seal:
        """Seal the records as they are now."""
        return {"config": self.settings} | {name: measure(self._path / name) for name in LINES}

    def metrics(self) -> list[dict[str, float]]:
        """Read metrics.jsonl.

        Raises:
            RunError: lines are missing, changed or out of order.
        """
        lines = groupby(read_lines(self._checked("metrics.jsonl")))  # a repeated line counts once
        return [{k: math.nan if v is None else v for k, v in line.items()} for line, _ in lines]

    def episodes(self) -> Iterator[EpisodeRecord]:
        """Read episodes.jsonl.

        Raises:
            RunError: a line is not such a record, or lines are missing, changed or out of order.
        """
        path = self._checked("episodes.jsonl")
        for number, line in numbered_lines(path):
            yield decode(EpisodeRecord, line, f"{path}, line {number}")

    def summary(self) -> RunSummary | None:
        """Read summary.json.

        Raises:
            RunError: the file cannot be read, or comes from another run.
        """
        file = self._path / "summary.json"
        seal = (read_json(file) or {}).get("seal", {})
        if seal.get("config", self.settings) != self.settings:
            raise RunError(
                f"{file} comes from a run with other settings. Restore it from a copy, or write it "
                f"anew by `poad train --resume {self._path}`."
            )
        return read_summary(self._path)

    def renew_seal(self) -> None:
        """Let summary.json vouch for the lines that were added since it was written.

        Raises:
            RunError: the lines before them are not as they were.
        """
        file = self._path / "summary.json"
        content = read_json(file) or {}
        if content.get("seal"):  # a run that goes on has none; its next checkpoint vouches
            for name in LINES:
                self._checked(name)
            write_sealed(file, content | {"seal": self.new_seal()})

    def until(self, iteration: int) -> dict[str, bytes]:
        """Return the content of each file up to an iteration.

        Raises:
            RunError: a file does not begin as it did at the checkpoint of that iteration.
        """
        seal, found = self._seal_of(iteration), dict[str, bytes]()
        for name, key in LINES.items():
            complete = name == "metrics.jsonl" and bool(seal)  # the seal covers all that stays

            def keep(line: Any, key: str = key, complete: bool = complete) -> bool:
                return not complete and (line.get(key) or 0) <= iteration

            found[name] = kept_lines(self._path / name, seal, f"checkpoint {iteration}", keep)
        if not (self._path / "world_errors.jsonl").exists():  # most runs have none
            found.pop("world_errors.jsonl")
        return found

    def without_evaluation(self, checkpoint: int) -> bytes:
        """Return episodes.jsonl without what the run's own evaluation of a checkpoint plays.

        Episodes up to the checkpoint stay.
        """
        config = self._config
        seeds = range(config.eval.seed, config.eval.seed + config.eval.episodes)
        played = {"env": config.env, "env_args": exact(config.env_args), "checkpoint": checkpoint}
        return kept_lines(
            self._path / "episodes.jsonl",
            self._seal_of(checkpoint),
            f"checkpoint {checkpoint}",
            lambda line: line.get("seed") not in seeds or {**line, **played} != line,
        )

    def _checked(self, name: str) -> Path:
        """Check a file by the summary or else by the newest checkpoint; return its path."""
        seal: Seal = (read_json(self._path / "summary.json") or {}).get("seal", {})
        sealed_by = "summary.json"
        if not seal and (existing := self._checkpoints.iterations()):
            seal, sealed_by = self._seal_of(existing[-1]), f"checkpoint {existing[-1]}"
        check_beginning(self._path / name, seal, sealed_by)
        return self._path / name

    def _seal_of(self, iteration: int) -> Seal:
        """The seal of a checkpoint; empty if there is none."""
        folder = self._checkpoints.folder(iteration)
        return self._checkpoints.seal(folder, self.settings) if folder.exists() else {}


def read_summary(path: Path) -> RunSummary | None:
    """Read the outcome of the run at ``path`` without its configuration; None if there is none.

    Raises:
        RunError: the file cannot be read.
    """
    file = path / "summary.json"
    content = read_json(file)
    if content is None:
        return None
    content.pop("seal", None)
    return decode(RunSummary, content, str(file))


def read_world_errors(path: Path) -> list[WorldErrorRecord]:
    """Read the failures of worlds in the run at ``path``, in the order they were written.

    Raises:
        RunError: a line is not such a record.
    """
    file = path / "world_errors.jsonl"
    lines = numbered_lines(file)
    return [decode(WorldErrorRecord, line, f"{file}, line {number}") for number, line in lines]


def write_sealed(path: Path, value: Any) -> None:
    """Write a record or mapping as an indented JSON file that vouches for itself."""
    write_json(path, sealed(value))


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object, with its seal if it has one; None if the file is absent.

    Raises:
        RunError: the file cannot be read, or was changed since it was sealed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {path}: {error}. Was it edited by hand?") from error
    if not is_whole(content):
        raise RunError(f"{path} was changed after it was written. Restore it from a copy.")
    return content


def reseal(file: Path, config: Config) -> None:
    """Let versions.json vouch for the settings of a run that has just begun."""
    recorded, seal = read_json(file) or {}, {"config": settings_hash(config)}
    if recorded.get("seal", seal)["config"] != seal["config"]:
        write_sealed(file, recorded | {"seal": seal})


def best_of(metrics: Iterable[Mapping[str, float]], iterations: Collection[int]) -> int | None:
    """Find the iteration at which evaluation during training went best.

    The success rate decides, then the mean return, then the earlier iteration.

    Args:
        metrics: of a run, a line for each iteration.
        iterations: those that count.

    Returns:
        The iteration; None if none of them was evaluated.
    """
    evaluated = [
        (line["eval_success"], line["eval_return"], -line["iteration"])
        for line in metrics
        if "eval_success" in line and line["iteration"] in iterations
    ]
    known = [each for each in evaluated if not any(map(math.isnan, each))]
    return int(-max(known)[2]) if known else None
