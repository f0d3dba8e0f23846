"""TextWorld's games, against a fake of the package, and against the package where it is."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import warnings
from pathlib import Path

import fake_textworld
import pytest

from poad.envs import check_env, make
from poad.errors import ConfigError

FOUND = importlib.util.find_spec("textworld") is not None


@pytest.fixture
def games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with games of the fake."""
    fake_textworld.install(monkeypatch)
    for name in ("coin0.z8", "coin1.ulx", "coin2.z8", "task1.tw-pddl", "coin2.json"):
        (tmp_path / name).write_text("a game")
    return tmp_path


def test_an_episode_of_a_game(games: Path) -> None:
    world = make(f"textworld:{games}/coin1.ulx")
    prompt, info = world.reset(seed=0)
    assert prompt == (
        "Objective: Find the coin.\n\n-= Attic =-\nYou are in the attic.\n\nDusty.\n\n"
        "You are carrying nothing.\n\n>"
    )
    assert info == {
        "goal": "Find the coin.",
        "admissible_actions": ("go down", "inventory", "look"),
    }
    prompt, reward, *flags, info = world.step("go down")
    assert "-= Hall =-" in prompt
    assert prompt.count("You are in the hall.") == 1  # the answer is the room
    assert info["admissible_actions"] == ("go down", "go up", "inventory", "look", "take coin")
    assert (reward, flags) == (0.0, [False, False])
    text, *_, info = world.step("dance")  # the game hears it
    assert "That's not a verb I recognise." in text
    assert "=-0/" not in text
    assert info["invalid_action"] == "dance"
    text, reward, terminated, _, info = world.step("take coin")
    assert "You pick up the coin." in text
    assert (reward, terminated) == (1.0, True)
    assert info["episode"] == {"r": 1.0, "l": 3, "success": True}
    # The score begins anew, so nothing is paid twice or taken back.
    world.reset(seed=0)
    assert world.step("look")[1] == 0.0
    world.close()


def test_games_keep_the_contract(games: Path) -> None:
    for name in ("coin0.z8", "*.z8", "coin*"):
        check_env(lambda name=name: make(f"textworld:{games}/{name}", max_steps=9), episodes=6)
    # ALFWorld shows what a command brought about, and nothing else.
    check_env(lambda: make(f"textworld:{games}/*.tw-pddl", max_steps=9), aliased=True)


def test_the_seed_picks_the_game(games: Path) -> None:
    world = make(f"textworld:{games}/coin*")  # three of the files are games
    for seed in (0, 1, 2, 3, 5):
        world.reset(seed=seed)
        path = seed % 3
        for _ in range(path):
            assert "episode" not in world.step("go down")[-1]
        assert world.step("take coin")[-1]["episode"] == {"r": 1.0, "l": path + 1, "success": True}


def test_alfworlds_goal_is_the_line_after_its_words(games: Path) -> None:
    world = make(f"textworld:{games}/*.tw-pddl")
    prompt, info = world.reset(seed=0)
    assert info["goal"] == "find the coin 1."
    assert info["admissible_actions"] == ("go to desk 1", "look")
    assert prompt.startswith("Objective: find the coin 1.\n\nYou are in a room.")
    text, *_, info = world.step("go to desk 1")
    assert text == "Objective: find the coin 1.\n\nYou go to desk 1.\n\n>"
    *_, info = world.step("take coin 1")
    assert info["episode"] == {"r": 1.0, "l": 2, "success": True}


def test_files_that_are_no_games_are_told(games: Path) -> None:
    for name, told in (
        ("nothing.z8", "matches no file"),
        ("*.json", "is no game. A game is a file that ends in .z8, .ulx, .tw-pddl"),
    ):
        with pytest.raises(ConfigError, match=told):
            make(f"textworld:{games}/{name}")


@pytest.mark.parametrize("package", ["textworld", "alfworld"])
def test_a_missing_package_is_told_with_its_command(
    games: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "alfworld.agents.environment.alfred_tw_env")
    install = {"textworld": "'poad[textworld]'", "alfworld": "'textworld[pddl]' alfworld"}[package]
    with pytest.raises(ConfigError) as caught:
        make(f"textworld:{games}/task1.tw-pddl")
    assert str(caught.value) == (
        f"textworld: needs the package {package}, which is not installed. Install it with: "
        f"pip install {install}"
    )


@pytest.fixture(scope="session")
def coin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A game of the real package, which takes some seconds to make."""
    if not FOUND:
        pytest.skip("textworld is not installed (pip install 'poad[textworld]')")
    import textworld  # pyright: ignore[reportMissingImports]
    from textworld.challenges import coin_collector  # pyright: ignore[reportMissingImports]

    options = textworld.GameOptions()
    options.seeds = 1
    options.path = str(tmp_path_factory.mktemp("games") / "coin.z8")
    game = coin_collector.make({"level": 3}, options)
    return Path(textworld.generator.compile_game(game, options))


def test_a_real_game_is_won_by_its_walkthrough(coin: Path) -> None:
    (walkthrough,) = [
        quest["commands"]
        for quest in json.loads(coin.with_suffix(".json").read_text())["quests"]
        if quest["commands"]
    ]
    world = make(f"textworld:{coin}")
    prompt, info = world.reset(seed=0)
    assert info["goal"] in prompt
    assert "$$" not in prompt
    paid, terminated = [], False
    for command in walkthrough:
        assert command in info["admissible_actions"]
        prompt, reward, terminated, _, info = world.step(command)
        assert info["goal"] in prompt
        assert "=-0/" not in prompt
        paid.append(reward)
    assert terminated
    assert sum(paid) == 1.0 == info["episode"]["r"]
    assert info["episode"]["success"] is True
    world.close()


def test_a_real_game_keeps_the_contract(coin: Path) -> None:
    check_env(lambda: make(f"textworld:{coin}", max_steps=20), episodes=3)


def test_the_fake_answers_like_the_real_package(coin: Path, games: Path) -> None:
    """The same keys and types, where the adapter reads them."""
    fake = fake_textworld.start(str(games / "coin2.z8"), fake_textworld.EnvInfos(**WANTED))
    del sys.modules["textworld"]
    import textworld  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = textworld.start(str(coin), textworld.EnvInfos(**WANTED))
    rng = random.Random(0)
    states = []
    for game in (fake, real):
        game.seed(3)
        state = game.reset()
        seen = [{name: type(state.get(name)) for name in (*WANTED, "feedback")}]
        for _ in range(6):
            state, score, done = game.step(rng.choice(["look", "sing"]))
            seen.append({name: type(state.get(name)) for name in (*WANTED, "feedback")})
            assert "\n>" in state["feedback"]
            assert (type(score), type(done)) == (int, bool)
        states.append(seen)
        game.close()
    assert states[0] == states[1]


WANTED = {
    "admissible_commands": True,
    "objective": True,
    "description": True,
    "inventory": True,
    "won": True,
}
