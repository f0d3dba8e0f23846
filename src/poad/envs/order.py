"""A world whose actions hold many decisions: order forms with up to sixteen fields."""

import math
from typing import Any, Final, Literal, NamedTuple, get_args

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from poad.envs.length import spell_number
from poad.envs.registry import FreeText
from poad.envs.text_world import CHARACTERS
from poad.errors import ConfigError
from poad.trie import Form

Pay = Literal["additive", "all", "late"]

FIELDS: Final = (
    *(("small", "large"), ("wheat", "rye"), ("round", "square"), ("soft", "crisp")),
    *(("apple", "cherry"), ("vanilla", "lemon"), ("sugar", "honey"), ("almonds", "walnuts")),
    *(("ginger", "cinnamon"), ("berries", "chocolate"), ("red", "blue"), ("paper", "tin")),
    *(("whole", "sliced"), ("few", "many"), ("printed", "written"), ("morning", "evening")),
)
"""The two options of each field. They begin with different letters, so that every tokenizer decides
between them at one token. A form has the first fields of these."""
TRAITS: Final = (("old", "young"), ("teacher", "farmer"), ("village", "city"))
"""What a prompt says about a customer: one word of each pair. Field i depends on trait i mod 3."""
TURNED: Final = (0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0)
"""For each field: 0 if the first word of its trait asks for the field's first option, else 1."""
CUSTOMERS: Final = 2 ** len(TRAITS)
MAX_TURNS: Final = 3


class Customer(NamedTuple):
    """A customer, who has a taste in every field."""

    number: int
    """From 0 to 7: its bits, highest first, choose the words of the traits."""

    @property
    def traits(self) -> tuple[int, ...]:
        """The bit of each trait."""
        return tuple(self.number >> place & 1 for place in reversed(range(len(TRAITS))))

    @property
    def words(self) -> tuple[str, ...]:
        """The word of each trait."""
        return tuple(pair[bit] for pair, bit in zip(TRAITS, self.traits, strict=True))

    def right(self, choices: int) -> tuple[int, ...]:
        """The right option of each of the first fields."""
        return tuple(self.traits[i % len(TRAITS)] ^ TURNED[i] for i in range(choices))


class OrderEnv(gymnasium.Env[str, str]):
    """A bakery takes orders by forms with many fields.

    ## Description
    A customer orders a cake, and the agent fills in the form. A form has `choices` fields with two
    options each: small or large, wheat or rye, round or square, soft or crisp, and so on. The right
    option of a field depends on one of three traits of the customer, which the prompt names: old or
    young, teacher or farmer, from the village or the city. Field 1 depends on the first trait,
    field 2 on the second, field 3 on the third, field 4 on the first again, and so on. Nothing else
    says which option is right, so the agent learns it from the pay.

    An episode consists of `turns` orders. The seed draws their customers, uniformly out of eight
    and independently, and the noise of the pay. Actions do not change who comes next.

    The world's purpose is to measure credit inside actions: unlike in other worlds here, an action
    holds up to sixteen decisions, and its length can be chosen apart from them. It is our own, and
    not a published benchmark. `poad.theory.OrderOracle` computes exact values.

    ## Actions
    A form has `words` words. The last word of every `words / choices` words is the option of a
    field. The word before it repeats the trait that the field depends on. The remaining words are
    numbers that count the words. With `choices=2` and `words=8`, a form for the old teacher from
    the city reads "one two old small five six teacher rye".

    `poad/Order-v0` offers a `poad.envs.Form` with all 2 ** `choices` ways to fill in the form. It
    also reads any other string, and names it in `info["invalid_action"]`. It looks only at the
    words in the places of the options. A field is wrong if its place holds any word but the right
    option, or none.

    With `offered=False` there is no `info["admissible_actions"]`: the agent writes freely, and no
    action is invalid.

    ## Observation
    The observation is a short English prompt, which an action continues after a space. It states
    the number of the order, the number of choices, the words per choice, and the customer. There
    are 8 prompts per turn, and one for the end.

    ## Rewards
    * `pay="additive"`: each order pays the share of its right fields.
    * `pay="all"`: an order pays 1 if all of its fields are right, else 0.
    * `pay="late"`: the last order pays the sum of the shares of all orders, the others pay 0.

    With `noise`, a normally distributed number with mean 0 and this standard deviation is added to
    every pay; with `pay="late"`, to that of the last order only.

    ## Episode end
    The episode is `terminated` after `turns` orders. A step after the end or before the first reset
    raises `gymnasium.error.ResetNeeded`.

    `info` holds `"admissible_actions"`, and after a step also `"duration"`, which is 1, and
    `"measures"` with `right`, the share of right fields without noise. At the end of an episode it
    holds `"episode"`: the return `r` (the sum of the rewards, noise included), the number of steps
    `l`, and `success`, which means that every field of every order was right. A uniformly random
    agent has half of the fields right.

    ## Arguments
    * `choices`: the number of fields in a form, from 2 to 16, 4 by default.
    * `words`: the number of words in a form, a multiple of `choices`, 16 by default.
    * `turns`: the number of orders in an episode, from 1 to 3, 1 by default.
    * `pay`: "additive" (the default), "all" or "late".
    * `noise`: the standard deviation of the noise in the pay, 0 by default.
    * `offered`: True (the default) to offer a form, False to let the agent write freely.
    """

    free_text = FreeText(max_tokens=132)

    def __init__(
        self,
        choices: int = 4,
        words: int = 16,
        turns: int = 1,
        pay: Pay = "additive",
        noise: float = 0.0,
        offered: bool = True,
    ) -> None:
        if not 2 <= choices <= len(FIELDS):
            raise ConfigError(f"choices must be from 2 to {len(FIELDS)}, got {choices}.")
        if words < choices or words % choices:
            raise ConfigError(f"words must be a multiple of choices = {choices}, got {words}.")
        if not 1 <= turns <= MAX_TURNS:
            raise ConfigError(f"turns must be from 1 to {MAX_TURNS}, got {turns}.")
        if pay not in get_args(Pay):
            raise ConfigError(f"pay must be one of {', '.join(get_args(Pay))}; got {pay!r}.")
        if not (math.isfinite(noise) and noise >= 0):
            raise ConfigError(f"noise must be a finite number from 0, got {noise}.")
        self.choices, self.words, self.turns = choices, words, turns
        self.pay, self.noise, self.offered = pay, noise, offered
        self.observation_space = Text(max_length=512, charset=CHARACTERS)
        self._customers = [Customer(n) for n in range(CUSTOMERS)]
        self._forms = [_form(choices, words, customer) for customer in self._customers]
        longest = max(len("".join(max(part, key=len) for part in f.parts)) for f in self._forms)
        self.action_space = Text(max_length=max(64, longest), min_length=0, charset=CHARACTERS)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode. The seed draws the customers and the noise."""
        super().reset(seed=seed)
        drawn = self.np_random.integers(CUSTOMERS, size=self.turns)
        self._orders: list[int] = drawn.tolist()
        self._shares: list[float] = []
        self._return, self._running = 0.0, True
        return self._show()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take an order. If the form is not an offered one, `info["invalid_action"]` names it."""
        if not self._running:
            raise ResetNeeded("No episode is running; call reset() before step().")
        customer = self._orders[len(self._shares)]
        invalid = self.offered and action not in self._forms[customer]
        share = self.share(action, customer)
        self._shares.append(share)
        over = len(self._shares) == self.turns
        reward = self._reward(share, over)
        self._return += reward
        self._running = not over

        prompt, info = self._show()
        info |= {"invalid_action": action} if invalid else {}
        info |= {"duration": 1, "measures": {"right": share}}
        if over:
            success = min(self._shares) == 1.0
            info["episode"] = {"r": self._return, "l": self.turns, "success": success}
        return prompt, reward, over, False, info

    def _reward(self, share: float, over: bool) -> float:
        """The pay for an order, noise included."""
        noise = float(self.np_random.normal()) * self.noise
        if self.pay == "late":
            return sum(self._shares) + noise if over else 0.0
        return noise + (share if self.pay == "additive" else float(share == 1.0))

    def _show(self) -> tuple[str, dict[str, Any]]:
        """The prompt and the offer. After the end, these are the last customer's form."""
        turn = len(self._shares)
        customer = self._orders[min(turn, self.turns - 1)]
        shown = self.prompt(turn, customer) if turn < self.turns else "All orders are taken."
        return shown, {"admissible_actions": self._forms[customer]} if self.offered else {}

    @property
    def customers(self) -> range:
        """The numbers of all customers."""
        return range(CUSTOMERS)

    def prompt(self, turn: int, customer: int) -> str:
        """Write the prompt of a turn, counted from 0."""
        each = self.words // self.choices
        spread = f"every {spell_number(each)} words" if each > 1 else "every word"
        age, trade, home = self._customers[customer].words
        return (
            f"Order {spell_number(turn + 1)}. Write {spell_number(self.choices)} choices, one in "
            f"{spread}, for the {age} {trade} from the {home}"
        )

    def form(self, customer: int) -> Form:
        """The form that a customer is offered."""
        return self._forms[customer]

    def right(self, customer: int) -> tuple[int, ...]:
        """The right option, 0 or 1, of each field."""
        return self._customers[customer].right(self.choices)

    def share(self, action: str, customer: int) -> float:
        """The share of fields that a text fills in as a customer wants."""
        each, written = self.words // self.choices, action.split()
        filled = written[each - 1 : self.words : each]  # shorter if the text is
        pairs = zip(FIELDS, self.right(customer), filled, strict=False)
        return sum(word == options[bit] for options, bit, word in pairs) / self.choices


def _form(choices: int, words: int, customer: Customer) -> Form:
    """Build the form of a customer: the words between the options, and the options, are parts."""
    each = words // choices
    parts: list[tuple[str, ...]] = []
    for i in range(choices):
        between = [spell_number(place) for place in range(i * each + 1, (i + 1) * each - 1)]
        between += [customer.words[i % len(TRAITS)]] if each > 1 else []
        if between:
            parts.append((" " * bool(parts) + " ".join(between),))
        parts.append(tuple(" " * bool(parts) + option for option in FIELDS[i]))
    return Form(tuple(parts))
