"""Small deterministic text worlds, one for each thing that a learner must get right.

`poad.envs.make("tiny_worlds:tiny/Chain-v0")` opens one. Each is a row of `WORLDS`: what it shows,
what it offers, and what an action does. `settings` describes a small run in one.
"""

from __future__ import annotations

import math
import os
import signal
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from poad.config import Config, from_dict
from poad.envs.registry import FreeText
from poad.trie import Form


@dataclass(frozen=True)
class State:
    seed: int
    turn: int = 0
    place: int = 0


@dataclass(frozen=True)
class Outcome:
    place: int
    reward: float = 0.0
    over: bool = False
    duration: int = 1


@dataclass(frozen=True)
class Rules:
    """A world: a prompt, the offered actions (none: write freely), and what an action does."""

    prompt: Callable[[State], str]
    offer: Callable[[State], tuple[str, ...] | Form | None]
    act: Callable[[State, str], Outcome]
    limit: int = 6
    """Turns until truncation."""


class TinyWorld(gymnasium.Env[str, str]):
    """Plays by `Rules`. An action that is not offered passes the turn."""

    def __init__(self, rules: Rules) -> None:
        text = Text(max_length=800, min_length=0, charset=string.printable)
        self.observation_space = self.action_space = text
        self.rules = rules
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = State(seed or 0)
        self._return, self._steps = 0.0, 0
        return self._look(self._state)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        state = self._state
        if state is None:
            raise ResetNeeded("this episode is over")
        offered = self.rules.offer(state)
        valid = offered is None or action in offered
        done = self.rules.act(state, action) if valid else Outcome(state.place)
        after = replace(state, turn=state.turn + 1, place=done.place)
        truncated = after.turn >= self.rules.limit and not done.over
        self._return += done.reward
        self._steps += done.duration
        self._state = None if done.over or truncated else after
        prompt, info = self._look(after)
        info["duration"] = done.duration
        if not valid:
            info["invalid_action"] = action
        if self._state is None:
            success = done.over and self._return > 0
            info["episode"] = {"r": self._return, "l": self._steps, "success": success}
        return prompt, done.reward, done.over, truncated, info

    def _look(self, state: State) -> tuple[str, dict[str, Any]]:
        offered = self.rules.offer(state)
        info = {} if offered is None else {"admissible_actions": offered}
        return self.rules.prompt(state), info


GOAL = 3


def walk(forward: str, duration: int = 1) -> Callable[[State, str], Outcome]:
    """Reaching the goal pays 1; moving back or staying pays nothing."""

    def act(state: State, action: str) -> Outcome:
        place = state.place + 1 if action == forward else max(0, state.place - 1)
        home = place == GOAL
        return Outcome(place, float(home), home, duration if action == forward else 1)

    return act


def at_place(state: State) -> str:
    return f"You stand at place {state.place}. What now?"


def draw(state: State, action: str) -> Outcome:
    """A prize that the seed decides."""
    luck = (state.seed * 7919 + 13 * state.turn) % 5 - 2.0
    return Outcome(state.place, luck if "red" in action else -0.5 * luck, state.turn == 1)


def scribble(state: State, action: str) -> Outcome:
    return Outcome(state.place, float(action.count("e")) - 0.1 * len(action), state.turn == 2)


def kill_us(state: State, action: str) -> Outcome:
    """As a system does that has run out of memory, not at once."""
    if state.turn == 2 and state.seed % 40 == 39:
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(0)


def fall_over(state: State, action: str) -> Outcome:
    if state.turn == 2:
        raise ZeroDivisionError("the floor gave way")
    return Outcome(state.place)


BOXES = ("take the red box", "take the blue box")
TWO = ("walk on", "stay here")
MANY = Form((("take",), *((f" a red {i}", f" a blue {i}") for i in range(20))))
WORLDS: dict[str, Rules] = {
    # Optimal values are powers of γ: γ^(2·(3 − place) − 2)·1 at each place, two steps per walk.
    "Chain": Rules(at_place, lambda s: TWO, walk("walk on", duration=2)),
    "Lottery": Rules(lambda s: f"Draw {s.turn}.", lambda s: BOXES, draw),
    "Diary": Rules(lambda s: f"Page {s.turn}: write.", lambda s: None, scribble),
    # Like Diary, but every episode is cut off by the limit.
    "Journal": Rules(
        lambda s: f"Page {s.turn}: write.",
        lambda s: None,
        lambda s, a: replace(scribble(s, a), over=False),
        limit=3,
    ),
    "Prefixes": Rules(
        at_place,
        lambda s: ("go", "go left", "go left now"),
        lambda s, a: Outcome(s.place + 1, len(a) / 10 - 0.5, s.place == 2),
    ),
    # Every other turn offers a single action.
    "Corridor": Rules(
        at_place,
        lambda s: TWO if s.place % 2 else ("walk on",),
        walk("walk on"),
    ),
    "Rail": Rules(at_place, lambda s: ("walk on",), walk("walk on")),
    "Novel": Rules(
        lambda s: f"Day {s.turn} of year {s.seed}.",
        lambda s: (*TWO, *BOXES),
        lambda s, a: replace(draw(s, a), over=False),
        limit=4,
    ),
    # All actions begin alike, so the first token is no choice; good days and bad ones alternate.
    "Alike": Rules(
        at_place,
        lambda s: ("step left", "step right"),
        lambda s, a: Outcome(1 - s.place, 1.0 - 2.0 * s.place),
        limit=50,
    ),
    # The same prompt, other actions.
    "Aliased": Rules(
        lambda s: "What now?",
        lambda s: ("walk on", f"wait {s.turn} days"),
        lambda s, a: Outcome(0, 0.1 * s.turn, s.turn == 3),
    ),
    # More actions than anyone could list; red ones are good, one box after another.
    "Forms": Rules(
        at_place,
        lambda s: MANY,
        lambda s, a: Outcome(s.place, a.count("red") / 20 - 0.5, s.turn == 2),
    ),
    # Offers actions at first and none later.
    "Mixed": Rules(at_place, lambda s: TWO if s.turn < 2 else None, lambda s, a: Outcome(s.place)),
    "Quest": Rules(
        lambda s: f"You are in room {s.turn}. It is large. {'A table and a chair. ' * 20}What now?",
        lambda s: TWO,
        lambda s, a: Outcome(s.place, float(a == "walk on"), s.turn == 5),
    ),
    "Broken": Rules(at_place, lambda s: TWO, fall_over),
    "Deadly": Rules(at_place, lambda s: TWO, kill_us),
    "Priceless": Rules(at_place, lambda s: TWO, lambda s, a: Outcome(0, math.nan)),
}


class MixedWorld(TinyWorld):
    """Means to offer actions at times only, and says so."""

    free_text = FreeText()


class QuestWorld(TinyWorld):
    """Shows more than a small model reads, and names its goal, which changes on the way."""

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        prompt, info = super().reset(**kwargs)
        return prompt, info | {"goal": "Find the hat."}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        if self._state is not None and self._state.turn == 2:
            info["goal"] = "Find the cat."
        return *rest, info  # pyright: ignore[reportReturnType]


class SilentWorld(TinyWorld):
    """Ends without saying how the episode went."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        info.pop("episode", None)
        return *rest, info  # pyright: ignore[reportReturnType]


class WorkshopWorld(TinyWorld):
    """Measures and collects what is written, and wants to know it beforehand."""

    free_text = FreeText(stop=(".",), max_tokens=5)

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self.prepared: list[str] = []

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        prompt, info = super().reset(**kwargs)
        return prompt, info | {"notes": ("one lamp is broken",)}

    def prepare(self, action: str) -> None:
        self.prepared.append(action)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert action in self.prepared or not self.prepared
        *rest, info = super().step(action)
        info["cpu_seconds"] = 0.25
        info["measures"] = {"long": float(len(action) > 3)}
        if action:
            info["measures"]["letters"] = len(action)
            info["work"] = {"file": "best.txt", "text": action, "score": len(action) + 0.0}
            info["work"]["deviation"] = 0.5
        return *rest, info  # pyright: ignore[reportReturnType]


def name(world: str) -> str:
    """What configurations call a world of this file."""
    return f"tiny_worlds:tiny/{world}-v0"


def settings(world: str, **changes: Any) -> Config:
    """A small run in a world of this file, or in any other by its whole name.

    `changes` are as in a configuration file: `settings("Chain", credit={"method": "ntpo"})`.
    """
    small = {
        "env": world if "/" in world else name(world),
        "streams": 3,
        "horizon": 5,
        "steps": 60,
        "model": {"name": "tiny-kitchen", "device": "cpu"},
        "critic": {"hidden": [16]},
        "ppo": {"epochs": 2},
        "acting": {"max_action_tokens": 6},
        "eval": {"episodes": 6, "streams": 4},
    }
    return from_dict(changes, from_dict(small))


def _register() -> None:
    rows: dict[str, tuple[Any, Rules]] = {w: (TinyWorld, rules) for w, rules in WORLDS.items()}
    rows["Mixed"] = (MixedWorld, WORLDS["Mixed"])
    rows["Quest"] = (QuestWorld, WORLDS["Quest"])
    rows["Silent"] = (SilentWorld, WORLDS["Chain"])
    rows["Workshop"] = (WorkshopWorld, WORLDS["Diary"])
    for world, (kind, rules) in rows.items():
        if f"tiny/{world}-v0" not in gymnasium.registry:
            gymnasium.register(f"tiny/{world}-v0", entry_point=kind, kwargs={"rules": rules})


_register()
