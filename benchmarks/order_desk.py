"""A world whose prompts practically never repeat: a cook reads one random order slip after another.

It measures our savings where text does not repeat. A slip has about ninety tokens of random
sentences about a kitchen, and two slips share a prefix of a few tokens at most. The same nine
actions are offered at every turn. The last sentence names a food, and the action that gets this
food has the reward 1.
"""

from __future__ import annotations

import string
from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

WORLD = "benchmarks/OrderDesk-v0"
FOODS = ("tomato", "lettuce", "onion")
PLACES = ("the first board", "the second board", "the bowl", "the empty bowl", "the dish")
STATES = ("raw", "chopped", "only chopped", "only raw")
ACTIONS = (
    *(f"get the {food}" for food in FOODS),
    *(f"chop the {food}" for food in FOODS),
    "go to the first board",
    "go to the second board",
    "deliver the dish",
)


class OrderDesk(gym.Env[str, str]):
    """An episode has twelve slips. It succeeds if half of the actions were right."""

    def __init__(self, slips: int = 12, sentences: int = 9) -> None:
        self.slips, self.sentences = slips, sentences
        characters = string.ascii_letters + " .,"
        self.observation_space = Text(max_length=100 * (sentences + 1), charset=characters)
        self.action_space = Text(max_length=64, charset=characters)
        self.running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode with a new slip."""
        super().reset(seed=seed)
        self.turns, self.right, self.running = 0, 0, True
        return self._write(), {"admissible_actions": ACTIONS}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Reward the action and show the next slip."""
        if not self.running:
            raise ResetNeeded("No episode is running; call reset() before step().")
        reward = float(action == f"get the {self.wanted}")
        self.turns, self.right = self.turns + 1, self.right + int(reward)
        over = self.turns == self.slips
        self.running = not over
        info: dict[str, Any] = {"admissible_actions": ACTIONS}
        if action not in ACTIONS:
            info["invalid_action"] = action
        if over:
            success = 2 * self.right >= self.slips
            info["episode"] = {"r": float(self.right), "l": self.turns, "success": success}
        return self._write(), reward, over, False, info

    def _write(self) -> str:
        def one_of(words: tuple[str, ...]) -> str:
            return words[int(self.np_random.integers(len(words)))]

        sentences = [
            f"{one_of(PLACES).capitalize()} holds {one_of(STATES)} {one_of(FOODS)} and "
            f"{one_of(STATES)} {one_of(FOODS)}."
            for _ in range(self.sentences)
        ]
        self.wanted = one_of(FOODS)
        return " ".join([*sentences, f"You hold nothing and should get {self.wanted}. Next, you"])


if WORLD not in gym.registry:
    gym.register(WORLD, entry_point=f"{__name__}:OrderDesk", order_enforce=False)
