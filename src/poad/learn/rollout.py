"""Rollouts: turns of N streams, collected while the policy does not change.

The collector knows neither the critic nor the learner. Its state is only seeds and actions: worlds
are deterministic in both, so replaying an unfinished episode restores it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import numpy as np

from poad.agent import ActingCache
from poad.learn.play import Actor, MakeEnv, WorldStream, play
from poad.turns import Action, Episode, Observation, Rollout, Turn


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
        self._streams = [WorldStream(make_env, actor.dialogue(), seed + i) for i in range(streams)]
        self._next_seed = seed + streams
        self.notes = tuple(dict.fromkeys(n for stream in self._streams for n in stream.notes))
        """Remarks of the worlds about this machine."""

    @property
    def observations(self) -> list[Observation]:
        """The current observation of each stream."""
        return [stream.observation for stream in self._streams]

    @property
    def _world(self) -> Any:
        """The first world, without wrappers."""
        return self._streams[0].world.unwrapped

    @property
    def step_discount(self) -> float | None:
        """The discount per primitive step that the world already applies to its rewards, if any."""
        return getattr(self._world, "step_discount", None)

    @property
    def prompt_note(self) -> str | None:
        """A remark on prompts that are not what one would expect, if there is one."""
        return next((s.prompts.note for s in self._streams if s.prompts.note), None)

    def collect(self, horizon: int, generator: np.random.Generator) -> Rollout:
        """Act for some turns in every stream.

        Args:
            horizon: turns per stream (T).
            generator: the source of randomness.
        """
        turns: list[list[Turn]] = [[] for _ in self._streams]
        episodes: list[Episode] = []
        measures: list[Mapping[str, float]] = []
        cpu_seconds = 0.0
        steps = play(
            self._actor, self._streams, self._seeds(), generator=generator, cache=ActingCache()
        )
        for step in islice(steps, horizon * len(self._streams)):
            turns[step.stream].append(step.turn())
            measures.append(step.info.get("measures", {}))
            cpu_seconds += float(step.info.get("cpu_seconds", 0.0))
            if step.ended:
                episodes.append(step.episode())
        streams = tuple(map(tuple, turns))
        return Rollout(streams, tuple(episodes), tuple(measures), cpu_seconds)

    def _seeds(self) -> Iterator[int]:
        while True:
            self._next_seed += 1
            yield self._next_seed - 1

    def state(self) -> dict[str, Any]:
        """Return everything that is needed to go on from here, as JSON values."""
        remember = getattr(self._world, "memory", None)
        return {
            "next_seed": self._next_seed,
            "memory": None if remember is None else remember(),
            "streams": [
                {
                    "seed": s.seed,
                    "actions": [a.text for a in s.actions],
                    "tokens": [list(a.token_ids) for a in s.actions],
                    "seen": list(s.world.seen),
                }
                for s in self._streams
            ],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, by replaying unfinished episodes.

        Raises:
            WorldError: a world does not repeat what it showed before.
        """
        self._next_seed = int(state["next_seed"])
        for i, (stream, saved) in enumerate(zip(self._streams, state["streams"], strict=True)):
            if state["memory"] is not None:
                cast(Any, stream.world.unwrapped).load_memory(state["memory"])
            done = zip(saved["actions"], saved["tokens"], strict=True)
            actions = [Action(text, tuple(tokens), (), ()) for text, tokens in done]
            stream.replay(i, int(saved["seed"]), actions, saved["seen"])

    def close(self) -> None:
        """Close the worlds."""
        for stream in self._streams:
            stream.close()
