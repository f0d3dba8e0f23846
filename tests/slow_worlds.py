"""Worlds that take their time, or fail, for tests of workers; other processes can import them."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
import warnings
from functools import partial
from typing import Any

import gymnasium
import tiny_worlds

from poad.envs import make
from poad.errors import ConfigError


class Slow(gymnasium.Wrapper[str, str, str, str]):
    """Each step takes a while that the seed decides, of very different lengths."""

    def __init__(self, env: gymnasium.Env[str, str], pauses: tuple[float, ...]) -> None:
        super().__init__(env)
        self._pauses = pauses

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._random = random.Random(seed)
        time.sleep(self._random.choice(self._pauses) / 4)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: str) -> Any:
        time.sleep(self._random.choice(self._pauses))
        return self.env.step(action)


def slow(world: str, pauses: tuple[float, ...] = (0.0, 0.001, 0.02)) -> partial[Any]:
    """What makes a slow copy of a world of `tiny_worlds`."""
    return partial(make_slow, tiny_worlds.name(world), pauses)


def make_slow(name: str, pauses: tuple[float, ...]) -> gymnasium.Env[str, str]:
    return Slow(make(name), pauses)


FAULTS = {
    "raise": "RuntimeError: the lamp broke",
    "exit": "SystemExit",
    "nan": "reward is nan",
    "infinite": "reward is inf",
    "words": "reward is 'much'",
    "nothing": "observation is None",
    "none": "offers no action",
    "twice": "offered twice",
    "blank": "is blank",
    "number": "offered action is 3",
    "bare": "must be a tuple of strings",
    "duration": "info['duration'] is 0",
    "shape": "step returned",
}
"""Faults of a world, and what is told of each."""


class Faulty(gymnasium.Wrapper[str, str, str, str]):
    """Fails at a turn of some episodes.

    Args:
        fault: how: one of `FAULTS`, or "hang", "die".
        every: the episodes with the seed 1, and every so many from there.
        turn: at which action, from 1; 0 at the reset.
    """

    mended = False
    """Whether the world has been mended, for all copies in this process."""

    def __init__(self, env: gymnasium.Env[str, str], fault: str, every: int, turn: int) -> None:
        super().__init__(env)
        self._fault, self._every, self._when = fault, every, turn

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self._turn, self._bad = 0, (seed - 1) % self._every == 0 and not Faulty.mended
        answer = self.env.reset(seed=seed, options=options)
        return self._spoil(answer) if self._bad and self._when == 0 else answer

    def step(self, action: str) -> Any:
        self._turn += 1
        if self._bad and self._turn == self._when and self._fault in ("die", "hang"):
            self._spoil(())
        answer = self.env.step(action)
        return self._spoil(answer) if self._bad and self._turn == self._when else answer

    def _spoil(self, answer: Any) -> Any:
        fault, info = self._fault, dict(answer[-1]) if answer else {}
        if fault == "hang":
            threading.Event().wait(60)
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise":
            raise RuntimeError("the lamp broke")
        if fault == "exit":
            raise SystemExit(3)
        rewards = {"nan": math.nan, "infinite": math.inf, "words": "much"}
        offers: dict[str, Any] = {
            "none": (),
            "twice": ("walk on", "walk on"),
            "blank": ("walk on", " "),
            "number": ("walk on", 3),
            "bare": "walk on",
        }
        if fault == "shape":
            return answer[:2] if len(answer) > 2 else answer[:1]
        if fault in offers:
            info["admissible_actions"] = offers[fault]
        if fault == "duration":
            info["duration"] = 0
        prompt = None if fault == "nothing" else answer[0]
        if len(answer) == 2:
            return prompt, info
        return prompt, rewards.get(fault, answer[1]), *answer[2:4], info


def make_faulty(name: str, fault: str, every: int, turn: int) -> gymnasium.Env[str, str]:
    return Faulty(make(name), fault, every, turn)


def faulty(fault: str, *, world: str = "Novel", every: int = 4, turn: int = 2) -> partial[Any]:
    """What makes a copy of a world of `tiny_worlds` that fails."""
    return partial(make_faulty, tiny_worlds.name(world), fault, every, turn)


class Stubborn(gymnasium.Wrapper[str, str, str, str]):
    """Uses the random numbers of its process, and knows its thread and process."""

    step_discount = 0.5

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        random.seed(seed)
        prompt, info = self.env.reset(seed=seed)
        here = f"{os.getpid()}-{threading.get_ident()}"
        return f"{prompt} {random.random()}", info | {"notes": (here,)}

    def step(self, action: str) -> Any:
        prompt, *rest, info = self.env.step(action)
        info["notes"] = (f"{os.getpid()}-{threading.get_ident()}",)
        return f"{prompt} {random.random()}", *rest, info

    def memory(self) -> Any:
        return self.unwrapped.__dict__.get("kept", {"nothing": None})

    def load_memory(self, memory: Any) -> None:
        self.unwrapped.__dict__["kept"] = memory


def stubborn() -> gymnasium.Env[str, str]:
    return Stubborn(make(tiny_worlds.name("Chain")))


class Remarking(gymnasium.Wrapper[str, str, str, str]):
    """Warns of the weather in each step."""

    def step(self, action: str) -> Any:
        warnings.warn("it rains", UserWarning, stacklevel=2)
        return self.env.step(action)


def remarking() -> gymnasium.Env[str, str]:
    return Remarking(make(tiny_worlds.name("Chain")))


def unopenable() -> gymnasium.Env[str, str]:
    raise ConfigError("There is no lamp oil.")


def _register() -> None:
    for world, make_one in {"Slow": make_slow, "Faulty": make_faulty}.items():
        if f"tiny/{world}-v0" not in gymnasium.registry:
            gymnasium.register(f"tiny/{world}-v0", entry_point=make_one)


_register()
