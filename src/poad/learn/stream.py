"""One world and its current episode, as an actor reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from poad.config import world_seed
from poad.envs import CheckedWorld
from poad.errors import PoadError, WorldError
from poad.trie import Offer
from poad.turns import Action, Episode, Observation, TokenIds, Turn

MakeEnv = Callable[[], gymnasium.Env[str, str]]


class Prompts(Protocol):
    """Turns the observations of an episode into prompts; see `poad.lm.Dialogue`."""

    note: str | None

    def first_prompt(
        self,
        observation: str,
        offered: Offer | None = None,
        goal: str | None = None,
    ) -> TokenIds:
        """Begin an episode."""
        ...

    def next_prompt(
        self,
        action: Action,
        observation: str,
        offered: Offer | None = None,
        goal: str | None = None,
    ) -> TokenIds:
        """Go on after an action."""
        ...


class NoPrompts:
    """Prompts for an actor that reads the observations themselves."""

    note: str | None = None

    def first_prompt(
        self, observation: str, offered: object = None, goal: str | None = None
    ) -> TokenIds:
        """Return no tokens."""
        return ()

    def next_prompt(
        self, action: Action, observation: str, offered: object = None, goal: str | None = None
    ) -> TokenIds:
        """Return no tokens."""
        return ()


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
            prompt_ids = self.prompts.first_prompt(
                shown.prompt, shown.actions, shown.info.get("goal")
            )
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
            prompt_ids = self.prompts.next_prompt(
                action, happened.prompt, offered, happened.info.get("goal")
            )
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
