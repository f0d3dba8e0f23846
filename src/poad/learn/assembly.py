"""Puts the turns of a rollout together, in an order that does not depend on time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from poad.learn.faults import Fault
from poad.learn.stream import Step
from poad.turns import Episode, Rollout, Turn


class Assembly:
    """The turns of N streams as they come in.

    Episodes and measures will stand turn after turn, and in each of them stream after stream, as
    where the streams take turns.

    Args:
        streams: N.
    """

    def __init__(self, streams: int) -> None:
        self._turns: list[list[Turn]] = [[] for _ in range(streams)]
        self._infos: list[list[Mapping[str, Any]]] = [[] for _ in range(streams)]
        self._ended: dict[tuple[int, int], Episode] = {}  # by turn and stream
        self._broken: list[tuple[int, int]] = []

    def add(self, step: Step) -> None:
        """Take in a turn."""
        turns = self._turns[step.stream]
        if step.ended:
            self._ended[len(turns), step.stream] = step.episode()
        turns.append(step.turn())
        self._infos[step.stream].append(step.info)

    def break_off(self, fault: Fault) -> None:
        """Break an episode off whose world has failed; its last turn counts as truncated."""
        if fault.turn <= 1:
            return  # no turn of it is known
        turns = self._turns[fault.stream]
        if turns:
            turns[-1] = replace(turns[-1], truncated=True)
        self._broken.append((fault.stream, len(turns) - 1))

    def rollout(self) -> Rollout:
        """Return what came in."""
        longest = max(map(len, self._turns), default=0)
        places = [
            (t, n) for t in range(longest) for n, row in enumerate(self._turns) if t < len(row)
        ]
        infos = [self._infos[n][t] for t, n in places]
        return Rollout(
            tuple(map(tuple, self._turns)),
            tuple(self._ended[place] for place in sorted(self._ended)),
            tuple(info.get("measures", {}) for info in infos),
            sum(float(info.get("cpu_seconds", 0.0)) for info in infos),
            tuple(info.get("work") for info in infos),
            tuple(sorted(self._broken)),
        )
