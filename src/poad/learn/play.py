"""Playing: the one loop of act, prepare, step and reset.

Collecting, evaluating, watching, planning and playing by hand all go through `play`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from poad.agent import ActingCache
from poad.config import world_seed
from poad.envs import CheckedWorld
from poad.errors import PoadError, WorldError
from poad.trie import Form
from poad.turns import Action, Episode, Observation, TokenIds, Turn

MakeEnv = Callable[[], gymnasium.Env[str, str]]


class Prompts(Protocol):
    """Turns the observations of an episode into prompts; see `poad.lm.Dialogue`."""

    note: str | None

    def first_prompt(
        self, observation: str, offered: Sequence[str] | Form | None = None
    ) -> TokenIds:
        """Begin an episode."""
        ...

    def next_prompt(
        self, action: Action, observation: str, offered: Sequence[str] | Form | None = None
    ) -> TokenIds:
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
        return Episode(episode["r"], episode["l"], episode["success"])


class WorldStream:
    """One world and its current episode, as an actor reads it.

    Args:
        make_env: makes the world.
        prompts: makes its prompts.
        seed: of the first episode, which begins at once.
    """

    def __init__(self, make_env: MakeEnv, prompts: Prompts, seed: int) -> None:
        self._checked: CheckedWorld | None = CheckedWorld(make_env())
        self.prompts = prompts
        self.notes: tuple[str, ...] = ()
        """Remarks of the world about this machine."""
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Begin the episode of a seed.

        Raises:
            WorldError: the world breaks the contract; the message names it and the seed.
            Exception: anything the world raised, with a note on where it happened.
        """
        self.seed = seed
        self.actions: list[Action] = []
        shown = self.world.reset(world_seed(seed))
        with _encoding(self.world):
            prompt_ids = self.prompts.first_prompt(shown.prompt, shown.actions)
        self.observation = Observation(shown.prompt, shown.actions, prompt_ids)
        self.generator = np.random.default_rng(seed)
        self.notes = tuple(shown.info.get("notes", ()))

    def step(self, stream: int, action: Action) -> Step:
        """Act. The caller resets after an ending. Errors are those of `reset`.

        Args:
            stream: the index of this stream, for the record.
            action: what to do.
        """
        before = self.observation
        self.actions.append(action)
        happened = self.world.step(action.text)
        ended = happened.terminated or happened.truncated
        offered = None if ended else happened.actions  # nothing is chosen after the end
        with _encoding(self.world):
            prompt_ids = self.prompts.next_prompt(action, happened.prompt, offered)
        self.observation = Observation(happened.prompt, happened.actions, prompt_ids)
        return Step(
            stream,
            self.seed,
            before,
            action,
            happened.reward,
            happened.terminated,
            happened.truncated,
            happened.info,
            self.observation,
        )

    def replay(self, stream: int, seed: int, actions: Sequence[Action], seen: list[str]) -> None:
        """Begin an episode and repeat its actions.

        Args:
            stream: the index of this stream.
            seed: seed of the episode.
            actions: what was done.
            seen: the digests of what the world showed then; see `CheckedWorld.seen`.

        Raises:
            WorldError: the world shows something else than it did.
        """
        self.reset(seed)
        for turn in range(len(actions) + 1):
            if turn:
                self.step(stream, actions[turn - 1])
            if self.world.seen != seen[: turn + 1]:
                raise WorldError(
                    "The world does not repeat what it showed before the run was stopped, so the "
                    "run cannot go on from there. Either the world has been changed since, or its "
                    f"episodes depend on more than the seed and the actions. {self.world.place()}"
                )

    def close(self) -> None:
        """Close the world. Closing it again does nothing."""
        if self._checked is not None:
            closing, self._checked = self._checked, None
            closing.close()

    @property
    def world(self) -> CheckedWorld:
        """The open world."""
        assert self._checked is not None, "this stream was closed"
        return self._checked


@contextmanager
def _encoding(world: CheckedWorld) -> Iterator[None]:
    """Tell what has no tokens, or the same as something else, as a fault of the world."""
    with world.placed():
        try:
            yield
        except PoadError:
            raise
        except ValueError as error:
            raise WorldError(str(error)) from error


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
