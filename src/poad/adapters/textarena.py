"""Single-player games of TextArena."""

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy

from poad.adapters.packages import distinct_texts, needed
from poad.envs import FreeText, TextAdapter
from poad.errors import ConfigError, did_you_mean

_LOCK: Final = threading.Lock()
"""Held while a game uses the random state of the process."""


class TextArenaGame(TextAdapter):
    """Single-player games of TextArena, such as Sokoban, Minesweeper or 2048.

    `textarena:GAME` takes the name of a registered game, such as `Sokoban-v0`. Games for several
    players are refused.

    ### Observation
    The prompt is TextArena's own. It holds the rules and everything that has happened, so train
    with `prompt.history=none`, the default.

    ### Actions
    An action is free text that holds a move in square brackets, such as `[up]`. A bracket that the
    agent opens and does not close is closed here, so `acting.stop="]"` can end its actions. With
    `choices` the agent chooses from a list instead.

    ### Rewards
    The game pays at its end: 1 for a solved game, which is a success, and less for a part of it.
    A game that ends with an invalid move usually pays -1.

    ### Arguments
    * `choices`: a list of moves to offer in every turn. On the command line, quote it twice:
      `'choices=["[up]", "[down]", "[left]", "[right]"]'`.
    * `max_steps`: cut episodes off after so many actions, 100 by default. Most games have a limit
      of their own, too.
    * Any other argument is passed to the game.
    """

    free_text = FreeText(stop=("\n",), max_tokens=64)

    def __init__(
        self,
        game: str,
        /,
        *,
        choices: list[str] | None = None,
        max_steps: int | None = 100,
        **arguments: Any,
    ) -> None:
        super().__init__(max_steps)
        self._library = needed("textarena", "textarena", "'poad[textarena]'")
        known = self._library.envs.registration.ENV_REGISTRY
        if game not in known:
            raise ConfigError(f"TextArena has no game {game!r}. {did_you_mean(game, known, 3)}")
        self._name, self._arguments = game, arguments
        # YAML reads `[up]` as a list.
        quoted = 'texts in brackets as \'choices=["[up]", "[down]"]\''
        self._choices = None if choices is None else distinct_texts(choices, "choices", quoted)
        self._random: tuple[Any, Any] | None = None
        with self._own_random(0):
            self._game = self._started(0)

    def begin(self, seed: int) -> tuple[str, tuple[str, ...] | None]:
        """Make the game anew: a game that is reset remembers the texts of its last episode."""
        with self._own_random(seed):
            self._game = self._started(seed)
            return self._game.get_observation()[1].strip(), self._choices

    def act(self, action: str) -> tuple[str, tuple[str, ...] | None, float, bool, bool]:
        """Make a move."""
        if action.count("[") > action.count("]"):
            action += "]"
        with self._own_random(None):
            done, _ = self._game.step(action)
            text = self._game.get_observation()[1].strip()
            reward = 0.0
            if done:
                rewards, said = self._game.close()
                reward = float((rewards or {}).get(0, 0.0))
                text = f"{text}\n{(said or {}).get(0, {}).get('reason') or ''}".strip()
        state = self._game.state
        self.invalid = state.error_count > 0 or bool(state.game_info[0].get("invalid_move"))
        return text, self._choices, reward, bool(done), reward >= 1

    def _started(self, seed: int) -> Any:
        """Make a game and reset it; what a game lacks is one sentence."""
        name = f"textarena:{self._name}"
        try:
            game = self._library.make(self._name, **self._arguments)
            game.reset(num_players=1, seed=seed)
        except AssertionError as error:
            raise ConfigError(
                f"{name} is a game for several players ({error}). Choose a single-player game, "
                "such as textarena:Sokoban-v0."
            ) from error
        except LookupError as error:
            raise ConfigError(
                f"{name} needs data of NLTK that is not on this machine. Download it once with: "
                "python -m nltk.downloader words averaged_perceptron_tagger_eng"
            ) from error
        except ValueError as error:
            if "API key" not in str(error):
                raise
            raise ConfigError(
                f"{name} asks a language model over the network: {error} Its answers would not "
                "repeat, so choose another game."
            ) from error
        return game

    @contextlib.contextmanager
    def _own_random(self, seed: int | None) -> Iterator[None]:
        """Give the game a random state of its own in place of the process's.

        Args:
            seed: begins a new state; None goes on with the one of the game.
        """
        with _LOCK:
            before = random.getstate(), numpy.random.get_state()
            if seed is None and self._random is not None:
                random.setstate(self._random[0])
                numpy.random.set_state(self._random[1])
            else:
                random.seed(seed)
                numpy.random.seed((seed or 0) % 2**32)
            try:
                yield
            finally:
                self._random = random.getstate(), numpy.random.get_state()
                random.setstate(before[0])
                numpy.random.set_state(before[1])
