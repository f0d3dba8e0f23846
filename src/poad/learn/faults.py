"""Worlds that fail: what is told of them, what becomes of their episodes, and when to give up.

An episode whose world failed is broken off at its last good observation. The action that failed
has no outcome, so nothing is learned from it. The turn before it counts as truncated, so that the
value of the last good observation stands for what would have come.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poad.errors import EngineError, WorldError, WorldNote, explained
from poad.learn.stream import Step, WorldStream
from poad.runs import Run, WorldErrorRecord, add_world_error
from poad.turns import Action

WINDOW = 100
"""The episodes over which failures are counted for the limit."""


@dataclass(frozen=True)
class Fault:
    """A world's failure, so that it can be told and repeated."""

    stream: int
    """Index of the stream."""
    seed: int
    """Seed of the episode."""
    turn: int
    """The number of the action that failed, from 1; 0 if the world failed at its reset."""
    error: str
    """What happened, in a sentence or two."""
    actions: tuple[str, ...]
    """All actions of the episode, the one that failed included."""


def is_world_fault(error: BaseException) -> bool:
    """Tell whether an error is the fault of a world."""
    noted = any(isinstance(note, WorldNote) for note in getattr(error, "__notes__", ()))
    return isinstance(error, WorldError) or (noted and isinstance(error, Exception))


def fault_of(number: int, stream: WorldStream, error: Exception) -> Fault:
    """Describe the failure of a stream's world."""
    actions = tuple(action.text for action in stream.actions)
    told = explained(error)
    if told is None:
        note = next(n for n in error.__notes__ if isinstance(n, WorldNote))
        told = f"The world raised {type(error).__name__}: {error}. {note}"
    return Fault(number, stream.seed, len(actions), told, actions)


Told = Callable[[int, WorldStream, Exception], None]
"""Is told that the world of a numbered stream has failed. It raises if play must stop."""


Log = Callable[[Sequence[Fault], Exception | None], None]
"""Is told which worlds failed, and how, with the failure that is not borne or None."""


class Table:
    """The streams that are at play, and what becomes of those whose world fails.

    Args:
        streams: N worlds, each in an episode, or in a reset that was begun.
        next_seed: the seed of the next episode of a stream; None closes the stream.
        told: is told of each failure. The world is then opened anew, with its next episode. None
            lets errors pass.
    """

    def __init__(
        self,
        streams: Sequence[WorldStream],
        next_seed: Callable[[int], int | None],
        told: Told | None = None,
    ) -> None:
        self.playing = dict(enumerate(streams))
        self._next_seed, self._told = next_seed, told

    def settle(self) -> None:
        """Wait until every world shows an observation."""
        for n in [*self.playing]:
            while n in self.playing:
                try:
                    self.playing[n].settle()
                    break
                except Exception as error:
                    self._mend(n, error)

    def finish(self, n: int, action: Action) -> Step | None:
        """Wait for a step, and begin the next episode if it ended one; None if the world failed."""
        try:
            step = self.playing[n].finish(n, action)
        except Exception as error:
            self._mend(n, error)
            return None
        if step.ended:
            self._go_on(n)
        return step

    def _mend(self, n: int, error: Exception) -> None:
        if self._told is None or not is_world_fault(error):
            raise error
        self._told(n, self.playing[n], error)
        self.playing[n].reopen()
        self._go_on(n)

    def _go_on(self, n: int) -> None:
        if (seed := self._next_seed(n)) is None:
            self.playing.pop(n).close()
        else:
            self.playing[n].begin_reset(seed)


class Tolerance:
    """How many failures of worlds a training bears.

    Args:
        policy: `stop` bears none, `restart` as many as the limit allows.
        limit: the share of the last 100 episodes that may fail.
    """

    def __init__(self, policy: Literal["stop", "restart"] = "stop", limit: float = 0.0) -> None:
        self.policy, self._limit = policy, limit
        self._failed: deque[bool] = deque(maxlen=WINDOW)

    def episode(self) -> None:
        """Note that an episode ended well."""
        self._failed.append(False)

    def bear(self, fault: Fault, error: Exception) -> None:
        """Note a failure.

        Raises:
            Exception: the failure itself, if none is borne.
            WorldError: there are too many.
        """
        if self.policy == "stop":
            raise error
        self._failed.append(True)
        count = sum(self._failed)
        if count > self._limit * WINDOW or count == WINDOW:  # the latter would go on forever
            raise WorldError(
                f"{count} of the last {max(len(self._failed), 1)} episodes broke off because the "
                f"world failed; world_error_limit allows {self._limit * WINDOW:g} of {WINDOW}. The "
                f"last time: {fault.error}"
            ) from error

    def state(self) -> list[bool]:
        """Return what a resumed run needs, as JSON values."""
        return list(self._failed)

    def load_state(self, state: Sequence[bool]) -> None:
        """Restore what `state` returned."""
        self._failed.clear()
        self._failed.extend(state)


def log_faults(
    run: Run | None, iteration: int, faults: Sequence[Fault], error: Exception | None
) -> None:
    """Write failures into the directory of a run, and say in an error how to go on.

    Args:
        run: the run, if there is one.
        iteration: in which they happened.
        faults: the failures.
        error: the one that ends the training, if one does; of a world or of the sampling engine.
    """
    if run is None:
        return
    if error is not None and isinstance(error, EngineError):
        error.add_note(f"Nothing is lost: `poad train --resume {run.path}` goes on.")
    number = 0
    for fault in faults:
        number = add_world_error(run, WorldErrorRecord(iteration, **vars(fault)))
        if number == 1 and error is None:
            warnings.warn(
                f"{fault.error} The episode broke off, and the world was opened anew. The metric "
                f"world_errors counts on; {run.path / 'world_errors.jsonl'} holds every failure.",
                stacklevel=2,
            )
    if error is not None and number:
        error.add_note(
            f"`poad play {run.path} --error {number}` repeats the episode up to there. Nothing is "
            f"lost: when the world is mended, `poad train --resume {run.path}` goes on."
        )


def fault_to_json(fault: Fault) -> dict[str, Any]:
    """Describe a failure in JSON values."""
    return {**vars(fault), "actions": list(fault.actions)}


def fault_from_json(saved: Mapping[str, Any]) -> Fault:
    """Restore what `fault_to_json` returned."""
    return Fault(**{**saved, "actions": tuple(saved["actions"])})
