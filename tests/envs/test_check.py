"""`check_env` passes our worlds and catches every rule that a world can break."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from gymnasium.wrappers import Autoreset
from sandbox_here import WHY_NOT

import poad.envs.registry
from poad.envs.check import NOT_OFFERED, RULES, check_env
from poad.envs.registry import known_worlds
from poad.errors import WorldError


class Corridor(gymnasium.Env[str, str]):
    """Walk two rooms on. The tests below break it, one rule at a time."""

    def __init__(self) -> None:
        self.observation_space = Text(20, charset="room 0123")
        self.action_space = Text(20, charset="abcdefghijklmnopqrstuvwxyz ")
        self.room, self.turns, self.running = 0, 0, False

    def prompt(self) -> str:
        return f"room {self.room}"

    def offered(self) -> Any:
        return ("walk", "wait")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.room, self.turns, self.running = 0, 0, True
        return self.prompt(), {"admissible_actions": self.offered()}

    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        if not self.running:
            raise ResetNeeded("reset first")
        self.turns += 1
        self.room += action == "walk"
        terminated, truncated = self.room == 2, self.turns == 6 and self.room < 2
        self.running = not (terminated or truncated)
        info: dict[str, Any] = {"admissible_actions": self.offered(), "duration": 1}
        if action not in ("walk", "wait"):
            info["invalid_action"] = action
        if not self.running:
            info["episode"] = {"r": float(terminated), "l": self.turns, "success": terminated}
        return self.prompt(), float(terminated), terminated, truncated, info


class PatchedInfo(Corridor):
    """Changes the info of every step."""

    def patch(self, info: dict[str, Any]) -> None: ...

    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        result = super().step(action)
        self.patch(result[4])
        return result


class DependsOnTheCopy(Corridor):
    copies = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.copy = next(self.copies)

    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        prompt, _, *rest, info = super().step(action)
        return prompt, float(self.copy), *rest, info


class CarriesOver(Corridor):
    episodes = 0

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        self.episodes += 1
        return super().reset(**kwargs)

    def prompt(self) -> str:
        return f"room {self.room}" + " " * (self.episodes % 3)


class OffersNothing(Corridor):
    def offered(self) -> Any:
        return ()


class OffersAList(Corridor):
    def offered(self) -> Any:
        return ["walk", "wait"]


class OffersTwice(Corridor):
    def offered(self) -> Any:
        return ("walk", "walk")


class OffersByTime(Corridor):
    def offered(self) -> Any:
        return ("walk", "wait") if self.turns % 2 else ("wait", "walk")


class OffersOutsideTheSpace(Corridor):
    def offered(self) -> Any:
        return ("walk", "wait", "WAIT")


class PromptOutsideTheSpace(Corridor):
    def prompt(self) -> str:
        return f"Room {self.room}"


class PaysAnInt(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        prompt, _, *rest, info = super().step(action)
        return prompt, 1, *rest, info


class PaysInfinity(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        prompt, _, *rest, info = super().step(action)
        return prompt, float("inf"), *rest, info


class EndsBothWays(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        prompt, reward, terminated, truncated, info = super().step(action)
        return prompt, reward, terminated, truncated or terminated, info


class FlagsAreInts(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        prompt, reward, terminated, truncated, info = super().step(action)
        return prompt, reward, int(terminated), int(truncated), info


class TakesNoTime(PatchedInfo):
    def patch(self, info: dict[str, Any]) -> None:
        info["duration"] = 0


class TakesHalfAStep(PatchedInfo):
    def patch(self, info: dict[str, Any]) -> None:
        info["duration"] = 1.5


class NoEpisode(PatchedInfo):
    def patch(self, info: dict[str, Any]) -> None:
        info.pop("episode", None)


class EpisodeWithoutSuccess(PatchedInfo):
    def patch(self, info: dict[str, Any]) -> None:
        if "episode" in info:
            del info["episode"]["success"]


class EpisodeTooEarly(PatchedInfo):
    def patch(self, info: dict[str, Any]) -> None:
        info.setdefault("episode", {"r": 0.0, "l": 1, "success": False})


class EpisodeAtReset(Corridor):
    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        prompt, info = super().reset(**kwargs)
        return prompt, info | {"episode": {"r": 0.0, "l": 1, "success": False}}


class RaisesWhenInvalid(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        if self.running and action not in self.offered():
            raise KeyError(action)
        return super().step(action)


class HidesInvalid(PatchedInfo):
    def patch(self, info: dict[str, Any]) -> None:
        info.pop("invalid_action", None)


class CallsAllInvalid(PatchedInfo):
    def patch(self, info: dict[str, Any]) -> None:
        info.setdefault("invalid_action", "walk")


class RaisesWhenWalking(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        if action == "walk":
            raise OSError("the floor is wet")
        return super().step(action)


class GoesOnAfterTheEnd(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        self.running = self.running or self.turns > 0
        return super().step(action)


class StartsWithoutReset(Corridor):
    def __init__(self) -> None:
        super().__init__()
        self.running = True


class FailsStrangelyAfterTheEnd(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        if not self.running:
            raise IndexError("list index out of range")
        return super().step(action)


class NeverEnds(Corridor):
    def step(self, action: str) -> tuple[str, Any, Any, Any, dict[str, Any]]:
        self.room = self.turns = 0
        return super().step("wait" if action == "walk" else action)


BROKEN = {
    DependsOnTheCopy: "equal seed and actions give equal episodes",
    CarriesOver: "equal seed and actions give equal episodes",
    OffersNothing: "offered actions are a non-empty tuple without repeats",
    OffersAList: "offered actions are a non-empty tuple without repeats",
    OffersTwice: "offered actions are a non-empty tuple without repeats",
    OffersByTime: "offered actions are a function of the prompt, unless aliased=True",
    OffersOutsideTheSpace: "offered actions lie in action_space",
    PromptOutsideTheSpace: "prompts lie in observation_space",
    PaysAnInt: "rewards are finite floats",
    PaysInfinity: "rewards are finite floats",
    EndsBothWays: "terminated and truncated are bools, never both True",
    FlagsAreInts: "terminated and truncated are bools, never both True",
    TakesNoTime: "info['duration'] is an int from 1",
    TakesHalfAStep: "info['duration'] is an int from 1",
    NoEpisode: "the last step has info['episode']: r (float), l (int), success (bool)",
    EpisodeWithoutSuccess: "the last step has info['episode']: r (float), l (int), success (bool)",
    EpisodeTooEarly: "info['episode'] is absent before the last step",
    EpisodeAtReset: "info['episode'] is absent before the last step",
    RaisesWhenInvalid: (
        "a string that is not offered becomes info['invalid_action'], not an exception"
    ),
    HidesInvalid: "a string that is not offered becomes info['invalid_action'], not an exception",
    CallsAllInvalid: "offered actions are valid",
    RaisesWhenWalking: "reset and step do not raise",
    GoesOnAfterTheEnd: "a step after the end of an episode raises ResetNeeded",
    StartsWithoutReset: "a step before the first reset raises ResetNeeded",
    FailsStrangelyAfterTheEnd: "a step after the end of an episode raises ResetNeeded",
    NeverEnds: "episodes end",
}


def test_a_sound_world_passes_as_a_function_and_as_an_open_world():
    check_env(Corridor)
    check_env(Corridor())


@pytest.mark.parametrize("world", BROKEN, ids=lambda world: world.__name__)
def test_a_broken_world_is_caught(world: type[Corridor]):
    with pytest.raises(WorldError) as caught:
        check_env(world, max_turns=30)
    rule = BROKEN[world]
    assert rule in caught.value.findings
    assert f"- {rule}\n    seen: " in str(caught.value)
    assert f"\n    fix:  {RULES[rule]}" in str(caught.value)


def test_a_world_that_never_begins_breaks_one_rule():
    class NeverBegins(Corridor):
        def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
            raise OSError("the key is lost")

    with pytest.raises(WorldError) as caught:
        check_env(NeverBegins)
    assert [*caught.value.findings] == ["reset and step do not raise"]


def test_every_rule_but_that_about_torch_is_broken_by_a_world_above():
    assert set(BROKEN.values()) == set(RULES) - {"a world does not import torch"}


def test_a_world_that_resets_itself_is_caught():
    with pytest.raises(WorldError, match="a step after the end of an episode raises ResetNeeded"):
        check_env(lambda: Autoreset(Corridor()))


def test_an_open_world_is_compared_with_itself():
    with pytest.raises(WorldError, match="equal seed and actions give equal episodes"):
        check_env(CarriesOver())


def test_all_findings_come_in_one_error():
    class Twice(PaysAnInt, PromptOutsideTheSpace):
        pass

    with pytest.raises(WorldError) as caught:
        check_env(Twice)
    assert set(caught.value.findings) == {
        "rewards are finite floats",
        "prompts lie in observation_space",
    }


def test_an_exception_of_the_world_is_kept_as_the_cause():
    with pytest.raises(WorldError) as caught:
        check_env(RaisesWhenWalking)
    assert isinstance(caught.value.__cause__, OSError)


def test_aliased_worlds_may_offer_actions_by_hidden_state_and_it_is_reported():
    (said,) = check_env(OffersByTime, aliased=True)
    assert said.startswith(
        "allowed by aliased=True: offered actions are not a function of the prompt"
    )
    assert "('walk', 'wait')" in said
    assert "('wait', 'walk')" in said
    assert check_env(Corridor, aliased=True) == check_env(Corridor) == ()


def test_a_world_without_offered_actions_passes():
    class Free(PatchedInfo):
        def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
            return super().reset(**kwargs)[0], {}

        def patch(self, info: dict[str, Any]) -> None:
            del info["admissible_actions"]
            info.pop("invalid_action", None)

    check_env(Free)


def test_the_test_string_is_not_offered():
    assert NOT_OFFERED not in ("walk", "wait")


def python(code: str) -> "subprocess.CompletedProcess[str]":
    source = str(Path(poad.envs.__file__).parents[2])
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import sys; sys.path.insert(0, {source!r})\n{code}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_making_and_checking_our_worlds_loads_no_torch():
    playable = [e for e, _ in known_worlds() if e != "poad/DataScience-v0" or not WHY_NOT]
    done = python(
        "import poad.envs, poad.envs.check\n"
        f"for env_id in {playable}:\n"
        "    poad.envs.check.check_env(env_id, aliased='Sparse' in env_id, episodes=1)\n"
        "assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_a_world_that_imports_torch_is_caught(tmp_path: Path):
    (tmp_path / "torch.py").write_text("")  # stands in for the real one
    done = python(
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from poad.envs import make\n"
        "from poad.envs.check import check_env\n"
        "def world():\n"
        "    import torch\n"
        "    return make('poad/TomatoSalad-v0')\n"
        "check_env(world)"
    )
    assert "a world does not import torch" in done.stderr
