"""OpenEnv servers as text worlds, against a server on loopback."""

from __future__ import annotations

import socket
from typing import Any

import pytest

pytest.importorskip("websockets", reason="openenv: needs websockets (poad[openenv])")

from fake_openenv import Guess, serving

from poad.envs import CheckedWorld, check_env, make
from poad.errors import ConfigError, WorldError


def test_an_episode_is_the_servers() -> None:
    with serving() as url:
        world = make(f"openenv:{url}")
        assert world.reset(seed=4) == ("Guess a number from 1 to 3.", {})
        assert world.step("1") == ("Higher.", 0.0, False, False, {})
        end = {"r": 1.0, "l": 2, "success": True}
        assert world.step("2") == ("Yes.", 1.0, True, False, {"episode": end})
        assert world.reset(seed=5)[0] == "Guess a number from 1 to 3."
        world.close()


def test_the_contract_is_kept_and_each_copy_has_a_session_of_its_own() -> None:
    with serving() as url:
        check_env(lambda: make(f"openenv:{url}/", max_steps=4))
        check_env(lambda: make(f"openenv:{url.replace('http', 'ws')}/ws", legal="moves"))
        first, second = make(f"openenv:{url}"), make(f"openenv:{url}")
        first.reset(seed=0)
        second.reset(seed=2)
        assert [world.step("2")[0] for world in (first, second)] == ["Lower.", "Higher."]
        first.close()
        second.close()


def test_the_limit_is_ours() -> None:
    with serving() as url:
        world = make(f"openenv:{url}", max_steps=2)
        world.reset(seed=2)
        world.step("1")
        *_, terminated, truncated, info = world.step("1")
        assert (terminated, truncated) == (False, True)
        assert info["episode"] == {"r": 0.0, "l": 2, "success": False}
        world.close()


def test_offers_and_texts_are_fields_that_the_user_names() -> None:
    with serving() as url:
        world = make(f"openenv:{url}", legal="moves")
        _, info = world.reset(seed=0)
        assert info["admissible_actions"] == ("1", "2", "3")
        *_, info = world.step("17")
        assert info["invalid_action"] == "17"
        world.close()
        for arguments, told in (
            ({"text": "txt"}, "has no text in 'txt'. Its fields are result, moves, metadata"),
            ({"legal": "offers"}, "has no field 'offers'"),
        ):
            world = CheckedWorld(make(f"openenv:{url}", **arguments))
            with pytest.raises(WorldError, match=told):
                world.reset(0)
            world.close()


def test_an_action_that_the_server_does_not_take_is_the_agents_mistake() -> None:
    with serving() as url:
        world = make(f"openenv:{url}")
        world.reset(seed=0)
        text, *_, info = world.step("seven")
        assert "not a whole number" in text
        assert info == {"invalid_action": "seven"}
        assert world.step("1")[0] == "Yes."
        world.close()


def test_actions_of_several_fields_are_json() -> None:
    class Two(Guess):
        def step(self, action: dict[str, Any]) -> dict[str, Any]:
            return super().step({"guess": action["row"] + action["column"]})

    with serving(Two, required=("row", "column")) as url:
        world = make(f"openenv:{url}")
        world.reset(seed=2)
        for action in ("3", "three", "[1, 2]"):
            text, *_, info = world.step(action)
            assert "Write JSON with row, column." in text
            assert info["invalid_action"] == action
        assert world.step('{"row": 1, "column": 2}')[0] == "Yes."
        world.close()


def test_a_server_without_a_schema_needs_the_name_of_the_field() -> None:
    with serving(required=None) as url:
        with pytest.raises(ConfigError, match=r"answers 404 to GET .*field=NAME"):
            make(f"openenv:{url}")
        world = make(f"openenv:{url}", field="guess")
        world.reset(seed=0)
        assert world.step("1")[0] == "Yes."
        world.close()


def test_nobody_there_is_one_sentence() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConfigError, match=r"No OpenEnv server answers at .*refused"):
            make(f"openenv:http://127.0.0.1:{port}")
    for odd in ("ftp://somewhere", "http://"):
        with pytest.raises(ConfigError, match="is no address of an OpenEnv server"):
            make(f"openenv:{odd}")


def test_a_server_that_fails_or_is_full_or_gone_is_told_with_the_place() -> None:
    class Broken(Guess):
        def step(self, action: dict[str, Any]) -> dict[str, Any]:
            raise OSError("the dice fell under the table")

    with serving(Broken, capacity=1) as url:
        world = CheckedWorld(make(f"openenv:{url}"))
        world.reset(3)
        with pytest.raises(WorldError, match=r"dice.*legal=moves\..*seed 3, action 1 \('1'\)"):
            world.step("1")
        second = CheckedWorld(make(f"openenv:{url}"))
        with pytest.raises(WorldError, match="larger max_concurrent_envs"):
            second.reset(0)
        second.close()
    with pytest.raises(WorldError, match="closed the connection"):
        world.reset(0)
    world.close()


def test_an_answer_that_does_not_come_is_waited_for_so_long() -> None:
    import time

    class Slow(Guess):
        def step(self, action: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.5)
            return super().step(action)

    with serving(Slow) as url:
        world = make(f"openenv:{url}", timeout=0.05)
        world.reset(seed=0)
        with pytest.raises(WorldError, match=r"has not answered a step for 0\.05 s"):
            world.step("1")
        with pytest.raises(WorldError, match="closed the connection"):  # no late answer is taken
            world.reset(seed=0)
        world.close()
