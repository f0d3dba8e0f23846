"""What a result was made with."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("poad", "torch", "transformers", "peft", "gymnasium", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a result; none where one is missing.

    They are read from the packages' metadata, so nothing is imported.
    """
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@cache
def source_hash(source: Path = Path(__file__).parents[1]) -> str:
    """A hash of poad as it is: code, templates and embedded models, whether committed or not.

    Two results with the same one were made by the same poad; their commits may differ in texts.
    """
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(source).as_posix()}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def source_commit(source: Path = Path(__file__)) -> str | None:
    """The commit of poad's own source, with ``-dirty`` if it was edited since.

    None for an installed copy: it must not claim the commit of a repository it happens to lie in.
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
