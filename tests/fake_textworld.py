"""The part of TextWorld's API that the adapter uses, as version 1.7 behaves.

A game is a corridor of three rooms; its name decides where the coin lies: `coin2.z8` in the last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOMS = ("attic", "hall", "cellar")
BANNER = "\n\n  $$$$ $$ \n  \\$$$ $$ \n\n"
STATUS = "\n\n>                         -= {} =-{}/{}"


class GameState(dict):
    """A dict whose entries can be read as attributes; what is missing is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


class Game:
    """A game of Inform: the score adds up, and each feedback ends with a status line."""

    def __init__(self, path: str, infos: Any) -> None:
        assert Path(path).is_file(), path
        self.coin, self.infos, self.closed = int(Path(path).stem[-1]), infos, False

    def seed(self, seed: int) -> None:
        assert isinstance(seed, int)

    def reset(self) -> GameState:
        self.room = self.score = self.moves = 0
        return self._state(f"{BANNER}Find the coin.\n\n{self._room()}")

    def step(self, command: str) -> tuple[GameState, int, bool]:
        assert not self.closed
        self.moves += 1
        said = "That's not a verb I recognise."
        ways = {"go down": 1, "go up": -1}
        if command in ("look", "inventory"):
            said = self._room() if command == "look" else "You are carrying nothing."
        elif command in ways and 0 <= self.room + ways[command] < len(ROOMS):
            self.room += ways[command]
            said = self._room()
        elif command == "take coin" and self.room == self.coin:
            self.score, said = 1, "You pick up the coin."
        return self._state(f"\n{said}\n"), self.score, self.score == 1

    def close(self) -> None:
        self.closed = True

    def _room(self) -> str:
        seen = "A coin." if self.room == self.coin else "Dusty."
        return f"-= {ROOMS[self.room].title()} =-\nYou are in the {ROOMS[self.room]}.\n\n\n\n{seen}"

    def _state(self, said: str) -> GameState:
        commands = ["look", "inventory", "look"]  # TextWorld lists some commands twice
        commands += ["go up"] * (self.room > 0) + ["go down"] * (self.room < len(ROOMS) - 1)
        commands += ["take coin"] * (self.room == self.coin)
        told = {
            "objective": "Find the coin.",
            "description": self._room(),
            "inventory": "You are carrying nothing.",
            "admissible_commands": commands,
            "won": self.score == 1,
        }
        asked = {name: value for name, value in told.items() if getattr(self.infos, name)}
        status = STATUS.format(ROOMS[self.room].title(), self.score, self.moves)
        return GameState(feedback=said + status, score=self.score, moves=self.moves, **asked)


class Pddl(Game):
    """ALFWorld's games: no objective, no description, and names that only a wrapper makes clear."""

    def _state(self, said: str) -> GameState:
        commands = sorted({"look", "go to desk_1"} | ({"take coin_1"} if self.room else set()))
        state = GameState(feedback=said, score=self.score, won=self.score == 1)
        return GameState(state, admissible_commands=commands)

    def reset(self) -> GameState:
        super().reset()
        return self._state("You are in a room.\n\nYour task is to: find the coin_1.")

    def step(self, command: str) -> tuple[GameState, int, bool]:
        self.room = int(self.room or command == "go to desk_1")
        self.score = int(command == "take coin_1" and self.room)
        return self._state(f"You {command}."), self.score, self.score == 1


class Demangler:
    """ALFWorld's wrapper, which writes `coin 1` for `coin_1`."""

    def __call__(self, game: Game) -> Demangler:
        self.game = game
        return self

    def seed(self, seed: int) -> None:
        self.game.seed(seed)

    def reset(self) -> GameState:
        return self._clear(self.game.reset())

    def step(self, command: str) -> tuple[GameState, int, bool]:
        state, score, done = self.game.step(command.replace(" 1", "_1"))
        return self._clear(state), score, done

    def close(self) -> None:
        self.game.close()

    def _clear(self, state: GameState) -> GameState:
        commands = [each.replace("_1", " 1") for each in state["admissible_commands"]]
        feedback = state["feedback"].replace("_1", " 1")
        return GameState(state, feedback=feedback, admissible_commands=commands)


class EnvInfos:
    """What a game is asked to tell; everything else stays out of its states."""

    def __init__(self, **wanted: bool) -> None:
        self.wanted = wanted

    def __getattr__(self, name: str) -> bool:
        return self.wanted.get(name, False)


def start(path: str, request_infos: EnvInfos, wrappers: Sequence[Callable[[Any], Any]] = ()) -> Any:
    game: Any = (Pddl if path.endswith(".tw-pddl") else Game)(path, request_infos)
    for wrapper in wrappers:
        game = wrapper(game)
    return game


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import textworld` and ALFWorld's wrapper find this file."""
    engine = ModuleType("textworld")
    engine.EnvInfos, engine.start = EnvInfos, start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "textworld", engine)
    *above, module = (
        "alfworld",
        "alfworld.agents",
        "alfworld.agents.environment",
        ("alfworld.agents.environment.alfred_tw_env"),
    )
    for name in (*above, module):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[module].AlfredDemangler = Demangler  # type: ignore[attr-defined]
