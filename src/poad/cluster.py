"""A Ray cluster: connecting to it, or saying in one sentence why that does not work.

`RAY_ADDRESS` names the cluster. Without it, poad takes the one that `ray start` has made this
machine a part of, and starts one here if there is none. Ray is imported when it is needed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from poad.errors import ConfigError

ADDRESS: Final = "RAY_ADDRESS"
_CONNECTING: Final = threading.Lock()


def connect(cpus: int = 1) -> Any:
    """Return the package ray, connected to a cluster.

    Args:
        cpus: what is wanted at least of a cluster that has to be started here. Each of its CPUs is
            a promise to ray, not a core.

    Raises:
        ConfigError: ray is not installed, or the cluster does not answer.
    """
    # What Ray says of processes that died is pages long, and poad tells what matters of it.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "This needs a Ray cluster and the package ray, which is not installed. Install it with "
            '`pip install "poad[ray]"`, or do without: `torchrun` starts several processes, and '
            "`--workers processes:N` runs worlds on this machine."
        ) from None
    with _CONNECTING, _own_signals():
        if not ray.is_initialized():
            _initialize(ray, cpus)
    return ray


def last_line(error: Exception) -> str:
    """Return the last line of what ray says, which is a page, without a period at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _initialize(ray: Any, cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # poad reports on nobody
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get(ADDRESS) or _started_here() or "local"
    if address == "local":
        count = max(cpus, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(
            f"No Ray cluster can be reached at {address}: {why.splitlines()[0]}. Look whether it "
            "runs (`ray status` on a machine of it), or name another one by --ray.address or "
            "RAY_ADDRESS. The address `local` starts one here."
        ) from error


def _started_here() -> str | None:
    """The address of the cluster that `ray start` has made this machine a part of, if it lives."""
    file = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray/ray_current_cluster"
    try:
        address = file.read_text(encoding="utf-8").strip()
        _knock(address)
    except (OSError, ValueError):
        return None
    return address


def _knock(address: str) -> None:
    """Raise OSError unless something listens at HOST:PORT: ray would try for minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^\s/]+?)\]?:([0-9]+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=10).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does, since ray replaces it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    with contextlib.suppress(ValueError, TypeError):  # in other threads, ray replaces nothing
        signal.signal(signal.SIGTERM, before)
