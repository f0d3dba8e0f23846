"""Playing, and rollouts: turns of N streams, collected while the policy does not change.

Collecting, evaluating, watching, planning and playing by hand all go through `play`. The collector
knows neither the critic nor the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    next_seed: Callable[[int], int | None],
    *,
    generator: np.random.Generator | Sequence[np.random.Generator] | None = None,
    greedy: bool = False,
    cache: ActingCache | None = None,
) -> Iterator[Step]:
    """Play episode after episode in all streams, in turns, until the seeds run out.

    Args:
        actor: the policy or person that acts.
        streams: N worlds, each in an episode.
        next_seed: the seed of the next episode of a stream; None closes the stream.
        generator: the source of randomness of all streams together, or one of each. None: each
            episode has its own, seeded like the episode.
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
        if isinstance(generator, Sequence):
            source = [generator[n] for n in numbers]
        else:
            source = generator or [playing[n].generator for n in numbers]
        actions: dict[int, Action] = {}
        # A world may begin to work on an action while others are still being decided.
        for i, action in actor.act_each(observations, source, greedy=greedy, cache=cache):
            actions[numbers[i]] = action
            playing[numbers[i]].world.prepare(action.text)
        for n in numbers:
            step = playing[n].step(n, actions[n])
            if step.ended:
                if (seed := next_seed(n)) is None:
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
        own: the streams that are played here, if others are played elsewhere. Each then has its own
            random numbers, and takes every N-th seed, so that it is the same wherever it is played.
    """

    def __init__(
        self, make_env: MakeEnv, actor: Actor, streams: int, seed: int, own: range | None = None
    ) -> None:
        self._actor, self._step = actor, 1 if own is None else streams
        numbers = range(streams) if own is None else own
        self.streams = [WorldStream(make_env, actor.dialogue(), seed + i) for i in numbers]
        self.next_seeds = [seed + streams] if own is None else [seed + streams + i for i in own]
        """Seeds of the next episodes to begin: one, or one for each stream."""
        self.generators = [np.random.default_rng((seed, i)) for i in own or ()]
        self.notes = tuple(dict.fromkeys(n for stream in self.streams for n in stream.notes))
        """Remarks of the worlds about this machine."""

    def collect(self, horizon: int, generator: np.random.Generator) -> Rollout:
        """Act for some turns in every stream.

        Args:
            horizon: turns per stream (T).
            generator: the source of randomness, unless each stream has its own.
        """
        turns: list[list[Turn]] = [[] for _ in self.streams]
        episodes: list[Episode] = []
        measures: list[Mapping[str, float]] = []
        cpu_seconds = 0.0
        cache = ActingCache()  # the weights stay the same until the rollout is complete
        source = self.generators or generator
        steps = play(self._actor, self.streams, self._next_seed, generator=source, cache=cache)
        for step in islice(steps, horizon * len(self.streams)):
            turns[step.stream].append(step.turn())
            measures.append(step.info.get("measures", {}))
            cpu_seconds += float(step.info.get("cpu_seconds", 0.0))
            if step.ended:
                episodes.append(step.episode())
        return Rollout(tuple(map(tuple, turns)), tuple(episodes), tuple(measures), cpu_seconds)

    def _next_seed(self, stream: int) -> int:
        place = stream % len(self.next_seeds)
        self.next_seeds[place] += self._step
        return self.next_seeds[place] - self._step

    def close(self) -> None:
        """Close the worlds."""
        for stream in self.streams:
            stream.close()
