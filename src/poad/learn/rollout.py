"""Playing, and rollouts: turns of N streams, collected while the policy does not change.

Collecting, evaluating, watching, planning and playing by hand all go through `play`. The collector
knows neither the critic nor the learner.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from poad.agent import ActingCache
from poad.learn.ahead import Ahead
from poad.learn.faults import Table, Told
from poad.learn.stream import Actor, Step, WorldStream
from poad.learn.streams import Streams
from poad.turns import Action, Rollout


def play(
    actor: Actor,
    streams: Sequence[WorldStream],
    next_seed: Callable[[int], int | None],
    *,
    generator: np.random.Generator | Sequence[np.random.Generator] | None = None,
    greedy: bool = False,
    cache: ActingCache | None = None,
    turns: float = math.inf,
    told: Told | None = None,
) -> Iterator[Step]:
    """Play episode after episode in all streams, in rounds, until the seeds run out.

    Args:
        actor: the policy or person that acts.
        streams: N worlds, each in an episode.
        next_seed: the seed of the next episode of a stream; None closes the stream.
        generator: the source of randomness of all streams together, or one of each. None: each
            episode has its own, seeded like the episode.
        greedy: take the likeliest token or action instead of sampling.
        cache: distributions to reuse; valid while the actor's weights do not change.
        turns: of each stream; then it rests.
        told: is told of a world's failure; see `poad.learn.faults`. None raises it.

    Yields:
        Every step, in the order of the streams. Where it ended its episode, the next one has begun.
    """
    cache, ahead = ActingCache() if cache is None else cache, Ahead(actor, greedy)
    table, left = Table(streams, next_seed, told), [turns] * len(streams)
    for stream in streams:
        stream.allowance = turns
    while True:
        table.settle()
        playing = {n: stream for n, stream in table.playing.items() if left[n] > 0}
        if not playing:
            return
        source: Any = generator or [stream.generator for stream in playing.values()]
        if isinstance(generator, Sequence):
            source = [generator[n] for n in playing]
        own = None if source is generator else dict(zip(playing, source, strict=True))
        numbers, actions, begun = [*playing], dict[int, Action](), time.perf_counter()
        observations = [stream.observation for stream in playing.values()]
        # A world may begin to work on an action while others are still being decided.
        for i, action in actor.act_each(observations, source, greedy=greedy, cache=cache):
            actions[numbers[i]] = action
            playing[numbers[i]].begin(action)
        ahead.wait(playing, own, patience=time.perf_counter() - begun)
        for n in numbers:
            if (step := table.finish(n, actions[n])) is not None:
                left[n] -= 1
                yield step


class Collector(Streams):
    """N streams of episodes that go on from one rollout to the next; see `Streams`."""

    def collect(self, horizon: int, generator: np.random.Generator) -> Rollout:
        """Act for some turns in every stream.

        Args:
            horizon: turns per stream (T).
            generator: the source of randomness, unless each stream has its own.
        """
        self.begin_rollout(generator)
        source = self.generators or generator  # the weights stay the same until the end
        for step in play(
            self.actor,
            self.streams,
            self.next_seed,
            generator=source,
            turns=horizon,
            told=self.bear,
        ):
            self.assembly.add(step)
            if step.ended:
                self.tolerance.episode()
        return self.assembly.rollout()
