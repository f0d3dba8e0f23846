"""Turns that wait for the end of their episode, under methods that learn from whole episodes.

Where the episodes of a group of streams are compared, they also wait for each other. The streams of
a group begin the same episodes in the same order, so the n-th of each belong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from poad.agent import CreditSettings
from poad.learn.rows import Streams
from poad.turns import Turn


class Waiting:
    """The turns of unfinished episodes, stream by stream.

    Args:
        streams: N, the number of streams of a rollout.
        credit: the method, since those with a critic learn from each turn at once; and how many
            streams wait for each other's episodes.
    """

    def __init__(self, streams: int, credit: CreditSettings) -> None:
        self.turns: list[tuple[Turn, ...]] = [() for _ in range(streams)]
        self._whole, self._group = not credit.method.uses_critic, credit.group

    def break_off(self, streams: Iterable[int]) -> None:
        """Note that the episodes of some streams broke off where they wait."""
        for n in streams:
            if self.turns[n]:
                *before, last = self.turns[n]
                self.turns[n] = (*before, replace(last, truncated=True))

    def join(self, streams: Streams) -> tuple[Streams, list[int]]:
        """Take in the turns of a rollout, and hand out those that can be learned from now.

        Returns:
            N streams of turns, and how many at the beginning of each an older policy acted.
        """
        if not self._whole:
            return streams, [0] * len(streams)
        stale = [len(turns) for turns in self.turns]
        joined = [[*old, *new] for old, new in zip(self.turns, streams, strict=True)]
        finished, self.turns = split_finished(joined, self._group)
        return finished, stale


def split_finished(
    streams: Sequence[Sequence[Turn]], group: int = 1
) -> tuple[list[tuple[Turn, ...]], list[tuple[Turn, ...]]]:
    """Split streams after their last ended episode: (finished turns, turns that wait).

    Of a group of streams, each hands out as many episodes as the one that has ended the fewest.
    """
    ends = [
        [i + 1 for i, turn in enumerate(stream) if turn.terminated or turn.truncated]
        for stream in streams
    ]
    finished, waiting = [], []
    for number, stream in enumerate(streams):
        first = number - number % group
        common = min(map(len, ends[first : first + group]))
        cut = ends[number][common - 1] if common else 0
        finished.append(tuple(stream[:cut]))
        waiting.append(tuple(stream[cut:]))
    return finished, waiting
