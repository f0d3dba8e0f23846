"""TextArena's single-player games, against the package."""

from __future__ import annotations

import random

import numpy
import pytest

pytest.importorskip("textarena", reason="textarena: needs textarena (poad[textarena])")

from poad.envs import check_env, make
from poad.errors import ConfigError

SOKOBAN = "textarena:Sokoban-v0"
MOVES = ["[up]", "[down]", "[left]", "[right]"]


GAMES = [("Sokoban-v0", 1), ("LightsOut-v0", 4), ("GuessTheNumber-v0", 4), ("2048-v0", 4)]


@pytest.mark.parametrize(("game", "episodes"), GAMES)
def test_games_keep_the_contract(game: str, episodes: int) -> None:
    check_env(lambda: make(f"textarena:{game}", max_steps=12), episodes=episodes)
    check_env(lambda: make(f"textarena:{game}", choices=MOVES, max_steps=12), episodes=1)


def test_a_reset_forgets_the_episode_before() -> None:
    world = make(SOKOBAN)
    first, info = world.reset(seed=3)
    assert info == {}
    assert "√" in first
    world.step("[down]")
    assert world.reset(seed=3)[0] == first
    assert world.reset(seed=4)[0] != first


def test_the_random_state_of_the_process_is_left_alone() -> None:
    random.seed(5)
    numpy.random.seed(5)
    expected = [random.random() for _ in range(3)], numpy.random.random()
    random.seed(5)
    numpy.random.seed(5)
    seen = []
    for _ in range(3):
        world = make("textarena:Bandit-v0")
        world.reset(seed=1)
        world.step("[red]")
        seen.append(random.random())
    assert (seen, numpy.random.random()) == expected


def test_games_in_turns_do_not_disturb_each_other() -> None:
    def play(worlds: list, turns: int) -> list[list[str]]:
        shown = [[world.reset(seed=9)[0]] for world in worlds]
        for _ in range(turns):
            for texts, world in zip(shown, worlds, strict=True):
                texts.append(world.step("[red]")[0])
        return shown

    alone = play([make("textarena:Bandit-v0")], 6)
    assert play([make("textarena:Bandit-v0") for _ in range(3)], 6) == alone * 3


def test_a_bracket_that_a_stop_text_took_is_put_back() -> None:
    one, other = make("textarena:GuessTheNumber-v0"), make("textarena:GuessTheNumber-v0")
    one.reset(seed=0)
    other.reset(seed=0)
    assert one.step("I guess [7") == other.step("I guess [7]")
    assert "invalid_action" not in one.step("[8]")[-1]
    assert one.step("eight")[-1]["invalid_action"] == "eight"


def test_a_solved_game_is_a_success_and_a_wrong_end_is_none() -> None:
    world = make("textarena:GuessTheNumber-v0")
    for seed in range(3):
        world.reset(seed=seed)
        low, high = 1, 20
        while True:
            guess = (low + high) // 2
            text, reward, terminated, _, info = world.step(f"[{guess}]")
            if terminated:
                break
            hint = text.rpartition("[GAME]")[2]
            low, high = (guess + 1, high) if "higher" in hint else (low, guess - 1)
        assert reward == 1.0
        assert info["episode"]["success"] is True
    world.reset(seed=0)
    world.step("what?")
    *_, reward, terminated, _, info = world.step("what?")
    assert terminated
    assert float(reward) < 1
    assert info["episode"]["success"] is False


@pytest.mark.parametrize(
    ("game", "arguments", "told"),
    [
        ("TicTacToe-v0", {}, "is a game for several players"),
        ("Wordle-v0", {}, "needs data of NLTK"),
        ("TwentyQuestions-v0", {}, "asks a language model over the network"),
        ("Sokobn-v0", {}, "no game 'Sokobn-v0'. Did you mean 'Sokoban-v0'"),
        ("Sokoban-v0", {"choices": [["up"], ["down"]]}, r"'choices=\[\"\[up\]\", \"\[down\]\"\]'"),
        ("Sokoban-v0", {"choices": []}, "list of distinct texts"),
        ("Sokoban-v0", {"dimm": 6}, "unexpected keyword argument 'dimm'"),
    ],
)
def test_what_cannot_be_played_is_told_in_a_sentence(
    game: str, arguments: dict, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ConfigError, match=told):
        make(f"textarena:{game}", **arguments)
