"""Seals: what the files of a run say about each other, to notice damaged and foreign ones.

    versions.json          the hash of its own content and of the run's settings
    state.json             the same, and how long the .jsonl files were
    summary.json           the same
    generalization.json    the hash of its own content; so has language.json

The .jsonl files only grow, so their beginning must stay as it was. An evaluation that adds episodes
to a run later renews the seal in summary.json. Files of earlier versions have no seals. A seal is
no signature: whoever can write to a run can also write a seal that fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from poad.config import Config, from_dict, to_dict
from poad.errors import RunError
from poad.runs.codec import exact, plain
from poad.runs.files import explained_as, json_line, numbered_lines, read_from_disk
from poad.runs.provenance import PACKAGES

MAY_CHANGE = (
    *("steps", "eval", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"),
    *("threads", "trackers", "tracking", "workers", "step_timeout", "reset_timeout", "vllm"),
    *("on_world_error", "world_error_limit"),
)
"""Settings that may change when a run is resumed. All others are sealed."""

Seal = Mapping[str, Any]
"""``config``, and by name of a .jsonl file ``{"bytes": n, "sha256": hash of the first n}``."""


def settings_hash(config: Config) -> str:
    """Hash the settings that stay the same for the whole life of a run."""
    fixed = replace(config, **{name: getattr(Config(), name) for name in MAY_CHANGE})
    typed = to_dict(from_dict(to_dict(fixed)))  # 1 and 1.0 are the same rate
    return _content_hash(exact(typed))[:32]


def sealed(value: Any) -> dict[str, Any]:
    """Return what a JSON file is to hold of a record or mapping, with its hash in its seal."""
    content: dict[str, Any] = plain(value)
    content = {**content, "seal": {**content.get("seal", {})}}
    content["seal"].pop("sha256", None)
    content["seal"]["sha256"] = _content_hash(content)
    return content


def is_whole(content: Mapping[str, Any]) -> bool:
    """Tell whether JSON values are as they were sealed, if they were."""
    seal = content.get("seal", {})
    if not isinstance(seal, dict) or "sha256" not in seal:
        return True
    rest = {**content, "seal": {name: value for name, value in seal.items() if name != "sha256"}}
    return _content_hash(rest) == seal["sha256"]


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def measure(path: Path) -> dict[str, Any]:
    """Measure a .jsonl file for a seal, once it is on disk."""
    content = read_from_disk(path)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_versions(file: Path, versions: Mapping[str, Any], settings: str) -> None:
    """Check that versions.json is whole and was written for a run of settings with this hash.

    Raises:
        RunError: it is not; or the configuration was changed since.
    """
    needed = ("python", *PACKAGES, "platform", "source", "git")
    for recorded in (versions, *versions.get("later", ())):
        if missing := [name for name in needed if name not in recorded]:
            raise RunError(
                f"{file} was damaged: it lacks {', '.join(missing)}. Restore it from a copy."
            )
    sealed = versions.get("seal", {}).get("config", "")
    if sealed and sealed != settings:
        raise RunError(
            f"{file.parent / 'config.yaml'} holds other settings than the run was created with, or "
            "versions.json comes from another run. Restore them from a copy. Only "
            f"{', '.join(MAY_CHANGE)} may change in a run."
        )


def kept_lines(
    path: Path, seal: Seal, sealed_by: str, keep: Callable[[Mapping[str, Any]], bool]
) -> bytes:
    """Return what a seal covers of a .jsonl file, and of the lines after it those to keep.

    Raises:
        RunError: the file does not begin as it did.
    """
    kept = check_beginning(path, seal, sealed_by)
    for _, line in numbered_lines(path, len(kept)):
        if keep(line):
            kept += json_line(line).encode()
    return kept


def check_beginning(path: Path, seal: Seal, sealed_by: str) -> bytes:
    """Return the beginning of a .jsonl file that a seal covers; nothing if it covers nothing.

    Raises:
        RunError: the file does not begin as it did, or cannot be read.
    """
    expected = seal.get(path.name, {"bytes": 0})
    content = b""
    absent = contextlib.suppress(FileNotFoundError)
    with explained_as(f"read {path}"), absent, path.open("rb") as file:
        content = file.read(expected["bytes"])
    if expected["bytes"] and hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise RunError(
            f"{path} was damaged: lines that {sealed_by} vouches for are missing, changed or out "
            "of order. Restore the file from a copy, or repeat the run with `poad train --config "
            f"{path.parent / 'config.yaml'} --run NEW`."
        )
    return content
