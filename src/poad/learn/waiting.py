"""Turns that wait for the end of their episode, under methods that learn from whole episodes."""

from __future__ import annotations

from collections.abc import Sequence

from poad.learn.rows import Streams
from poad.turns import Turn


class Waiting:
    """The turns of unfinished episodes, stream by stream.

    Args:
        streams: N, the number of streams of a rollout.
        whole: whether turns wait at all; methods with a critic learn from each at once.
    """

    def __init__(self, streams: int, whole: bool) -> None:
        self.turns: list[tuple[Turn, ...]] = [() for _ in range(streams)]
        self._whole = whole

    def join(self, streams: Streams) -> tuple[Streams, list[int]]:
        """Take in the turns of a rollout, and hand out those that can be learned from now.

        Returns:
            N streams of turns, and how many at the beginning of each an older policy acted.
        """
        if not self._whole:
            return streams, [0] * len(streams)
        stale = [len(turns) for turns in self.turns]
        joined = [[*old, *new] for old, new in zip(self.turns, streams, strict=True)]
        finished, self.turns = split_finished(joined)
        return finished, stale


def split_finished(
    streams: Sequence[Sequence[Turn]],
) -> tuple[list[tuple[Turn, ...]], list[tuple[Turn, ...]]]:
    """Split streams after their last ended episode: (finished turns, turns that wait)."""
    finished, waiting = [], []
    for stream in streams:
        ends = [i + 1 for i, turn in enumerate(stream) if turn.terminated or turn.truncated]
        cut = ends[-1] if ends else 0
        finished.append(tuple(stream[:cut]))
        waiting.append(tuple(stream[cut:]))
    return finished, waiting
