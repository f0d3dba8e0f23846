"""One world and its current episode, as an actor reads it."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from poad.agent import ActingCache
from poad.config import world_seed
from poad.envs import CheckedWorld, Host, RemoteWorld, Workers
from poad.errors import PoadError, WorldError
from poad.trie import Offer
from poad.turns import Action, Cut, Episode, Observation, TokenIds, Turn

MakeEnv = Callable[[], gymnasium.Env[str, str]]


class Prompts(Protocol):
    """Turns the observations of an episode into prompts; see `poad.lm.Dialogue`."""

    note: str | None
    cut: Cut | None

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


class NoPrompts:
    """Prompts for an actor that reads the observations themselves."""

    note: str | None = None
    cut: Cut | None = None

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


@dataclass(frozen=True)
class Mark:
    """How far a stream has come: all that is needed to bring another copy of its world there."""

    seed: int
    """Seed of the episode."""
    actions: Sequence[Action]
    """The actions of the episode; the first ``turns`` of them count."""
    seen: Sequence[str]
    """The digests of what the world showed; see `CheckedWorld.seen`."""
    read: Sequence[str]
    """The digests of the prompts that the model read; see `WorldStream.read`."""
    turns: int

    def to_json(self) -> dict[str, Any]:
        """Describe the mark in JSON values."""
        actions = self.actions[: self.turns]
        return {
            "seed": self.seed,
            "actions": [action.text for action in actions],
            "tokens": [list(action.token_ids) for action in actions],
            "seen": list(self.seen[: self.turns + 1]),
            "read": list(self.read[: self.turns + 1]),
        }


class WorldStream:
    """One world and its current episode, as an actor reads it.

    A reset and a step have two halves, so that a world which lives elsewhere can work in between.

    Args:
        make_env: makes the world.
        prompts: makes its prompts.
        seed: of the first episode; `settle` waits for it.
        workers: where the world lives; in this thread if None.
        max_turns: cut episodes off after so many turns; 0 never does.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        prompts: Prompts,
        seed: int,
        workers: Workers | None = None,
        max_turns: int = 0,
    ) -> None:
        self.workers = workers or Workers()
        self.host: Host = self.workers.open(make_env)
        self.prompts, self._max_turns = prompts, max_turns
        self.allowance = math.inf
        """How many more turns may be played."""
        self.notes: tuple[str, ...] = ()
        """Remarks of the world about this machine."""
        self.begin_reset(seed)

    @property
    def observation(self) -> Observation:
        """What the actor reads next. Errors are those of `reset`, if one was begun."""
        if self._arriving:
            self.settle()
        return self._observation

    @property
    def world(self) -> CheckedWorld | RemoteWorld:
        """The open world."""
        return self.host.world

    def mark(self) -> Mark:
        """Note how far this stream has come."""
        return Mark(self.seed, self.actions, self.world.seen, self.read, len(self.actions))

    def reset(self, seed: int) -> None:
        """Begin the episode of a seed.

        Raises:
            WorldError: the world breaks the contract; the message names it and the seed.
            Exception: anything the world raised, with a note on where it happened.
        """
        self.begin_reset(seed)
        self.settle()

    def begin_reset(self, seed: int) -> None:
        """Begin the first half of a reset."""
        self.seed = seed
        self.actions: list[Action] = []
        self.read: list[str] = []
        """A digest for the reset and for each turn, of the prompt that the model reads."""
        self.earned, self.length = 0.0, 0
        """The sum of rewards and of primitive steps in the episode so far."""
        self._arriving = True
        self.host.begin("reset", world_seed(seed))

    def settle(self) -> None:
        """Wait for the end of a reset that was begun. Errors are those of `reset`."""
        if not self._arriving:
            return
        self._arriving = False
        shown = self.host.result()
        with _encoding(self.world):
            prompt_ids = self.prompts.first_prompt(
                shown.prompt, shown.actions, shown.info.get("goal")
            )
        self._show(Observation(shown.prompt, shown.actions, prompt_ids, self.prompts.cut))
        self.generator = np.random.default_rng(self.seed)
        self.notes = tuple(shown.info.get("notes", ()))

    def step(self, stream: int, action: Action) -> Step:
        """Act. The caller resets after an ending. Errors are those of `reset`.

        Args:
            stream: the index of this stream, for the record.
            action: what to do.
        """
        self.host.begin("step", action.text)
        return self._finish(stream, action)

    def begin(self, action: Action) -> None:
        """Let the world begin to work on an action, if it can do so early."""
        self.host.prepare(action.text)
        self.host.begin("step", action.text)

    def finish(self, stream: int, action: Action) -> Step:
        """Wait for the step that was begun. The arguments and errors are those of `step`."""
        return self._finish(stream, action)

    def _finish(self, stream: int, action: Action) -> Step:
        before = self._observation
        self.actions.append(action)
        happened = self.host.result()
        ended = happened.terminated or happened.truncated
        offered = None if ended else happened.actions  # nothing is chosen after the end
        with _encoding(self.world):
            prompt_ids = self.prompts.next_prompt(
                action, happened.prompt, offered, happened.info.get("goal")
            )
        self._show(Observation(happened.prompt, happened.actions, prompt_ids, self.prompts.cut))
        self.earned += happened.reward
        self.length += happened.info["duration"]
        truncated, info = happened.truncated, happened.info
        if not ended and len(self.actions) == self._max_turns:
            episode = {"r": self.earned, "l": self.length, "success": False}
            truncated, info = True, {**info, "episode": episode}
        return Step(
            stream,
            self.seed,
            before,
            action,
            happened.reward,
            happened.terminated,
            truncated,
            info,
            self._observation,
        )

    def _show(self, observation: Observation) -> None:
        self._observation = observation
        ids = array("q", observation.prompt_ids).tobytes()
        self.read.append(hashlib.sha256(ids).hexdigest()[:16])

    def memory(self) -> Any:
        """Return what the world's copies remember between episodes, as JSON values, or None."""
        self.host.begin("memory")
        return self.host.result()

    def load_memory(self, memory: Any) -> None:
        """Hand the world what `memory` returned."""
        self.host.begin("load_memory", memory)
        self.host.result()

    def reopen(self) -> None:
        """Close a world that has failed. The next reset opens another copy."""
        self.host.reopen()

    def close(self) -> None:
        """Close the world. Closing it again does nothing."""
        self.host.close()


@contextmanager
def _encoding(world: CheckedWorld | RemoteWorld) -> Iterator[None]:
    """Tell what has no tokens, or the same as something else, as a fault of the world."""
    with world.placed():
        try:
            yield
        except PoadError:
            raise
        except ValueError as error:
            raise WorldError(str(error)) from error
