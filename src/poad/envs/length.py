"""A world whose actions can be spelled at any length: the same decisions, more words."""

import string
from typing import Final, NamedTuple

from gymnasium.spaces import Text

from poad.envs.text_world import CHARACTERS, Outcome, TextWorld, View

ROOMS: Final = ("kitchen", "bathroom", "bedroom", "hall")
KEYS: Final = ((0, 1), (1, 1), (1, 0), (0, 0))
"""What leads on from each room: the bits of the two words that count."""
WORDS: Final = (("milk", "chips"), ("dishes", "clothes"))
"""The words that are offered for each bit: those of even length say 0, those of odd length 1."""
ONES: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
TENS: Final = (
    *("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
)
DISCOUNT: Final = 0.95
"""Per step, within an episode's return."""


class State(NamedTuple):
    """Where the agent is: rooms left behind."""

    room: int = 0


class LengthEnv(TextWorld[State]):
    """Somebody walks through four rooms; the way on is said in two words, or in two among many.

    ## Description
    Four rooms in a row, from the kitchen through the bathroom and the bedroom to the hall and out.
    Each room has its key, two bits. An action is any text; two of its words say the bits, the first
    one and the one in its middle: a word with an even number of letters says 0, an odd one 1. The
    right bits lead on, others leave the agent where it is. How many words stand between and behind
    the two changes nothing, so `words` makes actions longer and the problem no harder.
    The world is deterministic: a seed changes nothing. Its purpose is to measure how a method's
    learning depends on the length of actions; it has no counterpart in the literature.

    ## Actions
    `poad/Length-v0` offers four texts of `words` words, one for each pair of bits: "milk" or
    "chips" first, "dishes" or "clothes" in the middle. The word before the middle names the
    room, so that both choices follow upon what decides them, however long the action; every other
    word counts. In the kitchen with `words=6`: "milk two kitchen dishes five six". Any other string
    is tried all the same and named in `info["invalid_action"]`: a text without a word says 0 twice,
    one word says both bits.

    With `offered=False` there is no `info["admissible_actions"]`: the agent writes freely, and no
    action is invalid.

    ## Observation
    A short English prompt that ends so that an action reads on after a space. It tells the room
    and how many words are asked for: 4 prompts for 4 states, and one for the end.
    `env.unwrapped.numeric_observation()` gives the number of rooms left behind.

    ## Rewards
    1 for the step that leads out, 0 for all others.

    ## Episode end
    `terminated` when the agent is out. `truncated` when `max_steps` steps have passed without.
    Acting after the end, or before the first reset, raises `gymnasium.error.ResetNeeded`.

    `info` holds `"admissible_actions"`; after a step also `"duration"`, which is 1; and at the end
    of an episode `"episode"`: `r`, which is .95 ** (l - 1) on success and 0 without, `l`, the
    steps, and `success`. Optimal: 4 steps. A uniformly random agent succeeds in 11 % of its
    episodes.

    ## Arguments
    * `words`: how long the offered actions are, 2 by default.
    * `max_steps`: the limit in steps, 8 by default.
    * `offered`: whether actions are offered, or written freely; true by default.

    ## Version history
    * v0: first version.
    """

    def __init__(self, words: int = 2, max_steps: int = 8, offered: bool = True) -> None:
        if words < 2:
            raise ValueError(f"words must be at least 2, got {words}")
        self.words = words
        offers = [
            tuple(_spell(words, room, a, b) for a in (0, 1) for b in (0, 1)) for room in ROOMS
        ]
        offers.append(offers[-1])  # behind the last room nothing counts

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
    spelled = [_number(place) for place in range(1, words + 1)]
    spelled[words // 2 - 1] = room
    spelled[0], spelled[words // 2] = WORDS[0][first], WORDS[1][second]
    return " ".join(spelled)


def _number(number: int) -> str:
    """A whole number as one word."""
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = _number(number % size) if number % size else ""
            return _number(number // size) + name + rest
    if number >= len(ONES):
        return TENS[number // 10] + (ONES[number % 10] if number % 10 else "")
    return ONES[number]


def _bits(action: str) -> tuple[int, int]:
    """What the first and the middle word of a text say."""
    said = [len(word.strip(string.punctuation)) % 2 for word in action.split()] or [0]
    return said[0], said[len(said) // 2]


def _prompt(state: State, words: int) -> str:
    if state.room == len(ROOMS):
        return "You are out."
    return f"You have {_number(words)} words to leave the {ROOMS[state.room]}"
