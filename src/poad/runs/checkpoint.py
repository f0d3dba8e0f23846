"""Checkpoints: a directory for each, complete or absent.

    000024/policy.safetensors   a file per group of tensors
    000024/state.json           {"iteration", "sha256": {group: hash of its file}, "state", "seal"}

The hashes are checked when a checkpoint is loaded, and so is the seal (:mod:`poad.runs.seals`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from poad.errors import RunError
from poad.runs.files import (
    atomic_directory,
    json_line,
    remove_directory,
    remove_leftovers,
    set_aside,
    write_text,
)
from poad.runs.seals import Seal, is_whole, sealed

if TYPE_CHECKING:
    from torch import Tensor


Tensors = Mapping[str, Mapping[str, "Tensor"]]
"""Tensors by name, by group."""
Saved = tuple[dict[str, dict[str, "Tensor"]], dict[str, Any]]
"""The tensors of a checkpoint, and the rest of its state."""


class Checkpoints:
    """The checkpoints below one directory, by training iteration."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def iterations(self) -> list[int]:
        """List the iterations that have a checkpoint, in ascending order."""
        names = (entry.name for entry in self.root.glob("[0-9]*"))
        return sorted(int(name) for name in names if name == _name(name))

    def folder(self, iteration: int) -> Path:
        """Name the directory of a checkpoint, whether it exists or not."""
        return self.root / _name(iteration)

    def find(self, iteration: int | None = None) -> Path:
        """Return the directory of a checkpoint (default: the newest)."""
        existing = self.iterations()
        run = self.root.parent
        if not existing:
            raise RunError(f"The run {run} has no checkpoint: it was stopped before the first.")
        if iteration is not None and iteration not in existing:
            listed = ", ".join(map(str, existing))
            raise RunError(f"The run {run} has no checkpoint {iteration}; it has {listed}.")
        return self.folder(existing[-1] if iteration is None else iteration)

    def save(
        self,
        iteration: int,
        tensors: Tensors,
        state: Mapping[str, Any],
        seal: Seal,
        keep: int,
        best: int | None = None,
    ) -> Path:
        """Write a checkpoint and remove the oldest, so that at most ``keep`` and the best remain.

        Later checkpoints are removed too: they exist when a run was resumed from an earlier one,
        and training has now taken another course.
        """
        try:
            write_checkpoint(self.folder(iteration), iteration, tensors, state, seal)
        except OSError as error:
            intact = ", ".join(map(str, self.iterations())) or "none"
            raise RunError(
                f"Cannot write checkpoint {iteration} of {self.root.parent}: {error}. "
                f"Is the disk full? Intact: {intact}."
            ) from error
        existing = self.iterations()
        past = [each for each in existing if each <= iteration]
        for old in set(existing) - {*past[-keep:], best}:
            remove_directory(self.folder(old))
        return self.folder(iteration)

    def load(self, folder: Path | None, settings: str) -> Saved:
        """Read a checkpoint (default: the newest) as the (tensors, state) it was saved from.

        Args:
            folder: its directory.
            settings: the hash of the run's settings.
        """
        folder = self.find() if folder is None else folder
        self.seal(folder, settings)
        with self._explained(folder):
            return read_checkpoint(folder)

    def recover(self, settings: str) -> Saved:
        """Read the newest checkpoint that is whole, and set newer ones aside, with a warning.

        Args:
            settings: the hash of the run's settings.

        Raises:
            RunError: none is whole; the message is that of the newest.
        """
        newest, damaged = self.find(), list[tuple[Path, RunError]]()
        for folder in (newest, *map(self.folder, reversed(self.iterations()[:-1]))):
            try:
                found = self.load(folder, settings)
            except RunError as error:
                damaged.append((folder, error))
                continue
            for broken, error in damaged:
                warnings.warn(
                    f"The checkpoint {broken} is damaged: {error.__cause__}. Training goes on from "
                    f"the one before, {folder.name}. The damaged one was moved to "
                    f"{set_aside(broken)}.",
                    stacklevel=2,
                )
            return found
        raise damaged[0][1]

    def seal(self, folder: Path, settings: str) -> Seal:
        """Read the seal of a checkpoint, and check that it belongs to this run and this place."""
        with self._explained(folder):
            content = read_state(folder)
            seal: Seal = content.get("seal", {})
            if seal.get("config", settings) != settings:
                raise ValueError(
                    "state.json belongs to a run with other settings than config.yaml has"
                )
            if _name(content["iteration"]) != folder.name:
                raise ValueError(f"state.json is of iteration {content['iteration']}")
        return seal

    @contextlib.contextmanager
    def _explained(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            folders = map(self.folder, self.iterations())
            others = ", ".join(str(other) for other in folders if other != folder)
            hint = f"Delete it to go on from the newest of: {others}." if others else ""
            raise RunError(
                f"The checkpoint {folder} is missing or damaged: {error}. "
                f"{hint or 'There is no other.'}"
            ) from error


def _name(iteration: int | str) -> str:
    """The directory's name of a checkpoint; empty if there can be no such checkpoint."""
    return f"{int(iteration):06d}" if str(iteration).isdecimal() else ""


def write_checkpoint(
    folder: Path,
    iteration: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    seal: Seal | None = None,
) -> None:
    """Write a checkpoint to disk, completely or not at all.

    An earlier checkpoint there is replaced, as when a resumed run reaches its iteration again.
    """
    remove_leftovers(folder.parent)
    try:
        with atomic_directory(folder, replace=True) as partial:
            hashes = {
                name: _save(partial / f"{name}.safetensors", group)
                for name, group in tensors.items()
            }
            content = {"iteration": iteration, "sha256": hashes, "state": state}
            write_text(partial / "state.json", json_line(sealed(content | {"seal": seal or {}})))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_checkpoint(folder: Path) -> Saved:
    """Read the (tensors, state) that a checkpoint was written from, with tensors on the CPU."""
    from safetensors.torch import load_file

    content = read_state(folder)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, expected in content["sha256"].items():
        file = folder / f"{name}.safetensors"
        if _sha256(file) != expected:
            raise ValueError(f"{file.name} does not match the hash in state.json")
        tensors[name] = load_file(file)
    return tensors, content["state"]


def read_state(folder: Path) -> dict[str, Any]:
    """Read what state.json holds."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"state.json is no JSON: {error}") from error
    if not isinstance(content, dict) or not {"iteration", "sha256", "state"} <= content.keys():
        raise ValueError("state.json lacks the keys of a checkpoint")
    if not is_whole(content):
        raise ValueError("state.json was changed after it was written")
    return content


def _save(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write one safetensors file and return its hash."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors rejects tensors that share memory, as tied weights do
        separate[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    save_file(separate, path)
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
