"""The household as a Gymnasium environment."""

from functools import partial
from typing import Final

from poad.envs.household import rules, text
from poad.envs.household.rules import State
from poad.envs.household.tasks import TASKS, Task
from poad.envs.text_world import Outcome, TextWorld

DISCOUNT: Final = 0.95
"""Per step, within an episode's return."""


class HouseholdEnv(TextWorld[State]):
    """Somebody at home does a chore, or settles down for the evening, one spoken action at a time.

    ## Description
    A house has a kitchen, a bathroom, a bedroom and a living room. The agent starts in the kitchen
    with two empty hands, near nothing; it walks to rooms and things, takes things, puts them
    somewhere, and works what stands there. The world is deterministic: a seed changes nothing.
    These are the two VirtualHome tasks of TWOSOME (arXiv 2401.14151) and POAD (arXiv 2405.15821)
    with the unseen tasks of the latter, in our own wording.

    * `poad/FoodPreparation-v0`: shut the pancake into the microwave. Optimal: 6 steps.
    * `poad/Cheese-v0`, `poad/Hamburger-v0`, `poad/ApplePie-v0`, `poad/Pizza-v0`: the same rules
      with other food. `poad/WashingPlate-v0`: the same with dishes and a dishwasher;
      `poad/Laundry-v0`: with clothes and a washing machine.
    * `poad/Entertainment-v0`: sit on the sofa and face the running TV, chips and milk at hand or on
      the coffee table. Optimal: 11 steps. Some mistakes cannot be made good with what is offered:
      sitting down too early, and putting one thing on the table while the other is in the kitchen.
    * `poad/EntertainmentSparseText-v0`: with a shorter text, from which the offered actions do not
      follow: near the sofa it may not tell whether the TV is on.
    * `poad/EntertainmentAllActions-v0`: with all 17 actions offered at any time.

    ## Actions
    A string out of `info["admissible_actions"]`. What is offered follows from what is perceived. It
    includes actions that fail, such as opening what is open; in the evening even walks to a thing
    that is not there, and leaves out useful ones: that is how the benchmark was published. Each of
    the world's strings does the same wherever it is said: "go to the kitchen", "take the pancake",
    "put the pancake into the microwave", "open the microwave", "turn on the TV", "sit down on the
    sofa", ... An action that is not offered is tried all the same and named in
    `info["invalid_action"]`; any other string fails and is named there, too. Every action takes one
    step. One whose precondition does not hold fails: nothing changes, and the step is spent.

    Walking is how one comes near a thing, and leaves all others but those in the hands. A held
    thing is believed to be where the agent was before its last walk: "go to the pancake" with the
    pancake in hand leads there.

    ## Observation
    A short English prompt that ends so that an action reads on after a space. It tells the room,
    what is seen and held, what the agent is at, and how things stand that are in view; other rooms
    are hidden and there is no memory. A chore has 18 prompts for 46 states, the evening 92 for 222
    (59 in the sparse text), reachable by offered actions.

    `env.unwrapped.numeric_observation()` gives what is perceived as bits. Of a chore 11: in the
    kitchen, bathroom, bedroom, living room; the item is seen, near, held; the appliance is seen,
    near, open; the item is in it. Of the evening 21: the rooms; the chips are seen, near, held, on
    the coffee table; the milk likewise; the TV is seen, near, faced, on; the sofa is seen, near,
    sat on; the coffee table is seen, near. What is out of sight reads 0.

    ## Rewards
    1 for the step that reaches the goal, 0 for all others.

    ## Episode end
    `terminated` when the goal is reached, on the last step too. `truncated` when `max_steps` steps
    have passed without. Acting after the end, or before the first reset, raises
    `gymnasium.error.ResetNeeded`.

    `info` holds `"admissible_actions"`; after a step also `"duration"`, which is 1; and at the end
    of an episode `"episode"`: `r`, which is .95 ** (l - 1) on success and 0 without, `l`, the
    steps, and `success`.

    ## Arguments
    * `max_steps`: the limit in steps, 50 by default.
    * `distractors`: so many actions are offered besides, after the others: phrases from the words
      of the household about things in this task ("put the milk into the sofa"), which always fail.
      Which ones is a function of the prompt. A chore has 128 of them, the evening 271. With 97, at
      least a hundred actions are offered at any time.
    * `task`: a key of `poad.envs.household.tasks.TASKS`; the registered names choose it.

    ## Version history
    * v0: first version.
    """

    def __init__(
        self, task: str = "food_preparation", max_steps: int = 50, distractors: int = 0
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"unknown household task {task!r}; known: {', '.join(TASKS)}")
        self.task = TASKS[task]
        available = len(text.distractor_pool(self.task))
        if not 0 <= distractors <= available:
            raise ValueError(
                f"distractors must be from 0 to {available} in this task, got {distractors}"
            )
        super().__init__(
            start=self.task.house.start,
            view=partial(text.view, self.task, distractors=distractors),
            act=partial(_act, self.task),
            observe=partial(_observe, self.task),
            discount=DISCOUNT,
            max_steps=max_steps,
        )


def _act(task: Task, state: State, action: str) -> Outcome[State]:
    strings = text.slot_strings(task)
    if action in strings:
        state = rules.transition(task.house, state, strings.index(action)).state
    success = rules.reached(task.house, state)
    return Outcome(state, (float(success),), float(success), success)


def _observe(task: Task, state: State) -> list[int]:
    return list(rules.observe(task.house, state))
