"""The kitchen as a Gymnasium environment."""

from functools import partial
from typing import Final, Literal

from poad.envs.kitchen import rules, text
from poad.envs.kitchen.rules import Kitchen, State
from poad.envs.text_world import Outcome, TextWorld

KITCHENS: Final = {
    "tomato_salad": rules.TOMATO_SALAD,
    "tomato_lettuce_salad": rules.TOMATO_LETTUCE_SALAD,
}


class KitchenEnv(TextWorld[State]):
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
