"""What every text world must keep, as one function to run on yours."""

import math
import random
import sys
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Final, TypeAlias

import gymnasium
from gymnasium.error import ResetNeeded

from poad.envs.registry import make
from poad.errors import WorldError

World: TypeAlias = gymnasium.Env[str, str]
Turn: TypeAlias = tuple[Any, ...]
"""What must repeat exactly: action, prompt, reward, both flags, and the entries of `CONTRACT`."""

NOT_OFFERED: Final = "whistle at the moon"
"""A string that no world should offer."""
CONTRACT: Final = ("admissible_actions", "duration", "invalid_action", "episode")
"""The keys of `info` that every text world shares; the others are the world's own."""


def check_env(
    world: str | World | Callable[[], World],
    *,
    aliased: bool = False,
    episodes: int = 20,
    seed: int = 0,
    max_turns: int = 1000,
) -> tuple[str, ...]:
    """Play random episodes and raise one `WorldError` that lists every rule the world breaks.

    The rules: the same seed and actions give the same episode on two copies; prompts and offered
    actions lie in the spaces; offered actions are a tuple of distinct strings, never empty, and a
    function of the prompt (none given: the agent writes freely); rewards are finite floats;
    `duration` is a whole number from 1; terminated and truncated are never both true;
    `info["episode"]` comes with the end and only then; a string that is not offered is named, not
    an exception; before the first reset and after an end `step` raises ResetNeeded, so that a world
    never resets itself; torch is not imported.

    Args:
        world: a name for `poad.envs.make`, a function that opens a copy, or one open world, which
            is then compared with itself and is not tried before its first reset.
        aliased: allow the offered actions to depend on more than the prompt, and say so.
        episodes: how many episodes to play, with seeds `seed`, `seed + 1`, ...
        seed: the first episode's seed; also seeds the choice of actions.
        max_turns: where to leave an episode that does not end; at least one must end.

    Returns:
        What was found and allowed: with `aliased`, a line about the first prompt that came with
        more than one list of offered actions, if any did. Otherwise nothing.
    """
    torch_was_loaded = "torch" in sys.modules
    check, rng = _Check(aliased), random.Random(seed)
    if isinstance(world, gymnasium.Env):
        first = second = world
    else:
        first, second = (make(world) if isinstance(world, str) else world() for _ in range(2))
        check.refuses_to_step(first, "before the first reset")
    first.action_space.seed(seed)
    # Its extra reset also sets the copies apart, should anything carry over between episodes.
    check.accepts_any_string(second, seed)

    def choose(turn: int, info: dict[str, Any]) -> str | None:
        actions = info.get("admissible_actions")
        if actions is None and turn < max_turns:
            return first.action_space.sample()
        return rng.choice(actions) if actions and turn < max_turns else None

    for episode_seed in range(seed, seed + episodes):
        turns = check.play(first, episode_seed, choose)
        script = [*(turn[0] for turn in turns[1:]), None]
        again = check.play(second, episode_seed, lambda turn, _, script=script: script[turn])
        for pair in zip_longest(turns, again):
            check.expect("equal seed and actions give equal episodes", _same(*pair), pair)
    check.expect("episodes end", check.ended, f"none that did within {max_turns} turns")
    loaded = not torch_was_loaded and "torch" in sys.modules
    check.expect("a world does not import torch", not loaded, "torch in sys.modules")
    if not isinstance(world, gymnasium.Env):
        first.close()
        second.close()
    if check.findings:
        errors = (seen for seen in check.findings.values() if isinstance(seen, Exception))
        lines = (f"- {rule}; seen: {seen!r}" for rule, seen in check.findings.items())
        message = "\n".join(["This world breaks rules that every text world keeps:", *lines])
        raise WorldError(message, check.findings) from next(errors, None)
    return tuple(check.allowed[:1])


def _same(one: Any, other: Any) -> bool:
    """Whether two turns are equal; what cannot even be compared, such as arrays, is not."""
    try:
        return bool(one == other)
    except ValueError:
        return False


class _Check:
    """What was found so far; each method looks at a few rules."""

    def __init__(self, aliased: bool) -> None:
        self.findings: dict[str, object] = {}
        self.allowed: list[str] = []
        self.ended = False
        self._aliased = aliased
        self._offered: dict[str, object] = {}

    def expect(self, rule: str, holds: bool, seen: object) -> None:
        if not holds:
            self.findings.setdefault(rule, seen)

    def play(
        self, world: World, seed: int, choose: Callable[[int, dict[str, Any]], str | None]
    ) -> list[Turn]:
        """Play one episode, checking each turn, until it ends or `choose` gives no action."""
        turns: list[Turn] = []
        try:
            prompt, info = world.reset(seed=seed)
            action, reward, terminated, truncated = "", 0.0, False, False
            while True:
                contract = (info.get(key) for key in CONTRACT)
                turns.append((action, prompt, reward, terminated, truncated, *contract))
                ended = bool(terminated or truncated)
                self._reading(world, prompt, info, ended)
                self._outcome(reward, terminated, truncated, info)
                if ended:
                    self.ended = True
                    self.refuses_to_step(world, "after the end of an episode")
                    return turns
                chosen = choose(len(turns) - 1, info)
                if chosen is None:
                    return turns
                action = chosen
                prompt, reward, terminated, truncated, info = world.step(action)
        except Exception as error:
            self.expect("reset and step do not raise", False, error)
            return turns

    def accepts_any_string(self, world: World, seed: int) -> None:
        try:
            _, info = world.reset(seed=seed)
            named: object = world.step(NOT_OFFERED)[4].get("invalid_action")
            good = named == NOT_OFFERED or info.get("admissible_actions") is None
        except Exception as error:
            named, good = error, False
        rule = "a string that is not offered becomes info['invalid_action'], not an exception"
        self.expect(rule, good, named)

    def refuses_to_step(self, world: World, when: str) -> None:
        try:
            world.step(NOT_OFFERED)
            seen: object = "no exception"
        except (ResetNeeded, RuntimeError, AssertionError):
            return
        except Exception as error:
            seen = error
        self.expect(f"a step {when} raises ResetNeeded", False, seen)

    def _reading(self, world: World, prompt: str, info: dict[str, Any], ended: bool) -> None:
        self.expect("prompts lie in observation_space", prompt in world.observation_space, prompt)
        actions = info.get("admissible_actions")
        if actions is not None:
            distinct = isinstance(actions, tuple) and 0 < len(actions) == len(set(actions))
            self.expect("offered actions are a non-empty tuple without repeats", distinct, actions)
            inside = all(action in world.action_space for action in actions)
            self.expect("offered actions lie in action_space", inside, actions)
        if ended:  # nothing needs to be offered any more
            return
        before = self._offered.setdefault(prompt, actions)
        if before == actions:
            return
        seen = prompt, before, actions
        if self._aliased:
            rule = "allowed by aliased=True: offered actions that are no function of the prompt"
            self.allowed.append(f"{rule}; seen: {seen!r}")
        else:
            rule = "offered actions are a function of the prompt, unless aliased=True"
            self.expect(rule, False, seen)

    def _outcome(
        self, reward: object, terminated: object, truncated: object, info: dict[str, Any]
    ) -> None:
        finite = isinstance(reward, float) and math.isfinite(reward)
        self.expect("rewards are finite floats", finite, reward)
        flags = terminated, truncated
        good = all(isinstance(flag, bool) for flag in flags) and flags != (True, True)
        self.expect("terminated and truncated are bools, never both True", good, flags)
        duration = info.get("duration", 1)
        good = isinstance(duration, int) and duration >= 1
        self.expect("info['duration'] is an int from 1", good, duration)
        good = "invalid_action" not in info or "admissible_actions" not in info
        self.expect("offered actions are valid", good, info.get("invalid_action"))
        episode = info.get("episode")
        if any(flags):
            rule = "the end comes with info['episode']: r (float), l (int), success (bool)"
            fields = {"r": float, "l": int, "success": bool}
            whole = isinstance(episode, dict) and all(
                isinstance(episode.get(key), kind) for key, kind in fields.items()
            )
            self.expect(rule, whole, episode)
        else:
            self.expect("info['episode'] comes only with the end", episode is None, episode)
