"""Playing, and rollouts: turns of N streams, collected while the policy does not change.

Collecting, evaluating, watching, planning and playing by hand all go through `play`. The collector
knows neither the critic nor the learner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from poad.agent import ActingCache
from poad.learn.stream import MakeEnv, Prompts, Step, WorldStream
from poad.turns import Action, Episode, Observation, Rollout, Turn


class Actor(Protocol):
    """An object that acts: a `poad.agent.Policy`, or a person at the keyboard."""

    def dialogue(self) -> Prompts:
        """Return a maker of prompts for one world."""
        ...

    def act_each(
        self,
        observations: Sequence[Observation],
        generator: np.random.Generator | Sequence[np.random.Generator],
        *,
        greedy: bool = False,
        cache: ActingCache | None = None,
    ) -> Iterator[tuple[int, Action]]:
        """Yield the index of an observation and its action, each as soon as it is decided."""
        ...


def play(
    actor: Actor,
    streams: Sequence[WorldStream],
    seeds: Iterator[int],
    *,
    generator: np.random.Generator | None = None,
    greedy: bool = False,
    cache: ActingCache | None = None,
) -> Iterator[Step]:
    """Play episode after episode in all streams, in turns, until the seeds run out.

    Args:
        actor: the policy or person that acts.
        streams: N worlds, each in an episode.
        seeds: of the episodes that follow those that end. A stream without a next seed is closed.
        generator: the source of randomness of all streams together. None: each episode has its
            own, seeded like the episode, so that it does not depend on the other streams.
        greedy: take the likeliest token or action instead of sampling.
        cache: distributions to reuse; valid while the actor's weights do not change.

    Yields:
        Every step, in the order of the streams. Where it ended its episode, the next one has begun.
    """
    cache = ActingCache() if cache is None else cache
    playing = dict(enumerate(streams))
    while playing:
        numbers = list(playing)
        observations = [playing[n].observation for n in numbers]
        source = generator or [playing[n].generator for n in numbers]
        actions: dict[int, Action] = {}
        # A world may begin to work on an action while others are still being decided.
        for i, action in actor.act_each(observations, source, greedy=greedy, cache=cache):
            actions[numbers[i]] = action
            playing[numbers[i]].world.prepare(action.text)
        for n in numbers:
            step = playing[n].step(n, actions[n])
            if step.ended:
                seed = next(seeds, None)
                if seed is None:
                    playing.pop(n).close()
                else:
                    playing[n].reset(seed)
            yield step


class Collector:
    """N streams of episodes that go on from one rollout to the next.

    Args:
        make_env: makes one world.
        actor: the policy that acts.
        streams: N.
        seed: of the first episode; each new episode takes the next one.
    """

    def __init__(self, make_env: MakeEnv, actor: Actor, streams: int, seed: int) -> None:
        self._actor = actor
        self.streams = [WorldStream(make_env, actor.dialogue(), seed + i) for i in range(streams)]
        self.next_seed = seed + streams
        """Seed of the next episode to begin."""
        self.notes = tuple(dict.fromkeys(n for stream in self.streams for n in stream.notes))
        """Remarks of the worlds about this machine."""

    def collect(self, horizon: int, generator: np.random.Generator) -> Rollout:
        """Act for some turns in every stream.

        Args:
            horizon: turns per stream (T).
            generator: the source of randomness.
        """
        turns: list[list[Turn]] = [[] for _ in self.streams]
        episodes: list[Episode] = []
        measures: list[Mapping[str, float]] = []
        cpu_seconds = 0.0
        cache = ActingCache()  # the weights stay the same until the rollout is complete
        steps = play(self._actor, self.streams, self._seeds(), generator=generator, cache=cache)
        for step in islice(steps, horizon * len(self.streams)):
            turns[step.stream].append(step.turn())
            measures.append(step.info.get("measures", {}))
            cpu_seconds += float(step.info.get("cpu_seconds", 0.0))
            if step.ended:
                episodes.append(step.episode())
        return Rollout(tuple(map(tuple, turns)), tuple(episodes), tuple(measures), cpu_seconds)

    def _seeds(self) -> Iterator[int]:
        while True:
            self.next_seed += 1
            yield self.next_seed - 1

    def close(self) -> None:
        """Close the worlds."""
        for stream in self.streams:
            stream.close()
