"""The household as a Gymnasium environment."""

from functools import partial
from typing import Final

from poad.envs.household import rules, text
from poad.envs.household.rules import State
from poad.envs.household.tasks import TASKS, Task
from poad.envs.text_world import Outcome, TextWorld
from poad.errors import ConfigError

DISCOUNT: Final = 0.95
"""The discount per step, for an episode's return."""


class HouseholdEnv(TextWorld[State]):
    """An agent at home does a chore, or sits down for an evening of TV.

    ## Description
    A house has a kitchen, a bathroom, a bedroom and a living room. The agent starts in the kitchen
    with two empty hands, near nothing. It walks to rooms and things, takes things, puts them
    somewhere, and operates appliances. The world is deterministic, and the seed has no effect.
    These are the two VirtualHome tasks of TWOSOME (arXiv 2401.14151) and POAD (arXiv 2405.15821),
    and the unseen tasks of the latter, in our own wording.

    * `poad/FoodPreparation-v0`: shut the pancake into the microwave. The optimum is 6 steps.
    * `poad/Cheese-v0`, `poad/Hamburger-v0`, `poad/ApplePie-v0` and `poad/Pizza-v0` have the same
      rules with other food. `poad/WashingPlate-v0` has dishes and a dishwasher, and
      `poad/Laundry-v0` has clothes and a washing machine.
    * `poad/Entertainment-v0`: sit on the sofa and face the running TV, with the chips and the milk
      at hand or on the coffee table. The optimum is 11 steps. Two mistakes cannot be corrected by
      offered actions: sitting down too early, and putting one item on the table while the other is
      still in the kitchen.
    * `poad/EntertainmentSparseText-v0` has shorter prompts, which do not determine the offered
      actions: near the sofa, they may not state whether the TV is on.
    * `poad/EntertainmentAllActions-v0` offers all 17 actions at every step.

    ## Actions
    An action is a string from `info["admissible_actions"]`, which is a function of the observation.
    As in the published benchmark, it includes actions that fail, such as opening an open appliance.
    In the evening tasks it even includes walks to a thing that is not there, and lacks some useful
    actions. A string has the same meaning everywhere: "go to the kitchen", "take the pancake", "put
    the pancake into the microwave", "open the microwave", "turn on the TV", "sit down on the sofa",
    and so on. The world also tries actions of this kind that are not offered, and names them in
    `info["invalid_action"]`. Any other string fails and is named there as well. Every action takes
    one step. If its precondition does not hold it fails: the step passes and nothing changes.

    Walking to a thing brings the agent near it, and away from everything else that it does not
    hold. A held thing counts as being where the agent was before its last walk: "go to the pancake"
    with the pancake in hand leads back there.

    ## Observation
    The observation is a short English prompt, which an action continues after a space. It states
    the room, what the agent sees, holds and is near, and the state of the things in view. Other
    rooms are hidden, and prompts have no memory. By offered actions, a chore reaches 46 states with
    18 prompts, and the evening tasks reach 222 states with 92 prompts (59 in the sparse text).

    `env.unwrapped.numeric_observation()` gives the observation as bits. Bits of things out of sight
    are 0. A chore has 11 bits: the agent is in the kitchen, bathroom, bedroom, living room; the
    item is seen, near, held; the appliance is seen, near, open; the item is in it. An evening has
    21: the four rooms; the chips are seen, near, held, on the coffee table; the same for the milk;
    the TV is seen, near, faced, on; the sofa is seen, near, sat on; the coffee table is seen, near.

    ## Rewards
    The step that reaches the goal has the reward 1, and all others have 0.

    ## Episode end
    The episode is `terminated` when the goal is reached, including on the last step, and
    `truncated` after `max_steps` steps otherwise. A step after the end or before the first reset
    raises `gymnasium.error.ResetNeeded`.

    `info` holds `"admissible_actions"`, and after a step also `"duration"`, which is 1. At the end
    of an episode it holds `"episode"`: the return `r` (.95 ** (l - 1) on success, else 0), the
    number of steps `l`, and `success`.

    ## Arguments
    * `max_steps`: the limit in steps, 50 by default.
    * `distractors`: the number of extra actions, offered after the others. They are phrases about
      things in the task, such as "put the milk into the sofa", and always fail. The prompt
      determines which of them are offered. A chore has 128 of them, and an evening has 271. With
      97, every step offers at least 100 actions.
    * `task`: a key of `poad.envs.household.tasks.TASKS`. The registered names fix it.
    """

    def __init__(
        self, task: str = "food_preparation", max_steps: int = 50, distractors: int = 0
    ) -> None:
        if task not in TASKS:
            raise ConfigError(f"Unknown household task {task!r}; known: {', '.join(TASKS)}.")
        self.task = TASKS[task]
        available = len(text.distractor_pool(self.task))
        if not 0 <= distractors <= available:
            raise ConfigError(
                f"distractors must be from 0 to {available} in this task, got {distractors}."
            )
        super().__init__(
            start=self.task.house.start,
            view=partial(text.view, self.task, distractors=distractors),
            act=partial(_act, self.task),
            observe=partial(rules.observe, self.task.house),
            discount=DISCOUNT,
            max_steps=max_steps,
        )


def _act(task: Task, state: State, action: str) -> Outcome[State]:
    strings = text.slot_strings(task)
    if action in strings:
        state = rules.transition(task.house, state, strings.index(action)).state
    success = rules.reached(task.house, state)
    return Outcome(state, (float(success),), float(success), success)
