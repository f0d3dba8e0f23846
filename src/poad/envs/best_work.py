"""Keeping the best thing that agents make, in worlds where they make things (programs, say)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Something that an agent made, with its score."""

    file: str
    """File name to keep it under, for example ``best_program.py``."""
    text: str
    score: float
    deviation: float
    """Standard deviation of the score."""
    turn: int
    """Turns that had been taken in all worlds together, this one included."""

    def page(self) -> str:
        """Return the text below a comment line with its score."""
        head = f"# score {self.score:.4f}, standard deviation {self.deviation:.4f}"
        return f"{head}, turn {self.turn}\n{self.text.rstrip()}\n"


class BestWork:
    """Remembers the best ``info["work"]`` of a training's worlds.

    A world reports its work as a dictionary with `file`, `text`, `score` and `deviation`.
    """

    def __init__(self) -> None:
        self.best: Work | None = None
        self.turns = 0

    def consider(self, work: Mapping[str, Any] | None) -> None:
        """Count a turn, and keep what was made in it if it is better than everything before."""
        self.turns += 1
        if work is not None and (self.best is None or work["score"] > self.best.score):
            self.best = Work(**work, turn=self.turns)

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as JSON values."""
        return {"best": self.best and self.best._asdict(), "turns": self.turns}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.best = Work(**state["best"]) if state["best"] else None
        self.turns = int(state["turns"])
