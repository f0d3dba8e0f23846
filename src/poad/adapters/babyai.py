"""BabyAI's levels in words, as in GLAM."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import gymnasium
from numpy.typing import NDArray

from poad.adapters.packages import needed
from poad.envs import TextAdapter
from poad.errors import ConfigError, did_you_mean

ACTIONS: Final = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
"""The actions 0 to 5."""
SEEN: Final = 3
"""Observations in a prompt, with the actions between them."""
X, Y = 3, 6
"""Where the agent stands in its own picture. It looks towards smaller y."""
UNSEEN, EMPTY, WALL, DOOR = 0, 1, 2, 4
"""Kinds of cells that the description treats by themselves."""
_PRINTS: Final = "minigrid.envs.babyai.core.roomgrid_level"


class BabyAI(TextAdapter):
    """BabyAI's levels of minigrid in words: a robot in rooms of doors, keys, balls and boxes.

    This is the testbed of GLAM (Carta et al., arXiv 2302.02662). `babyai:LEVEL` takes the name of a
    level, such as `BabyAI-GoToRedBallNoDists-v0` or `BabyAI-PickupLoc-v0`. The seed decides the
    mission and where everything is.

    ### Observation
    The prompt is that of GLAM: the possible actions, the goal, and the last three observations with
    the actions between them. An observation lists what the robot carries, the walls ahead and
    beside it, and then all things in view, from left to right.

    ### Rewards
    A finished mission pays `20 * (1 - 0.9 * t / limit)` after `t` actions, and everything else
    pays nothing.

    ### Arguments
    * `parity`: describe open doors in the words of GLAM's program, which says "a open door"
      because of a slip. The default is "an open door".
    * `max_steps`: cut episodes off after so many actions. By default the level's own limit holds.
    """

    def __init__(
        self, level: str, /, *, parity: bool = False, max_steps: int | None = None
    ) -> None:
        super().__init__(max_steps)
        needed("minigrid", "babyai", "'poad[minigrid]'")  # importing it registers the levels
        self._core = needed("minigrid.core.constants", "babyai", "'poad[minigrid]'")
        # Levels that draw their missions print each draw that they reject.
        vars(needed(_PRINTS, "babyai", "'poad[minigrid]'"))["print"] = lambda *_: None
        levels = [name for name in gymnasium.registry if name.startswith("BabyAI-")]
        if level not in levels:
            raise ConfigError(
                f"minigrid has no level {level!r}. {did_you_mean(level, levels, 3)}"
                f"There are {len(levels)} levels, such as babyai:BabyAI-GoToRedBallNoDists-v0."
            )
        self.env: gymnasium.Env[Any, Any] = gymnasium.make(level, disable_env_checker=True)
        self._article = "a" if parity else "an"
        self._seen: deque[str] = deque(maxlen=SEEN)
        self._done: deque[str] = deque(maxlen=SEEN - 1)

    @property
    def inner(self) -> object:
        """The level."""
        return self.env.unwrapped

    def begin(self, seed: int) -> tuple[str, tuple[str, ...]]:
        """Build the rooms of a seed."""
        observation, _ = self.env.reset(seed=seed)
        self._seen.clear()
        self._done.clear()
        return self._told(observation), ACTIONS

    def act(self, action: str) -> tuple[str, tuple[str, ...], float, bool, bool]:
        """Carry out one of `ACTIONS`."""
        observation, paid, terminated, self.truncated, _ = self.env.step(ACTIONS.index(action))
        self._done.append(action)
        reward = 20 * float(paid)
        return self._told(observation), ACTIONS, reward, terminated, reward > 0

    def close(self) -> None:
        """Close the level."""
        self.env.close()

    def _told(self, observation: dict[str, Any]) -> str:
        """Write GLAM's prompt."""
        self.goal = observation["mission"]
        self._seen.append(", ".join(self._things(observation["image"])))
        lines = [f"Possible action of the agent: {', '.join(ACTIONS)}"]
        lines.append(f"Goal of the agent: {self.goal}")
        for i, seen in enumerate(self._seen):
            lines.append(f"Observation {i}: {seen}".rstrip())
            lines.append(f"Action {i}: {self._done[i]}" if i < len(self._done) else f"Action {i}:")
        return "\n".join(lines)

    def _things(self, image: NDArray[Any]) -> Iterator[str]:
        """Describe a picture [7, 7, 3] of kinds, colours and states: what is carried, then walls,
        then everything else by x and y.
        """
        core = self._core
        kind, colour, _ = image[X, Y]
        if kind not in (UNSEEN, EMPTY):
            yield f"You carry a {core.IDX_TO_COLOR[colour]} {core.IDX_TO_OBJECT[kind]}"
        for dx, dy, where in ((0, -1, "forward"), (-1, 0, "left"), (1, 0, "right")):
            steps = _steps_to_wall(image, dx, dy)
            if steps:
                yield f"You see a wall {_counted(steps)} {where}"
        for x in range(image.shape[0]):
            for y in range(image.shape[1]):
                kind, colour, state = image[x, y]
                if kind in (UNSEEN, EMPTY, WALL) or (x, y) == (X, Y):
                    continue
                thing = f"{core.IDX_TO_COLOR[colour]} {core.IDX_TO_OBJECT[kind]}"
                article = "a"
                if kind == DOOR:
                    is_open = state == core.STATE_TO_IDX["open"]
                    article = self._article if is_open else "a"
                    name = next(k for k, v in core.STATE_TO_IDX.items() if v == state)
                    thing = f"{name} {thing}"
                yield f"You see {article} {thing} {_place(x - X, Y - y)}"


def _steps_to_wall(image: NDArray[Any], dx: int, dy: int) -> int:
    """Count the steps to the first thing in a direction if it is a wall; 0 if it is not."""
    x, y, steps = X + dx, Y + dy, 1
    while 0 <= x < image.shape[0] and 0 <= y < image.shape[1]:
        if image[x, y, 0] not in (UNSEEN, EMPTY):
            return steps if image[x, y, 0] == WALL else 0
        x, y, steps = x + dx, y + dy, steps + 1
    return 0


def _place(right: int, forward: int) -> str:
    """Say where something is: steps to the right (negative: left), then steps forward."""
    sideways = f"{_counted(abs(right))} {'right' if right > 0 else 'left'}" if right else ""
    ahead = f"{_counted(forward)} forward" if forward else ""
    return " and ".join(filter(None, (sideways, ahead)))


def _counted(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"
