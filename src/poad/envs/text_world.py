"""What our worlds share: the turn-taking around pure rules, from `reset` to `info["episode"]`."""

import string
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

CHARACTERS: Final = string.ascii_letters + " .,"

State = TypeVar("State")


class View(NamedTuple):
    """The words for one state."""

    prompt: str
    actions: tuple[str, ...]
    """The offered actions, in slot order."""


class Outcome(NamedTuple, Generic[State]):
    """What one action led to."""

    state: State
    rewards: tuple[float, ...]
    """One reward per primitive step."""
    reward: float
    """The reward of the action as a whole."""
    success: bool
    """Whether the goal was reached, which ends the episode."""


class TextWorld(gymnasium.Env[str, str], Generic[State]):
    """A world made of pure functions over states; a subclass only names them and documents itself.

    Args:
        start: the state after every reset. A seed changes nothing.
        view: what the agent reads of a state.
        act: what a string does in a state. Any string does something.
        observe: what the agent perceives of a state, as numbers.
        discount: per primitive step, within the return of `info["episode"]`.
        max_steps: the limit in primitive steps. An action under way is carried out to its end.
        offered: whether the actions of a view are offered; if not, the agent writes freely.
    """

    def __init__(
        self,
        *,
        start: State,
        view: Callable[[State], View],
        act: Callable[[State, str], Outcome[State]],
        observe: Callable[[State], list[int]],
        discount: float,
        max_steps: int,
        offered: bool = True,
    ) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        self.max_steps = max_steps
        self.observation_space = Text(max_length=512, charset=CHARACTERS)
        self.action_space = Text(max_length=64, charset=CHARACTERS)
        self.state = start
        """The hidden state; only tests should look."""
        self._start, self._discount = start, discount
        self._view, self._act, self._observe = view, act, observe
        self._running, self._offered = False, offered

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode: always in the same state, whatever the seed."""
        super().reset(seed=seed)
        self.state = self._start
        self._running = True
        self._steps, self._return, self._factor = 0, 0.0, 1.0
        prompt, actions = self._view(self.state)
        return prompt, {"admissible_actions": actions} if self._offered else {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out one action; one that is not offered is named in `info["invalid_action"]`."""
        if not self._running:
            raise ResetNeeded("no episode is under way: call reset() before step()")
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
        """Give what the agent perceives as whole numbers, in the order that the rules fix."""
        return self._observe(self.state)
