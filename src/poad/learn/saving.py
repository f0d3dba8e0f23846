"""When a training writes checkpoints."""

from __future__ import annotations

import time

from poad.config import Config
from poad.runs import Run


class Schedule:
    """When the next checkpoint is due.

    Args:
        config: how often.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.note(-1)

    def note(self, iteration: int) -> None:
        """Note that there is a checkpoint of an iteration now."""
        self.saved, self._at = iteration, time.monotonic()

    def owes(self, run: Run | None, iteration: int, *, evaluated: bool) -> bool:
        """Tell whether it is time for a checkpoint, or the evaluation was the best so far.

        Args:
            run: what was recorded so far.
            iteration: that is over.
            evaluated: whether the agent was evaluated after it.
        """
        every, minutes = self._config.checkpoint_every, self._config.checkpoint_minutes
        # One that could not be written when it was due is written later.
        due = every > 0 and iteration // every > self.saved // every
        late = minutes > 0 and time.monotonic() - self._at >= 60 * minutes
        if due or late or not evaluated or run is None:
            return due or late
        return run.best_of((*run.checkpoints(), iteration)) == iteration
