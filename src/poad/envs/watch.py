"""A watch over slow worlds: whoever waits for a world that does not answer is told so.

poad waits for a world as long as it takes, since a world may run programs or models. The watch is a
thread, so it is silent while a world blocks the whole interpreter.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

PATIENCE: Final = 60.0
"""Seconds that a world may take before a note says that it is being waited for."""


class Watch:
    """Notes calls that take long. Each note doubles the patience, so there are few.

    Args:
        patience: seconds until the first note.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._calls: dict[int, tuple[float, Callable[[], str]]] = {}  # by thread: since when, where
        self._process = 0

    @contextmanager
    def over(self, place: Callable[[], str]) -> Iterator[None]:
        """Watch one call of a world.

        Args:
            place: says which world is called, and where in its episode.
        """
        if self._process != os.getpid():  # threads do not survive a fork
            self._process, self._calls = os.getpid(), {}
            threading.Thread(target=self._look, name="poad: slow worlds", daemon=True).start()
        self._calls[threading.get_ident()] = time.monotonic(), place
        try:
            yield
        finally:
            self._calls.pop(threading.get_ident(), None)

    def _look(self) -> None:
        while True:
            time.sleep(self.patience / 8)
            for since, place in list(self._calls.values()):
                waited = time.monotonic() - since
                if waited > self.patience:
                    self.patience = 2 * waited
                    with suppress(UserWarning):  # nobody could catch it here
                        warnings.warn(
                            f"A world has not answered for {waited:.0f} s. poad waits for it; "
                            f"Ctrl-C, pressed twice, ends that. {place()}",
                            stacklevel=2,
                        )


WATCH: Final = Watch()
"""The watch over all worlds of this process."""
