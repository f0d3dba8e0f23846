"""Playing: the one loop of act, prepare, step and reset.

Collecting, evaluating, watching, planning and playing by hand all go through `play`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from poad.agent import ActingCache
from poad.errors import WorldError
from poad.turns import Action, Episode, Observation, TokenIds, Turn

MakeEnv = Callable[[], gymnasium.Env[str, str]]


class Prompts(Protocol):
    """Turns the observations of an episode into prompts; see `poad.lm.Dialogue`."""

    note: str | None

    def first_prompt(self, observation: str) -> TokenIds:
        """Begin an episode."""
        ...

    def next_prompt(self, action: Action, observation: str) -> TokenIds:
        """Go on after an action."""
        ...


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


@dataclass(frozen=True)
class Step:
    """One turn as it happened."""

    stream: int
    """Index of the stream."""
    seed: int
    """Seed of the episode."""
    observation: Observation
    """The observation that the actor saw."""
    action: Action
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    next_observation: Observation
    """The observation after the action; of the same episode, even if it ended."""

    @property
    def ended(self) -> bool:
        """True if the episode is over."""
        return self.terminated or self.truncated

    @property
    def duration(self) -> int:
        """Primitive steps that the action took."""
        return int(self.info.get("duration", 1))

    def turn(self) -> Turn:
        """Return the part that learning needs."""
        return Turn(
            self.observation.prompt_ids,
            self.action,
            self.reward,
            self.duration,
            self.terminated,
            self.truncated,
            self.next_observation.prompt_ids,
        )

    def episode(self) -> Episode:
        """Return the outcome of the episode that this step ended."""
        episode = self.info["episode"]
        return Episode(float(episode["r"]), int(episode["l"]), bool(episode["success"]))


class WorldStream:
    """One world and its current episode, as an actor reads it.

    Args:
        make_env: makes the world.
        prompts: makes its prompts.
        seed: of the first episode, which begins at once.
    """

    def __init__(self, make_env: MakeEnv, prompts: Prompts, seed: int) -> None:
        self.env: gymnasium.Env[str, str] | None = make_env()
        self.prompts = prompts
        self.notes: tuple[str, ...] = ()
        """Remarks of the world about this machine."""
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Begin the episode of a seed."""
        self.seed = seed
        self.actions: list[Action] = []
        with self._naming_the_world():
            prompt, info = self.world.reset(seed=seed)
        self.observation = observe(prompt, info, self.prompts.first_prompt(prompt))
        self.generator = np.random.default_rng(seed)
        self.notes = tuple(info.get("notes", ()))

    def step(self, stream: int, action: Action) -> Step:
        """Act. The caller resets after an ending.

        Args:
            stream: the index of this stream, for the record.
            action: what to do.

        Raises:
            WorldError: a reward that is not a finite number, or an ending without an outcome.
            Exception: anything the world raised, with a note on where it happened.
        """
        seen = self.observation
        self.actions.append(action)
        with self._naming_the_world():
            prompt, reward, terminated, truncated, info = self.world.step(action.text)
            reward = float(reward)
        self.observation = observe(prompt, info, self.prompts.next_prompt(action, prompt))
        if not math.isfinite(reward):
            raise WorldError(f"A reward is {reward}; it must be a finite number. {self._place()}")
        if terminated or truncated:
            given = info.get("episode")
            if not (isinstance(given, dict) and {"r", "l", "success"} <= given.keys()):
                raise WorldError(
                    f"An episode ended with info['episode'] = {given!r}; it must hold r (its "
                    f"return), l (its length) and success. {self._place()}"
                )
        outcome = (reward, terminated, truncated, info)
        return Step(stream, self.seed, seen, action, *outcome, self.observation)

    def prepare(self, action: str) -> None:
        """Announce the next action to a world that can start on it; there is no need to wait."""
        prepare = getattr(self.world.unwrapped, "prepare", None)
        if prepare is not None:
            with self._naming_the_world():
                prepare(action)

    def close(self) -> None:
        """Close the world. Closing it again does nothing."""
        if self.env is not None:
            self.env.close()
            self.env = None

    @property
    def world(self) -> gymnasium.Env[str, str]:
        """The open world."""
        assert self.env is not None, "this stream was closed"
        return self.env

    def _place(self) -> str:
        name = self.world.spec.id if self.world.spec else type(self.world.unwrapped).__name__
        last = f" ({self.actions[-1].text!r})" if self.actions else ""
        return (
            f"This was the world {name!r}, seed {self.seed}, action {len(self.actions)}{last}. "
            f"poad.check_env({name!r}) checks everything that a text world must keep."
        )

    @contextmanager
    def _naming_the_world(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(self._place())
            raise


def observe(prompt: str, info: Mapping[str, Any], prompt_ids: TokenIds = ()) -> Observation:
    """Make an observation of what ``reset`` or ``step`` returned."""
    offered = info.get("admissible_actions")
    return Observation(prompt, None if offered is None else tuple(offered), prompt_ids)


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
        for i, action in actor.act_each(observations, source, greedy=greedy, cache=cache):
            actions[numbers[i]] = action
            playing[numbers[i]].prepare(action.text)
        for n in numbers:
            step = playing[n].step(n, actions[n])
            if step.ended:
                seed = next(seeds, None)
                if seed is None:
                    playing.pop(n).close()
                else:
                    playing[n].reset(seed)
            yield step
