"""Watch a training in a browser of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from poad.pages import LocalServer, live_data, live_page


@contextmanager
def watched(path: Path, port: int | None) -> Iterator[None]:
    """Serve the report of a run while the block runs, and print where.

    The page reads what the run writes to its directory, so neither an open nor a closed browser
    changes the training.

    Args:
        path: the run's directory.
        port: of 127.0.0.1; 0 takes any. None serves nothing.

    Raises:
        ConfigError: the port cannot be used.
    """
    if port is None:
        yield
        return
    with LocalServer(partial(live_page, path), port, partial(live_data, path)) as server:
        print(f"Watch it at {server.url}", flush=True)
        yield
