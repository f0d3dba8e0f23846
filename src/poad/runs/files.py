"""Files that a crash or a full disk cannot spoil: written whole or not at all, in strict JSON.

Everything here raises ``OSError`` as the system gives it; :mod:`poad.runs.run` says what it means.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from poad.errors import LockedError

# Windows has no advisory locks, so two writers are not told apart there.
fcntl = importlib.import_module("fcntl") if os.name == "posix" else None


def take_lock(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file, made if need be; closing the descriptor lets go of it, and so does any end.

    None where the system has no locks. `wait` waits for the holder instead of failing.

    Raises:
        LockedError: another process holds it.
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


def plain(value: Any) -> Any:
    """``value`` as strict JSON can say it: NaN and infinities become null, arrays lists.

    Raises:
        TypeError: something that JSON has no word for.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return plain(value.tolist())
    raise TypeError(f"JSON cannot hold a {type(value).__name__}: {value!r}")


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave the old one as it was."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that is also pleasant to read."""
    write_text(path, json.dumps(plain(value), allow_nan=False, indent=2) + "\n")


def json_line(value: Mapping[str, Any]) -> str:
    """``value`` as a line of a .jsonl file."""
    return json.dumps(plain(value), allow_nan=False) + "\n"


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append a JSON line; if that fails, the file stays as it was."""
    line = json_line(value).encode()
    before: int | None = None
    try:
        with path.open("a+b") as file:
            before = file.seek(0, os.SEEK_END)
            if before:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a crash tore the last line; keep it apart from ours
                    line = b"\n" + line
            file.write(line)
    except OSError:
        with contextlib.suppress(OSError):
            if before is not None:
                os.truncate(path, before)
        raise


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file, none if it is absent; what a crash tore is skipped and reported."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield value
            elif line.strip():
                warnings.warn(
                    f"{path}, line {number}: not a complete record (torn by a crash?); skipped.",
                    stacklevel=2,
                )
