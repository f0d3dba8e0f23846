"""A world whose actions can have any length, while its decisions stay the same."""

import string
from typing import Final, NamedTuple

from gymnasium.spaces import Text

from poad.envs.text_world import CHARACTERS, Outcome, TextWorld, View
from poad.errors import ConfigError

ROOMS: Final = ("kitchen", "bathroom", "bedroom", "hall")
KEYS: Final = ((0, 1), (1, 1), (1, 0), (0, 0))
"""The two bits that lead on from each room."""
WORDS: Final = (("milk", "chips"), ("dishes", "clothes"))
"""The words that are offered for each bit. Words of even length mean 0, those of odd length 1."""
ONES: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS: Final = (
    *("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
)
DISCOUNT: Final = 0.95
"""The discount per step, for an episode's return."""


class State(NamedTuple):
    """The agent's position."""

    room: int = 0
    """The number of rooms that the agent has left."""


class LengthEnv(TextWorld[State]):
    """A walk through four rooms by actions of any length.

    ## Description
    There are four rooms in a row: the agent walks from the kitchen through the bathroom, the
    bedroom and the hall to the exit. Each room has a key of two bits. An action is any text. Its
    first word and its middle word determine two bits: a word with an even number of letters means
    0, and one with an odd number means 1. The right bits lead to the next room; otherwise the agent
    stays where it is. The other words change nothing, so `words` makes actions longer but the
    problem no harder.

    The world is deterministic, and the seed has no effect. Its purpose is to measure how learning
    depends on the length of actions. It is our own, and not a published benchmark.

    ## Actions
    `poad/Length-v0` offers four texts of `words` words, one for each pair of bits. They begin with
    "milk" or "chips", and have "dishes" or "clothes" in the middle. The word before the middle
    names the room, so that the second choice follows closely on what decides it, however long the
    action is. All other words are numbers that count the words. An example from the kitchen with
    `words=6`: "milk two kitchen dishes five six".

    The world also carries out any other string, and names it in `info["invalid_action"]`. An empty
    text means the bits 0 and 0; a single word determines both bits.

    With `offered=False` there is no `info["admissible_actions"]`: the agent writes freely, and no
    action is invalid.

    ## Observation
    The observation is a short English prompt, which an action continues after a space. It states
    the room and the number of words. There are 4 prompts for 4 states, and one for the end.
    `env.unwrapped.numeric_observation()` gives the number of rooms that the agent has left.

    ## Rewards
    The step that leads to the exit has the reward 1, and all others have 0.

    ## Episode end
    The episode is `terminated` when the agent is out, and `truncated` after `max_steps` steps
    otherwise. A step after the end or before the first reset raises `gymnasium.error.ResetNeeded`.

    `info` holds `"admissible_actions"`, and after a step also `"duration"`, which is 1. At the end
    of an episode it holds `"episode"`: the return `r` (.95 ** (l - 1) on success, else 0), the
    number of steps `l`, and `success`. The optimum is 4 steps. A uniformly random agent succeeds in
    11 % of its episodes.

    ## Arguments
    * `words`: the number of words in an offered action, 2 by default.
    * `max_steps`: the limit in steps, 8 by default.
    * `offered`: True (the default) to offer actions, False to let the agent write freely.
    """

    def __init__(self, words: int = 2, max_steps: int = 8, offered: bool = True) -> None:
        if words < 2:
            raise ConfigError(f"words must be at least 2, got {words}.")
        self.words = words
        offers = [
            tuple(_spell(words, room, a, b) for a in (0, 1) for b in (0, 1)) for room in ROOMS
        ]
        offers.append(offers[-1])  # after the exit, where actions have no effect

        def view(state: State) -> View:
            return View(_prompt(state, words), offers[state.room])

        def act(state: State, action: str) -> Outcome[State]:
            right = state.room < len(ROOMS) and _bits(action) == KEYS[state.room]
            after = State(state.room + right)
            out = after.room == len(ROOMS)
            return Outcome(after, (float(out),), float(out), out)

        super().__init__(
            start=State(),
            view=view,
            act=act,
            observe=lambda state: [state.room],
            discount=DISCOUNT,
            max_steps=max_steps,
            offered=offered,
        )
        longest = max(len(action) for actions in offers for action in actions)
        self.action_space = Text(max_length=max(64, longest), min_length=0, charset=CHARACTERS)


def _spell(words: int, room: str, first: int, second: int) -> str:
    spelled = [spell_number(place) for place in range(1, words + 1)]
    spelled[words // 2 - 1] = room
    spelled[0], spelled[words // 2] = WORDS[0][first], WORDS[1][second]
    return " ".join(spelled)


def spell_number(number: int) -> str:
    """Spell a whole number as one word."""
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = spell_number(number % size) if number % size else ""
            return spell_number(number // size) + name + rest
    if number >= len(ONES):
        return TENS[number // 10] + (ONES[number % 10] if number % 10 else "")
    return ONES[number]


def _bits(action: str) -> tuple[int, int]:
    """Read the bits of the first and the middle word of a text."""
    bits = [len(word.strip(string.punctuation)) % 2 for word in action.split()] or [0]
    return bits[0], bits[len(bits) // 2]


def _prompt(state: State, words: int) -> str:
    if state.room == len(ROOMS):
        return "You are out."
    return f"You have {spell_number(words)} words to leave the {ROOMS[state.room]}"
