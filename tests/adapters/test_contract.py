"""What holds for the worlds of every scheme."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_textworld
import pytest
from fake_openenv import serving

import poad.adapters
from poad.envs import (
    CheckedWorld,
    TextAdapter,
    check_env,
    docstring_of,
    free_text_of,
    known_schemes,
    make,
    manual_of_adapter,
    same_class,
    split_scheme,
    world_arguments,
)
from poad.envs.registry import full_name
from poad.envs.schemes import SCHEMES
from poad.errors import ConfigError

NEEDS = {"openenv": "websockets", "babyai": "minigrid", "textarena": "textarena"}
USERS = """
class World:
    def reset(self, seed):
        self.at = seed % 3
        return f"You are at {self.at}."
    def step(self, action):
        self.at -= action == "a"
        return f"You are at {self.at}.", 1.0, self.at <= 0, False, {}

class Tools:
    done = False
    def reset(self):
        self.done = False
        return "Stop."
    def stop(self) -> str:
        self.done = True
        return "Stopped."
    def get_reward(self) -> float:
        return float(self.done)
"""


@contextmanager
def name_of(scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a world of a scheme, while it can be opened here."""
    if scheme in NEEDS:
        needed = NEEDS[scheme]
        pytest.importorskip(needed, reason=f"{scheme}: needs {needed} (poad[{scheme}])")
    names = {
        "gymnasium": "gymnasium:FrozenLake-v1",
        "object": "object:users_worlds:World",
        "tools": "tools:users_worlds:Tools",
        "textworld": f"textworld:{folder}/*.z8",
        "babyai": "babyai:BabyAI-GoToRedBallNoDists-v0",
        "textarena": "textarena:GuessTheNumber-v0",
    }
    (folder / "users_worlds.py").write_text(USERS)
    (folder / "coin2.z8").write_text("a game")
    monkeypatch.syspath_prepend(folder)
    if scheme == "textworld":
        fake_textworld.install(monkeypatch)
    if scheme == "openenv":
        with serving() as url:
            yield f"openenv:{url}"
    else:
        yield names[scheme]
    sys.modules.pop("users_worlds", None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_worlds_of_a_scheme_keep_the_contract(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with name_of(scheme, tmp_path, monkeypatch) as name:
        check_env(lambda: make(name, max_steps=15), episodes=5)
        world = make(name, max_steps=2)
        assert full_name(world) == name == CheckedWorld(world).name
        assert same_class(name, name)
        assert docstring_of(world)
        assert isinstance(world.unwrapped, TextAdapter)
        manual = manual_of_adapter(world) or docstring_of(world) or ""
        assert all(f"`{argument}`" in manual for argument in world_arguments(name))
        assert free_text_of(name).max_tokens > 0
        world.reset(seed=0)
        lengths = []
        for seed in range(3):
            _, info = world.reset(seed=seed)
            while "episode" not in info:
                offered = info.get("admissible_actions", ("nothing",))
                *_, info = world.step(offered[0])
            lengths.append(info["episode"]["l"])
        assert max(lengths) <= 2
        world.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_has_its_adapter_an_example_and_a_summary(scheme: str) -> None:
    row = SCHEMES[scheme]
    module, _, name = row.entry_point.partition(":")
    assert module == "poad.adapters"
    assert name in poad.adapters.__all__
    assert split_scheme(row.example) == (row, row.example.partition(":")[2])
    assert (row.example, row.summary) in known_schemes()
    assert row.shown.startswith(f"{scheme}:")


def test_packages_are_imported_when_a_world_needs_them_and_not_before() -> None:
    heavy = ("minigrid", "textarena", "textworld", "websockets", "torch", "transformers")
    code = (
        "import sys, poad.envs\n"
        "assert 'poad.adapters' not in sys.modules\n"
        "poad.envs.world_arguments('babyai:Nothing')\n"
        "assert 'poad.adapters' in sys.modules\n"
        f"assert not [each for each in {heavy} if each in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("babyai:BabyAI-GoTo-v0", "minigrid", "minigrid"),
        ("textarena:Sokoban-v0", "textarena", "textarena"),
        ("openenv:http://localhost:1", "websockets", "openenv"),
        ("textworld:coin.z8", "textworld", "textworld"),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        make(name)
    assert str(caught.value) == (
        f"{name.partition(':')[0]}: needs the package {package}, which is not installed. Install "
        f"it with: pip install 'poad[{extra}]'"
    )
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f"\n{extra} = [" in text


def test_a_name_near_a_scheme_is_asked_about() -> None:
    with pytest.raises(ConfigError, match=r"Cannot import 'babyia'.*Did you mean 'babyai:'"):
        make("babyia:BabyAI-GoTo-v0")
    with pytest.raises(ConfigError, match=r"no world 'babyai'\. Did you mean 'babyai:LEVEL'"):
        make("babyai")


def test_a_module_that_is_called_like_a_scheme_is_told_to_take_another_name() -> None:
    with pytest.raises(ConfigError, match="give it another name than 'tools'"):
        make("tools:MyWorld-v0")


def test_worlds_of_a_scheme_share_their_words_only_where_they_do() -> None:
    assert same_class("babyai:One", "babyai:Other")
    assert not same_class("gymnasium:One", "gymnasium:Other")
    assert not same_class("gymnasium:One", "object:a:One")
    assert not same_class("gymnasium:One", "poad/TomatoSalad-v0")
