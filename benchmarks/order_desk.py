"""A world whose prompts never repeat: a cook is handed slip after slip, each written at random.

It exists to measure what is left of our savings where text does not come back. A slip has about
ninety tokens of kitchen talk, drawn anew for every turn, so that two alike are all but impossible;
nine actions are offered at every turn, always the same. The last sentence names a food, and the
action that gets it is paid 1. Prompts begin alike for a few tokens only.
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
    """Twelve slips make an episode; it succeeds when half of them were understood."""

    def __init__(self, slips: int = 12, sentences: int = 9) -> None:
        self.slips, self.sentences = slips, sentences
        characters = string.ascii_letters + " .,"
        self.observation_space = Text(max_length=100 * (sentences + 1), charset=characters)
        self.action_space = Text(max_length=64, charset=characters)
        self.running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start with a new slip."""
        super().reset(seed=seed)
        self.turns, self.understood, self.running = 0, 0, True
        return self._write(), {"admissible_actions": ACTIONS}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge the action and hand over the next slip."""
        if not self.running:
            raise ResetNeeded("the desk has no episode under way: call reset() before step()")
        reward = float(action == f"get the {self.wanted}")
        self.turns, self.understood = self.turns + 1, self.understood + int(reward)
        over = self.turns == self.slips
        self.running = not over
        info: dict[str, Any] = {"admissible_actions": ACTIONS}
        if action not in ACTIONS:
            info["invalid_action"] = action
        if over:
            success = 2 * self.understood >= self.slips
            info["episode"] = {"r": float(self.understood), "l": self.turns, "success": success}
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
