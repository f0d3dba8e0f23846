"""Files that survive a crash or a full disk: each is written completely or not at all.

Functions here raise ``OSError`` as the system reports it; :mod:`poad.runs.run` explains it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poad.errors import LockedError, RunError
from poad.runs.codec import plain

PARTIAL = ".partial-"
"""What the name of a file begins with while it is written."""

# Windows has no advisory locks, so concurrent writers are not detected there.
fcntl = importlib.import_module("fcntl") if os.name == "posix" else None


@contextlib.contextmanager
def explained_as(action: str) -> Iterator[None]:
    """Raise RunError where the system cannot do something, which ``action`` says in words."""
    try:
        yield
    except OSError as error:
        raise RunError(f"Cannot {action}: {error.strerror or error}.") from error


def take_lock(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file, which is created if necessary.

    Closing the returned descriptor releases the lock, and so does the end of the process.

    Args:
        path: the lock file.
        wait: wait for the current holder instead of failing.

    Returns:
        A file descriptor; None where the system has no locks.

    Raises:
        LockedError: another process holds the lock.
    """
    if fcntl is None:
        return None
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
        os.close(lock)
        raise LockedError(holder or "unknown") from error
    except OSError:  # a file system without locks
        pass
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    return lock


@contextlib.contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new directory that becomes ``path`` when the block ends.

    Its files are on disk before it is renamed. If anything interrupts the block, ``path`` stays as
    it was and nothing of the new directory remains.

    Args:
        path: the final place.
        replace: remove a directory that is there; otherwise only an empty one is replaced.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir(parents=True)
        yield partial
        for entry in (*partial.iterdir(), partial):
            _sync(entry)
        if path.is_dir():
            remove_directory(path) if replace else path.rmdir()
        partial.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # absent after the rename


def remove_directory(path: Path) -> None:
    """Remove a directory; a rename makes it disappear at once, whatever interrupts the rest."""
    discarded = path.with_name(f".discarded-{path.name}")
    path.rename(discarded)
    shutil.rmtree(discarded, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a directory to ``damaged-NAME``, replacing an earlier one; return its new place."""
    aside = path.with_name(f"damaged-{path.name}")
    if aside.exists():
        remove_directory(aside)
    path.rename(aside)
    return aside


def remove_leftovers(root: Path) -> None:
    """Remove what a crash in the middle of a write or a removal left under ``root``."""
    for pattern in (f"{PARTIAL}*", ".discarded-*"):
        for entry in root.glob(pattern):
            shutil.rmtree(entry, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave the old one as it was."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the old one as it was."""
    partial = path.with_name(PARTIAL + path.name)
    try:
        partial.write_bytes(content)
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a record or mapping as an indented JSON file."""
    write_text(path, json.dumps(plain(value), allow_nan=False, indent=2) + "\n")


def json_line(value: Any) -> str:
    """Format a record or mapping as a line of a .jsonl file."""
    return json.dumps(plain(value), allow_nan=False) + "\n"


def append_line(path: Path, value: Any) -> None:
    """Append a record or mapping as a JSON line; if that fails, the file stays as it was."""
    line = json_line(value).encode()
    before: int | None = None
    try:
        with path.open("a+b") as file:
            before = file.seek(0, os.SEEK_END)
            if before:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a crash tore the last line: keep the new one apart
                    line = b"\n" + line
            file.write(line)
    except OSError:
        with contextlib.suppress(OSError):
            if before is not None:
                os.truncate(path, before)
        raise


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the JSON lines of a file; none if it is absent.

    Lines that a crash left incomplete are skipped with a warning.
    """
    for _, value in numbered_lines(path):
        yield value


def numbered_lines(path: Path, skip: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON lines as :func:`read_lines` does, each with its number, from 1.

    Args:
        path: the file.
        skip: bytes at the beginning that are left out.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        before = file.read(skip).count(b"\n")
        for number, line in enumerate(file, before + 1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield number, value
            elif line.strip():
                warnings.warn(
                    f"{path}, line {number}: not a complete record (torn by a crash?); skipped.",
                    stacklevel=2,
                )


def read_from_disk(path: Path) -> bytes:
    """Read a file once it is on disk; nothing if it is absent."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    _sync(path)
    return content


def _sync(path: Path) -> None:
    """Wait until a file, or a directory's list of entries, is on disk."""
    is_directory = path.is_dir()
    try:  # Windows flushes only what is open for writing
        descriptor = os.open(path, os.O_RDONLY if is_directory else os.O_RDWR)
    except PermissionError:
        if is_directory:  # Windows opens no directory
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
