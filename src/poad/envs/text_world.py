"""The base of poad's own worlds: `reset` and `step` around pure functions over states."""

import string
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from poad.errors import ConfigError

CHARACTERS: Final = string.ascii_letters + " .,"

State = TypeVar("State")


class View(NamedTuple):
    """The text of one state."""

    prompt: str
    actions: tuple[str, ...]
    """The offered actions, in slot order."""


class Outcome(NamedTuple, Generic[State]):
    """The result of one action."""

    state: State
    rewards: tuple[float, ...]
    """One reward per primitive step."""
    reward: float
    """The reward of the action as a whole."""
    success: bool
    """True if the goal was reached, which ends the episode."""


class TextWorld(gymnasium.Env[str, str], Generic[State]):
    """A deterministic world made of pure functions over states.

    Args:
        start: the state after every reset, for every seed.
        view: maps a state to its prompt and actions.
        act: carries out a string in a state. It accepts every string.
        observe: maps a state to the agent's observation as numbers.
        discount: the discount per primitive step for the return in `info["episode"]`.
        max_steps: the limit in primitive steps. The action that exceeds it is still completed.
        offered: True to offer the actions of a view; False to let the agent write freely.

    Raises:
        ConfigError: `max_steps` is below 1.
    """

    def __init__(
        self,
        *,
        start: State,
        view: Callable[[State], View],
        act: Callable[[State, str], Outcome[State]],
        observe: Callable[[State], Sequence[int]],
        discount: float,
        max_steps: int,
        offered: bool = True,
    ) -> None:
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, got {max_steps}.")
        self.max_steps = max_steps
        self.observation_space = Text(max_length=512, charset=CHARACTERS)
        self.action_space = Text(max_length=64, charset=CHARACTERS)
        self.state = start
        """The hidden state, for tests."""
        self._start, self._discount = start, discount
        self._view, self._act, self._observe = view, act, observe
        self._running, self._offered = False, offered

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode, in the same state for every seed."""
        super().reset(seed=seed)
        self.state = self._start
        self._running = True
        self._steps, self._return, self._factor = 0, 0.0, 1.0
        prompt, actions = self._view(self.state)
        return prompt, {"admissible_actions": actions} if self._offered else {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out one action. If it is not offered, `info["invalid_action"]` names it."""
        if not self._running:
            raise ResetNeeded("No episode is running; call reset() before step().")
        info: dict[str, Any] = {}
        if self._offered and action not in self._view(self.state).actions:
            info["invalid_action"] = action

        self.state, rewards, reward, success = self._act(self.state, action)
        self._steps += len(rewards)
        for paid in rewards:
            self._return += self._factor * paid
            self._factor *= self._discount
        truncated = self._steps >= self.max_steps and not success
        self._running = not (success or truncated)

        prompt, actions = self._view(self.state)
        info |= {"admissible_actions": actions} if self._offered else {}
        info["duration"] = len(rewards)
        if not self._running:
            info["episode"] = {"r": self._return, "l": self._steps, "success": success}
        return prompt, reward, success, truncated, info

    def numeric_observation(self) -> list[int]:
        """Give the agent's observation as whole numbers; the world's manual lists them."""
        return list(self._observe(self.state))
