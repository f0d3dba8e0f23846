"""The kitchen as a Gymnasium environment."""

from functools import partial
from typing import Final, Literal

from poad.envs.kitchen import rules, text
from poad.envs.kitchen.rules import Kitchen, State
from poad.envs.text_world import Outcome, TextWorld
from poad.errors import ConfigError

KITCHENS: Final = {
    "tomato_salad": rules.TOMATO_SALAD,
    "tomato_lettuce_salad": rules.TOMATO_LETTUCE_SALAD,
}


class KitchenEnv(TextWorld[State]):
    """A cook prepares a salad in a small kitchen by macro-actions.

    ## Description
    A cook works on a 7x7 grid, a floor of 5x5 cells inside a ring of counter. The kitchen holds a
    bowl, one or two cutting boards, a delivery counter and raw food. The cook must chop the foods
    of the recipe, put them into the bowl, and deliver the bowl.

    * `poad/TomatoSalad-v0` has one food and one board. The recipe is chopped tomato.
    * `poad/TomatoLettuceSalad-v0` also has a lettuce, an onion and a second board. The recipe is
      chopped tomato and chopped lettuce, without onion.

    The world is deterministic, and the seed has no effect. These are the two Overcooked tasks of
    TWOSOME (arXiv 2401.14151) and POAD (arXiv 2405.15821), with our own wording.

    ## Actions
    An action is a string from `info["admissible_actions"]`, which has one string per macro-action,
    always in this order: get each food, get the bowl, go to each board, deliver, chop. The wording
    depends on the situation: "get the tomato" becomes "add the tomato to the bowl" while the cook
    holds the bowl. A macro-action walks a shortest path and takes 1 to 10 primitive steps. Any
    other string takes one idle primitive step, and `info["invalid_action"]` names it.

    ## Observation
    The observation is a short English prompt, which an action continues after a space. It states
    which items are in view at their home, what lies on each board in view, at which board the cook
    stands, and what the cook holds. The cook sees two cells far, so the kitchen is only partly
    observed, and prompts have no memory. The tomato salad has 21 prompts for 24 states, and the
    other task has 787 prompts for 1301 states. `env.unwrapped.numeric_observation()` gives the view
    as 18 or 26 whole numbers.

    ## Rewards
    Each primitive step has the reward -0.001. Chopping a food of the recipe adds 0.2, and
    delivering the right dish adds 1. Delivering anything else subtracts 0.1. The reward of a
    macro-action is the sum over its primitive steps, discounted by .99 per step.

    After a wrong delivery the food lies at its home again, raw, and can be chopped for another 0.2.
    With a discount of .99 per *macro-action*, the optimal policy therefore chops and throws away
    forever. With .99 per *primitive step*, that is .99 ** `info["duration"]` per turn, the optimal
    policy delivers at once. Use this discount.

    ## Episode end
    The episode is `terminated` when the right dish is delivered. It is `truncated` after
    `max_steps` primitive steps. The macro-action that exceeds the limit is completed and rewarded
    in full, and if it delivers the right dish, the episode is terminated instead. A step after the
    end or before the first reset raises `gymnasium.error.ResetNeeded`.

    `info` holds `"admissible_actions"`, and after a step also `"duration"`, the number of primitive
    steps. At the end of an episode it holds `"episode"`: the return `r`, discounted by .99 per
    primitive step, the number of primitive steps `l`, and `success`. Gymnasium's
    `RecordEpisodeStatistics` writes to the same key, so give it another one:
    `RecordEpisodeStatistics(env, stats_key="statistics")`.

    ## Arguments
    * `max_steps`: the limit in primitive steps, 200 by default.
    * `task`: "tomato_salad" or "tomato_lettuce_salad". The registered names fix it.
    """

    step_discount: Final = rules.DISCOUNT
    """The discount per primitive step inside the reward of a macro-action."""

    def __init__(
        self,
        task: Literal["tomato_salad", "tomato_lettuce_salad"] = "tomato_salad",
        max_steps: int = 200,
    ) -> None:
        if task not in KITCHENS:
            raise ConfigError(f"Unknown kitchen task {task!r}; known: {', '.join(KITCHENS)}.")
        self.kitchen = KITCHENS[task]
        super().__init__(
            start=self.kitchen.start,
            view=partial(text.view, self.kitchen),
            act=partial(_act, self.kitchen),
            observe=partial(rules.numeric_observation, self.kitchen),
            discount=rules.DISCOUNT,
            max_steps=max_steps,
        )


def _act(kitchen: Kitchen, state: State, action: str) -> Outcome[State]:
    offered = text.view(kitchen, state).actions
    if action in offered:
        done = rules.transition(kitchen, state, offered.index(action))
    else:
        done = rules.carry_out(kitchen, state, "S")
    return Outcome(done.state, done.rewards, done.reward, done.state.served)
