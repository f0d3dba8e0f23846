"""Environments and policy, turn by turn: the only place that steps worlds while training.

It knows neither critic nor learner. What it hands out is a :class:`Rollout`: turns of N streams and
the episodes that ended on the way. Its state is only seeds and actions, so that a stopped run can
be taken up exactly: worlds are deterministic, and replaying an unfinished episode restores it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from poad.agent import ActingCache, Observation, Policy
from poad.errors import WorldError
from poad.lm import Dialogue
from poad.turns import Action, Episode, Rollout, TokenIds, Turn, Work


@dataclass
class Stream:
    """One environment, its current observation, and how it came there."""

    env: gym.Env[str, str]
    dialogue: Dialogue
    seed: int = 0
    observation: Observation = field(default_factory=lambda: Observation(""))
    actions: list[Action] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    """What the world says the user should know."""

    def reset(self, seed: int) -> None:
        """Start the episode of a seed."""
        self.seed, self.actions = seed, []
        with self._naming_the_world():
            prompt, info = self.env.reset(seed=seed)
        self.observation = observe(prompt, info, self.dialogue.first_prompt(prompt))
        self.notes = tuple(info.get("notes", ()))

    def step(self, action: Action) -> tuple[float, bool, bool, dict[str, Any]]:
        """Act; the caller resets after an ending.

        Raises:
            WorldError: a reward that is no number, or an end that does not say how it went.
            Exception: whatever the world raised, with a note on where that was.
        """
        self.actions.append(action)
        with self._naming_the_world():
            prompt, reward, terminated, truncated, info = self.env.step(action.text)
            reward = float(reward)
        self.observation = observe(prompt, info, self.dialogue.next_prompt(action, prompt))
        if not math.isfinite(reward):
            raise WorldError(f"A reward is {reward}; it must be a finite number. {self._place()}")
        if terminated or truncated:
            given = info.get("episode")
            if not (isinstance(given, dict) and {"r", "l", "success"} <= given.keys()):
                raise WorldError(
                    f"An episode ended with info['episode'] = {given!r}; it must hold r (its "
                    f"return), l (its length) and success. {self._place()}"
                )
        return reward, terminated, truncated, info

    def prepare(self, action: str) -> None:
        """Tell a world that wants to know it which action comes next; it need not wait for it."""
        prepare = getattr(self.env.unwrapped, "prepare", None)
        if prepare is not None:
            with self._naming_the_world():
                prepare(action)

    def _place(self) -> str:
        name = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
        last = f" ({self.actions[-1].text!r})" if self.actions else ""
        return (
            f"This was the world {name!r}, seed {self.seed}, action {len(self.actions)}{last}. "
            f"poad.check_env({name!r}) tells all that a text world must keep."
        )

    @contextmanager
    def _naming_the_world(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(self._place())
            raise


def observe(prompt: str, info: dict[str, Any], prompt_ids: TokenIds | None = None) -> Observation:
    """What ``reset`` or ``step`` showed, as the policy takes it."""
    offered = info.get("admissible_actions")
    return Observation(prompt, None if offered is None else tuple(offered), prompt_ids)


def open_stream(make_env: Callable[[], gym.Env[str, str]], policy: Policy, seed: int) -> Stream:
    """A new environment at the start of the episode of a seed, as a policy reads it."""
    stream = Stream(make_env(), policy.dialogue())
    stream.reset(seed)
    return stream


class Collector:
    """N streams of episodes that go on from one rollout to the next.

    Args:
        make_env: makes one environment.
        policy: who acts.
        streams: N.
        seed: the first episode's seed; each new episode takes the next.
    """

    def __init__(
        self, make_env: Callable[[], gym.Env[str, str]], policy: Policy, streams: int, seed: int
    ) -> None:
        self._policy = policy
        self._streams = [open_stream(make_env, policy, seed + i) for i in range(streams)]
        self._next_seed = seed + streams
        self.notes = tuple(dict.fromkeys(n for stream in self._streams for n in stream.notes))
        """What the worlds say the user should know."""

    @property
    def observations(self) -> list[Observation]:
        """What each stream shows now."""
        return [stream.observation for stream in self._streams]

    @property
    def step_discount(self) -> float | None:
        """The discount per primitive step that the world already put into its rewards, if any."""
        return getattr(self._streams[0].env.unwrapped, "step_discount", None)

    @property
    def prompt_note(self) -> str | None:
        """What about the prompts is not as one would expect, if anything."""
        return next((s.dialogue.note for s in self._streams if s.dialogue.note), None)

    def collect(self, horizon: int, generator: np.random.Generator) -> Rollout:
        """Act ``horizon`` turns in every stream (T)."""
        turns: list[list[Turn]] = [[] for _ in self._streams]
        episodes: list[Episode] = []
        diary = _Diary()
        cache = ActingCache()
        for _ in range(horizon):
            actions: dict[int, Action] = {}
            for i, action in self._policy.act_each(self.observations, generator, cache=cache):
                actions[i] = action
                self._streams[i].prepare(action.text)
            for i, (stream, history) in enumerate(zip(self._streams, turns, strict=True)):
                action = actions[i]
                prompt = self._policy.prompt_ids(stream.observation)
                reward, terminated, truncated, info = stream.step(action)
                after = self._policy.prompt_ids(stream.observation)
                duration = int(info.get("duration", 1))
                history.append(Turn(prompt, action, reward, duration, terminated, truncated, after))
                diary.add(info)
                if terminated or truncated:
                    episodes.append(episode_of(info))
                    stream.reset(self._next_seed)
                    self._next_seed += 1
        return Rollout(
            tuple(map(tuple, turns)),
            tuple(episodes),
            tuple(diary.measures),
            diary.best,
            diary.cpu_seconds,
        )

    def state(self) -> dict[str, Any]:
        """Everything needed to stand where it stands, as JSON."""
        return {
            "next_seed": self._next_seed,
            "streams": [
                {
                    "seed": s.seed,
                    "actions": [a.text for a in s.actions],
                    "tokens": [list(a.token_ids) for a in s.actions],
                }
                for s in self._streams
            ],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Replay the unfinished episodes of :meth:`state`."""
        self._next_seed = int(state["next_seed"])
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.reset(int(saved["seed"]))
            for text, tokens in zip(saved["actions"], saved["tokens"], strict=True):
                stream.step(Action(text, tuple(tokens), (), ()))

    def close(self) -> None:
        """Close the environments."""
        for stream in self._streams:
            stream.env.close()


@dataclass
class _Diary:
    """What worlds tell of single turns, beside what training needs."""

    measures: list[Mapping[str, float]] = field(default_factory=list)
    best: Work | None = None
    cpu_seconds: float = 0.0

    def add(self, info: Mapping[str, Any]) -> None:
        self.measures.append(info.get("measures", {}))
        self.cpu_seconds += float(info.get("cpu_seconds", 0.0))
        made = info.get("work")
        if made is not None and (self.best is None or made["score"] > self.best.score):
            self.best = Work(**made, turn=len(self.measures))


def episode_of(info: dict[str, Any]) -> Episode:
    """The episode's record from the ``info`` of its last step."""
    episode = info["episode"]
    return Episode(float(episode["r"]), int(episode["l"]), bool(episode["success"]))


def split_finished(
    streams: Sequence[Sequence[Turn]],
) -> tuple[list[tuple[Turn, ...]], list[tuple[Turn, ...]]]:
    """Split streams behind their last ended episode: (finished turns, turns that wait)."""
    finished, waiting = [], []
    for stream in streams:
        ends = [i + 1 for i, turn in enumerate(stream) if turn.terminated or turn.truncated]
        cut = ends[-1] if ends else 0
        finished.append(tuple(stream[:cut]))
        waiting.append(tuple(stream[cut:]))
    return finished, waiting
