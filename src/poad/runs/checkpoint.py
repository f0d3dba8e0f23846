"""One checkpoint: a directory of safetensors and a state, complete or absent.

    000024/policy.safetensors     a file per group of tensors
    000024/state.json             {"iteration", "sha256": {group: hash of its file}, "state"}

The hashes tell a damaged file from a good one at the only moment it matters: when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from poad.runs.files import json_line, write_text

if TYPE_CHECKING:
    from torch import Tensor


def write_checkpoint(
    folder: Path,
    iteration: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint beside ``folder``, to disk, and rename it to there.

    Whatever interrupts this, ``folder`` is complete or absent, and its neighbours are untouched.

    Raises:
        OSError: it could not be written; nothing remains of it.
    """
    remove_leftovers(folder.parent)
    partial = folder.with_name(f".partial-{folder.name}")
    try:
        partial.mkdir(parents=True)
        hashes = {name: _save(partial / _file(name), group) for name, group in tensors.items()}
        content = {"iteration": iteration, "sha256": hashes, "state": state}
        write_text(partial / "state.json", json_line(content))
        _sync(partial)
        if folder.exists():  # a run resumed from before it has come here again
            discard(folder)
        partial.rename(folder)
        _sync(folder.parent)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after the rename there is none


def read_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The (tensors, state) that a checkpoint was written from, tensors on the CPU.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is not what was written.
    """
    from safetensors.torch import load_file

    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"sha256", "state"} <= content.keys():
        raise ValueError("state.json is not what was written")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, expected in content["sha256"].items():
        file = folder / _file(name)
        if _sha256(file) != expected:
            raise ValueError(f"{file.name} is not what was written")
        tensors[name] = load_file(file)
    return tensors, content["state"]


def discard(folder: Path) -> None:
    """Remove a checkpoint; it stops being one before its files go."""
    doomed = folder.with_name(f".discarded-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Clear away what a crash in the middle of a write or a removal left under ``root``."""
    for pattern in (".partial-*", ".discarded-*"):
        for entry in root.glob(pattern):
            shutil.rmtree(entry, ignore_errors=True)


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write one safetensors file to disk and return its hash."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        own[key] = tensor.clone() if storage in seen else tensor  # tied weights share memory
        seen.add(storage)
    save_file(own, path)
    _sync(path)
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
