"""Versions of the software and the source that produced a result."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("poad", "torch", "transformers", "peft", "gymnasium", "numpy")
OPTIONAL = ("llguidance", "minigrid", "openenv-core", "scikit-learn", "textarena", "textworld")
"""Packages behind some worlds and actions, which an environment names where they are installed."""


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that decide a result.

    They are read from the packages' metadata, so nothing is imported. A package that is not
    installed has version None.
    """
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def environment() -> dict[str, str | None]:
    """Return :func:`versions`, the platform, and the hash and commit of poad's source."""
    source = {"source": source_hash(), "git": source_commit()}
    found = {name: version for name in OPTIONAL if (version := _version(name)) is not None}
    return {**versions(), **found, "platform": platform.platform(), **source}


def with_environment(recorded: Mapping[str, Any]) -> dict[str, Any] | None:
    """Add :func:`environment` to those of later sessions; None if its versions are known."""
    later = [*recorded.get("later", ())]
    now, names = environment(), ("python", *PACKAGES, "source")
    if any(all(each.get(name) == now[name] for name in names) for each in (recorded, *later)):
        return None
    return {**recorded, "later": [*later, now]}


@cache
def source_hash(source: Path = Path(__file__).parents[1]) -> str:
    """Hash poad's files: code, templates and embedded models, whether committed or not.

    Results with the same hash were produced by the same poad, even if their commits differ.
    """
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(source).as_posix()}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def source_commit(source: Path = Path(__file__)) -> str | None:
    """Return the commit of poad's own source, with ``-dirty`` if it was edited since.

    None for an installed copy, which must not claim the commit of a repository that happens to
    contain it.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(source.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", source.name):
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
