"""The kitchen as a Gymnasium environment."""

import string
from typing import Any, Final, Literal

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from poad.envs.kitchen import rules, text

KITCHENS: Final = {
    "tomato_salad": rules.TOMATO_SALAD,
    "tomato_lettuce_salad": rules.TOMATO_LETTUCE_SALAD,
}
CHARACTERS: Final = string.ascii_letters + " .,"


class KitchenEnv(gymnasium.Env[str, str]):
    """A cook prepares a salad in a small kitchen, one spoken macro-action at a time.

    ## Description
    One cook works on a 7x7 grid (5x5 floor inside a ring of counter) that holds a bowl, a cutting
    board or two, a delivery counter and raw food. The cook must chop what the recipe names, put
    it into the bowl, and deliver the bowl. `poad/TomatoSalad-v0` has one food and one board, and
    wants chopped tomato; `poad/TomatoLettuceSalad-v0` also has a lettuce, an onion and a second
    board, and wants chopped tomato and lettuce, and no onion. The world is deterministic: a seed
    changes nothing. These are the two Overcooked tasks of TWOSOME (arXiv 2401.14151) and POAD
    (arXiv 2405.15821), with our own wording.

    ## Actions
    A string out of `info["admissible_actions"]`, always one per macro-action and in this order:
    get each food, get the bowl, go to each board, deliver, chop. The wording follows the situation
    ("get the tomato" becomes "add the tomato to the bowl" while the cook holds the bowl). A
    macro-action walks a shortest path and takes 1 to 10 primitive steps. Any other string is one
    idle primitive step and is named in `info["invalid_action"]`.

    ## Observation
    A short English prompt that ends so that an action reads on after a space. It tells which items
    lie in view at their home, what is on each board in view, at which board the cook stands, and
    what the cook holds. The view reaches two cells, so the kitchen is only partly observed and
    there is no memory: 21 prompts for 24 states in the tomato salad, 787 for 1301 in the other.
    `env.unwrapped.numeric_observation()` gives the view as 18 or 26 whole numbers.

    ## Rewards
    Each primitive step -0.001; chopping a food of the recipe +0.2; the right dish +1; delivering
    anything else -0.1. The reward of a macro-action discounts its primitive steps by .99 each.

    A wrong delivery sends the food home raw, so that it can be chopped for +0.2 again. A learner
    that discounts by .99 per *macro-action* therefore does best to chop and throw away for ever.
    With .99 per *primitive step*, that is .99 ** `info["duration"]` per turn, it does best to
    deliver at once, so this is the discount to use.

    ## Episode end
    `terminated` when the right dish is delivered. `truncated` when `max_steps` primitive steps have
    passed: the macro-action under way is carried out to its end and paid in full, and if it
    delivers the right dish, the episode is terminated instead. Acting after the end, or before the
    first reset, raises `gymnasium.error.ResetNeeded`.

    `info` holds `"admissible_actions"`; after a step also `"duration"`, the primitive steps it
    took; and at the end of an episode `"episode"`: `r`, the return discounted by .99 per primitive
    step, `l`, the primitive steps, and `success`. Gymnasium's `RecordEpisodeStatistics` writes to
    the same key, so give it another: `RecordEpisodeStatistics(env, stats_key="statistics")`.

    ## Arguments
    * `max_steps`: the limit in primitive steps, 200 by default.
    * `task`: "tomato_salad" or "tomato_lettuce_salad"; the registered names choose it.

    ## Version history
    * v0: first version.
    """

    step_discount: Final = rules.DISCOUNT
    """The world's own discount per primitive step, inside the reward of a macro-action."""

    def __init__(
        self,
        task: Literal["tomato_salad", "tomato_lettuce_salad"] = "tomato_salad",
        max_steps: int = 200,
    ) -> None:
        if task not in KITCHENS:
            raise ValueError(f"unknown kitchen task {task!r}; known: {', '.join(KITCHENS)}")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        self.kitchen = KITCHENS[task]
        self.max_steps = max_steps
        self.observation_space = Text(max_length=256, charset=CHARACTERS)
        self.action_space = Text(max_length=64, charset=CHARACTERS)
        self.state = self.kitchen.start
        """The hidden state; only tests should look."""
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode: always in the same state, whatever the seed."""
        super().reset(seed=seed)
        self.state = self.kitchen.start
        self._running = True
        self._steps, self._return, self._factor = 0, 0.0, 1.0
        prompt, actions = text.view(self.kitchen, self.state)
        return prompt, {"admissible_actions": actions}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out one macro-action, or idle for one primitive step if it is not offered."""
        if not self._running:
            raise ResetNeeded("the kitchen has no episode under way: call reset() before step()")
        offered = text.view(self.kitchen, self.state).actions
        info: dict[str, Any] = {}
        if action in offered:
            done = rules.transition(self.kitchen, self.state, offered.index(action))
        else:
            done = rules.carry_out(self.kitchen, self.state, "S")
            info["invalid_action"] = action

        self.state = done.state
        self._steps += len(done.rewards)
        for reward in done.rewards:
            self._return += self._factor * reward
            self._factor *= rules.DISCOUNT
        terminated = done.state.served
        truncated = self._steps >= self.max_steps and not terminated
        self._running = not (terminated or truncated)

        prompt, actions = text.view(self.kitchen, self.state)
        info |= {"admissible_actions": actions, "duration": len(done.rewards)}
        if not self._running:
            info["episode"] = {"r": self._return, "l": self._steps, "success": terminated}
        return prompt, done.reward, terminated, truncated, info

    def numeric_observation(self) -> list[int]:
        """Give what the cook sees as numbers; see `rules.numeric_observation` for their order."""
        return rules.numeric_observation(self.kitchen, self.state)
