"""A text world of your own.

In this directory: poad train --env my_world:Doors-v0 --model.name tiny-kitchen
"""

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

DOORS = ("red", "green", "blue")
ACTIONS = tuple(f"open the {door} door" for door in DOORS)


class Doors(gymnasium.Env[str, str]):
    """The seed hides a prize behind one of three doors, and the prompt names the door."""

    observation_space = Text(80, charset="abcdefghijklmnopqrstuvwxyzTN. ")
    action_space = Text(80, charset="abcdefghijklmnopqrstuvwxyz ")
    prize = None  # no episode is running

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.prize = DOORS[self.np_random.integers(3)]
        return f"The prize is behind the {self.prize} door. Now", {"admissible_actions": ACTIONS}

    def step(self, action):
        if self.prize is None:
            raise ResetNeeded("call reset() first")
        won, self.prize = action == f"open the {self.prize} door", None
        episode = {"r": float(won), "l": 1, "success": won}
        info = {"admissible_actions": ACTIONS, "episode": episode}
        if action not in ACTIONS:
            info["invalid_action"] = action
        return "That was it.", float(won), True, False, info


gymnasium.register("Doors-v0", entry_point=f"{__name__}:Doors")
