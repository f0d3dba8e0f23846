"""`TextAdapter`: a base for worlds that only say how they begin and what an action does."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import gymnasium
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from poad.envs.contract import number, short
from poad.envs.registry import FreeText
from poad.errors import ConfigError, WorldError
from poad.trie import Form, Grammar

Offers: TypeAlias = Sequence[str] | Form | Grammar | None
"""The offered actions, also as a grammar describes them; None lets the agent write freely."""


class AnyText(gymnasium.Space[str]):
    """The space of all texts.

    Gymnasium's `Text` needs a list of characters, which nobody has for somebody else's world.
    """

    def __init__(self) -> None:
        super().__init__(dtype=str)

    @property
    def is_np_flattenable(self) -> bool:
        """False, since texts have no fixed length."""
        return False

    def sample(
        self, mask: NDArray[Any] | None = None, probability: NDArray[Any] | None = None
    ) -> str:
        """Draw a word of 1 to 8 small letters; there is nothing to mask."""
        letters = self.np_random.integers(26, size=self.np_random.integers(1, 9))
        return "".join(string.ascii_lowercase[letter] for letter in letters)

    def contains(self, x: Any) -> bool:
        """Tell whether something is a string."""
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText)

    def __repr__(self) -> str:
        return "AnyText()"


class TextAdapter(gymnasium.Env[str, str]):
    """A text world of two methods: `begin` and `act`. This class does the rest of the contract.

    It counts steps and cuts long episodes off, raises `ResetNeeded`, reports actions that are not
    offered, and sums up the episode. While they run, `begin` and `act` may set these attributes:

    * `goal`: what the agent is to do, as a text for `info["goal"]`. It stays until the next reset.
    * `info`: a dict of further entries for the `info` of this one reset or step.
    * `truncated`: True in `act` if the world itself cuts the episode off.
    * `invalid`: True in `act` if an action that was not chosen from a list was none. It becomes
      `info["invalid_action"]`.

    Args:
        max_steps: the number of actions after which an episode is cut off. None sets no limit.

    Raises:
        ConfigError: `max_steps` is below 1.
    """

    free_text: FreeText
    """Where freely written actions end. A class that offers actions in some turns only sets it."""
    takes_other_actions: ClassVar[bool] = False
    """Whether `act` also takes actions that were not offered. If not, such an action passes the
    turn: the agent sees the same text again, and the reward is 0."""
    files: Sequence[Path] = ()
    """Files that decide what happens besides the code of the class, such as a game. Studies take a
    world whose files have changed for another one."""
    max_steps: int | None
    goal: str | None
    info: dict[str, Any]
    truncated: bool
    invalid: bool

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Set what a world has even if its class forgets to call this class's `__init__`."""
        self = super().__new__(cls)
        self.observation_space, self.action_space = AnyText(), AnyText()
        self.max_steps, self.goal, self.info = None, None, {}
        self.truncated = self.invalid = False
        # Two underscores, so that a subclass may use any name of its own.
        self.__running = False
        return self

    def __init__(self, max_steps: int | None = None) -> None:
        whole = isinstance(max_steps, int) and not isinstance(max_steps, bool)
        if max_steps is not None and not (whole and max_steps >= 1):
            raise ConfigError(f"max_steps must be a whole number from 1, got {max_steps!r}.")
        self.max_steps = max_steps

    def begin(self, seed: int) -> tuple[str, Offers]:
        """Begin an episode.

        Args:
            seed: decides everything that is random in the episode. `self.np_random` is seeded by
                it, too.

        Returns:
            What the agent reads first, and the offered actions; None lets it write freely.
        """
        raise NotImplementedError("a TextAdapter needs a method begin(seed)")

    def act(self, action: str) -> tuple[str, Offers, float, bool, bool | None]:
        """Carry out an action.

        Returns:
            What the agent reads next, the offered actions, the reward, whether the episode is over,
            and whether it was a success. Success counts in the last step alone. None stands for
            "if the last reward is positive".
        """
        raise NotImplementedError("a TextAdapter needs a method act(action)")

    @property
    def is_last_step(self) -> bool:
        """Whether the action that `act` carries out is the last one before the limit."""
        return self.__steps + 1 == self.max_steps

    @property
    def inner(self) -> object:
        """The object whose code plays: errors, manuals and studies look at it."""
        return self

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode by `begin`; without a seed, draw one."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self.__running = False  # if begin raises, there is no episode
        self.goal, self.info, self.truncated = None, {}, False
        answer: object = self.begin(seed)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise WorldError(f"begin returned {short(answer)}; it must return (text, offers).")
        self.__text, offers = answer
        self.__offers = _as_tuple(offers)
        self.__running, self.__steps, self.__return = True, 0, 0.0
        return self.__text, self._entries()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out an action by `act`, or pass the turn if it was not offered."""
        if not self.__running:
            raise ResetNeeded("No episode is running; call reset() before step().")
        listed = None if isinstance(self.__offers, Grammar) else self.__offers
        offered = listed is None or action in listed
        self.info, self.truncated, self.invalid = {}, False, False
        reward, done, success = 0.0, False, None
        if offered or self.takes_other_actions:
            reward, done, success = self._acted(self.act(action))
        self.__steps += 1
        self.__return += reward
        # Whatever the world makes of an offered action, the agent was right to choose it.
        if not offered or (self.invalid and listed is None):
            self.info["invalid_action"] = action
        self.truncated = not done and (self.truncated or self.__steps == self.max_steps)
        self.__running = not (done or self.truncated)
        if not self.__running:
            won = reward > 0 if success is None else bool(success)
            self.info["episode"] = {"r": self.__return, "l": self.__steps, "success": won}
        return self.__text, reward, done, self.truncated, self._entries()

    def _acted(self, answer: object) -> tuple[float, bool, bool | None]:
        """Take in what `act` returned: remember the text and the offers, return the rest."""
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise WorldError(
                f"act returned {short(answer)}; it must return (text, offers, reward, done, "
                "success)."
            )
        self.__text, offers, reward, done, success = answer
        self.__offers = _as_tuple(offers)
        paid = number(reward)
        if paid is None:
            raise WorldError(f"act returned the reward {short(reward)}; it must be a number.")
        return paid, bool(done), success

    def _entries(self) -> dict[str, Any]:
        """Put the entries of info together."""
        entries = dict(self.info)
        if self.goal is not None:
            entries["goal"] = self.goal
        if isinstance(self.__offers, Grammar):
            entries["action_grammar"] = self.__offers
        elif self.__offers is not None:
            entries["admissible_actions"] = self.__offers
        return entries


def _as_tuple(offers: Offers) -> Offers:
    """Make a tuple of a list; anything that offers nothing or breaks the contract stays."""
    return tuple(offers) if isinstance(offers, list) else offers
