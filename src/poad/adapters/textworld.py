"""TextWorld games, and ALFWorld's, which run on the same engine."""

import re
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path
from typing import Any, ClassVar, Final

from poad.adapters.packages import needed, without_warnings
from poad.envs import TextAdapter
from poad.errors import ConfigError

KINDS: Final = (".z8", ".ulx", ".tw-pddl")
"""Endings of files with games."""
ALFWORLD: Final = ".tw-pddl"
"""The ending of ALFWorld's games."""
TASK: Final = "Your task is to:"
"""What ALFWorld writes before the goal."""


class TextWorldGame(TextAdapter):
    """TextWorld games: interactive fiction with rooms, things and a quest.

    `textworld:GAME` takes a file that TextWorld has made (`.z8` or `.ulx`), a game of ALFWorld
    (`.tw-pddl`, which also needs the package alfworld), or a pattern for several, such as
    `textworld:games/*.z8`. The seed then picks the game. `tw-make` makes games, for example:
    `tw-make tw-coin_collector --level 5 --seed 1 --output coin.z8`.

    ### Observation
    The prompt holds the objective, the room, what the player carries, and what the last command
    brought about. ALFWorld's games tell the objective and what the last command brought about, so
    the agent needs its earlier turns (`prompt.history=episode`).

    ### Actions
    The commands that the game admits are offered, in alphabetical order. Other commands reach the
    game, too.

    ### Rewards
    The reward is what the command adds to the game's score. The episode is a success if the game is
    won.

    ### Arguments
    * `max_steps`: cut episodes off after so many commands, 100 by default.
    """

    takes_other_actions: ClassVar[bool] = True

    def __init__(self, game: str, /, *, max_steps: int | None = 100) -> None:
        super().__init__(max_steps)
        self._engine = needed("textworld", "textworld", "'poad[textworld]'")
        self.files = _found(game)
        self._demangler: Callable[[], Any] | None = None
        if any(path.suffix == ALFWORLD for path in self.files):
            module = "alfworld.agents.environment.alfred_tw_env"
            install = "'textworld[pddl]' alfworld"
            self._demangler = needed(module, "textworld", install).AlfredDemangler
        self._open: tuple[Path, Any] | None = None
        self._score = 0.0

    def begin(self, seed: int) -> tuple[str, tuple[str, ...]]:
        """Start the game that a seed picks."""
        path = self.files[seed % len(self.files)]
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, self._started(path)
        env = self._open[1]
        env.seed(seed)
        state = env.reset()
        self._score = float(state.get("score") or 0.0)
        self.goal = _objective(state)
        # TextWorld first shows a banner and the objective, and ALFWorld the room.
        said = "" if state.get("description") else _said(state.get("feedback"))
        return self._told(state, said), _offers(state)

    def act(self, action: str) -> tuple[str, tuple[str, ...] | None, float, bool, bool]:
        """Enter a command."""
        assert self._open is not None
        state, score, done = self._open[1].step(action)
        reward, self._score = float(score) - self._score, float(score)
        offers = None if done else _offers(state)
        text = self._told(state, _said(state.get("feedback")))
        return text, offers, reward, bool(done), bool(state.get("won"))

    def close(self) -> None:
        """Close the game that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _started(self, path: Path) -> Any:
        wanted = self._engine.EnvInfos(
            admissible_commands=True,
            objective=True,
            description=True,
            inventory=True,
            won=True,
            feedback=True,
            score=True,
        )
        clear = self._demangler if path.suffix == ALFWORLD else None
        wrappers = [] if clear is None else [clear()]
        with without_warnings():  # that the interpreter knows no walkthrough of the game
            return self._engine.start(str(path), wanted, wrappers=wrappers)

    def _told(self, state: Mapping[str, Any], said: str) -> str:
        """Put the objective, the room, what is carried and the game's answer together."""
        room, carried = _said(state.get("description")), _said(state.get("inventory"))
        told = said if said != room else ""
        parts = (self.goal and f"Objective: {self.goal}", told, room, carried)
        return "\n\n".join([*filter(None, parts), ">"])


def _found(game: str) -> list[Path]:
    """Find the files that a name or a pattern means, in alphabetical order."""
    paths = [Path(found) for found in sorted(glob(str(Path(game).expanduser()), recursive=True))]
    games = [path for path in paths if path.suffix in KINDS and path.is_file()]
    if not games:
        what = "is no game" if paths else "matches no file"
        raise ConfigError(
            f"textworld:{game}: {game!r} {what}. A game is a file that ends in {', '.join(KINDS)}. "
            "To make one: tw-make tw-simple --rewards dense --goal detailed --output game.z8"
        )
    return games


def _said(text: object) -> str:
    """Clean what the game wrote: without the status line behind its prompt, and empty lines."""
    lines = re.split(r"\n>", str(text or ""))[0].strip()
    return re.sub(r"\n{3,}", "\n\n", lines)


def _objective(state: Mapping[str, Any]) -> str | None:
    """Find the goal: TextWorld says it, and ALFWorld writes it into its first text."""
    if state.get("objective"):
        return _said(state["objective"])
    _, found, after = str(state.get("feedback") or "").partition(TASK)
    return after.strip().splitlines()[0].strip() if found and after.strip() else None


def _offers(state: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(set(state.get("admissible_commands") or ())))
