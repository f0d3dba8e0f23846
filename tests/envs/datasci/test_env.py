"""Data-science coding as an environment: tries, endings, info, and what copies share."""

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from in_process import InProcess
from sandbox_here import needs_sandbox

from poad.envs import CheckedWorld
from poad.envs.check import check_env
from poad.envs.datasci import env as module
from poad.envs.datasci.env import DataScienceEnv
from poad.envs.datasci.text import CHARACTERS, program, prompt
from poad.envs.registry import free_text_of, make, world_arguments
from poad.errors import DataError

NAME = "poad/DataScience-v0"
FIRST = prompt("balance scale", 125, 4, 3)
GOOD = "from sklearn.naive_bayes import GaussianNB\n    model = GaussianNB().fit(x_train, y_train)"
BAD = "model = GaussianNB()"


class Fake(InProcess):
    """Stands in for a sandbox, and knows whether it was closed."""

    made: list["Fake"]

    def __init__(self, **arguments: object) -> None:
        super().__init__()
        self.arguments, self.notes, self.closed = arguments, ("no Landlock",), 0
        self.made.append(self)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fake]]:
    """No real sandbox; the ones that were asked for instead."""
    gc.collect()  # copies that other tests dropped leave now
    assert module._SHARED == {}
    monkeypatch.setattr(module, "Sandbox", Fake)
    Fake.made = []
    yield Fake.made
    gc.collect()
    assert module._SHARED == {}


def opened(**arguments: Any) -> DataScienceEnv:
    env = cast(DataScienceEnv, make(NAME, **arguments).unwrapped)
    env.reset(seed=0)
    return env


def test_a_program_that_runs_is_rewarded_by_its_score_and_ends_the_episode(made: list[Fake]):
    env = opened()
    again, reward, terminated, truncated, info = env.step(GOOD)
    assert again == FIRST
    assert reward == pytest.approx(0.774, abs=0.0005)
    assert (terminated, truncated) == (True, False)
    assert info == {
        "duration": 1,
        "status": "ok",
        "error": "",
        "score": reward,
        "deviation": info["deviation"],
        "scores": info["scores"],
        "seconds": 0.5,
        "cpu_seconds": 0.25,
        "measures": {"executable": 1.0, "score": reward},
        "work": {
            "file": "best_program.py",
            "text": program(GOOD),
            "score": reward,
            "deviation": info["deviation"],
        },
        "episode": {"r": reward, "l": 1, "success": True},
    }
    assert len(info["scores"]) == 5
    assert 0 < info["deviation"] < 0.1


def test_a_failure_is_shown_with_its_error_and_may_be_corrected(made: list[Fake]):
    env = opened()
    shown, reward, terminated, truncated, info = env.step(BAD)
    assert (reward, terminated, truncated) == (-1.0, False, False)
    error = "NameError: name 'GaussianNB' is not defined"
    assert shown == prompt("balance scale", 125, 4, 3, (BAD, error))
    assert info == {
        "duration": 1,
        "status": "error",
        "error": error,
        "score": None,
        "deviation": 0.0,
        "scores": (),
        "seconds": 0.5,
        "cpu_seconds": 0.25,
        "measures": {"executable": 0.0},
    }
    again, reward, terminated, _, info = env.step(GOOD)
    assert (again, terminated) == (FIRST, True)
    assert info["episode"] == {"r": pytest.approx(reward - 1, abs=1e-12), "l": 2, "success": True}


@pytest.mark.parametrize("tries", [1, 3, 5])
def test_the_last_failure_truncates_and_still_shows_its_error(made: list[Fake], tries: int):
    env = opened(tries=tries)
    for _ in range(tries - 1):
        assert env.step(BAD)[2:4] == (False, False)
    shown, reward, terminated, truncated, info = env.step(BAD)
    assert (reward, terminated, truncated) == (-1.0, False, True)
    assert info["episode"] == {"r": -float(tries), "l": tries, "success": False}
    assert "# NameError" in shown


def test_the_last_try_may_succeed(made: list[Fake]):
    env = opened(tries=2)
    env.step(BAD)
    assert env.step(GOOD)[2:4] == (True, False)


def test_a_reset_forgets_the_last_episode(made: list[Fake]):
    env = opened(tries=2)
    env.step(BAD)
    assert env.reset(seed=3) == (FIRST, {"notes": ("no Landlock",)})
    assert env.step(BAD)[3] is False
    assert env.step(BAD)[4]["episode"]["r"] == -2


def test_a_step_needs_a_running_episode(made: list[Fake]):
    env = make(NAME)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(GOOD)
    env.reset()
    env.step(GOOD)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(GOOD)
    env.reset()
    env.close()
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(GOOD)
    with pytest.raises(ClosedEnvironmentError, match="make another one"):
        env.reset()


def test_a_program_runs_once_and_a_remembered_result_costs_nothing(made: list[Fake]):
    env = opened()
    env.step(BAD)
    _, reward, *_, info = env.step(BAD)
    assert (reward, info["seconds"], info["cpu_seconds"]) == (-1.0, 0.5, 0.0)
    (sandbox,) = made
    assert sandbox.asked == {program(BAD): 1}


def test_preparing_runs_the_program_that_the_step_then_waits_for(made: list[Fake]):
    env = opened()
    env.prepare(GOOD)
    (sandbox,) = made
    assert sandbox.asked == {program(GOOD): 1}
    assert env.step(GOOD)[4]["cpu_seconds"] == 0.25
    assert sandbox.asked == {program(GOOD): 1}


def test_the_first_line_may_have_lost_its_indentation(made: list[Fake]):
    env = opened()
    assert env.step("    " + BAD)[0] == opened().step(BAD)[0]
    (sandbox,) = made
    assert sandbox.asked == {program(BAD): 1}


def test_parity_with_the_paper_refuses_two_words(made: list[Fake]):
    body = "from sklearn.svm import SVC\n    model = SVC(probability=True).fit(x_train, y_train)"
    shown, reward, *_, info = opened().step(body)
    assert (reward, info["status"]) == (-1, "refused")
    assert "# RefusedError: SVC( is not allowed here\n" in shown
    body = "from sklearn.svm import SVC\n    model = SVC(bad_word=1)"
    assert opened(parity=False).step(body)[4]["status"] == "error"


def test_nothing_is_offered_and_the_spaces_contain_prompts_and_programs(made: list[Fake]):
    env = opened()
    first, info = env.reset()
    assert "admissible_actions" not in info
    long = "x = 1  # ünprintable\t\x07\n" * 90
    shown, *_, info = env.step(long)
    assert "admissible_actions" not in info
    assert first in env.observation_space
    assert shown in env.observation_space
    assert GOOD in env.action_space
    assert set(env.action_space.sample()) <= set(CHARACTERS)


def test_filling_in_the_middle(made: list[Fake]):
    env = opened(fill_in_the_middle="starcoder")
    assert env.reset()[0] == prompt("balance scale", 125, 4, 3, fill_in_the_middle="starcoder")


def test_a_freely_written_program_ends_at_its_stop_strings_or_after_128_tokens():
    said = free_text_of(NAME)
    assert said.max_tokens == 128
    assert "\n    return model" in said.stop


def test_equal_copies_share_a_sandbox_until_the_last_is_closed(made: list[Fake]):
    one, other = opened(tries=2), opened(tries=4, fill_in_the_middle="qwen")
    one.step(GOOD)
    assert other.step(GOOD)[4]["cpu_seconds"] == 0
    (sandbox,) = made
    one.close()
    one.close()
    assert sandbox.closed == 0
    other.reset()
    assert other.step(BAD)[1] == -1
    other.close()
    assert sandbox.closed == 1
    opened().close()
    assert [sandbox.closed for sandbox in made] == [1, 1]


def test_a_copy_that_is_garbage_collected_counts_as_closed(made: list[Fake]):
    def scope() -> None:
        opened()

    scope()
    gc.collect()
    (sandbox,) = made
    assert sandbox.closed == 1


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "iris"},
        {"budget": 3.0},
        {"isolation": "process"},
        {"workers": 1},
        {"parity": False},
    ],
    ids=lambda other: next(iter(other)),
)
def test_copies_with_other_arguments_share_nothing(made: list[Fake], other: dict[str, Any]):
    one, two = opened(), opened(**other)
    assert len(made) == 2
    one.close()
    assert [sandbox.closed for sandbox in made] == [1, 0]
    two.close()


def test_the_sandbox_gets_the_arguments_and_starts_only_for_an_episode(made: list[Fake]):
    env = make(NAME, budget=7, isolation="process", workers=3)
    assert made == []
    env.reset()
    env.reset()
    (sandbox,) = made
    assert sandbox.arguments == {"isolation": "process", "workers": 3, "budget": 7.0}
    env.close()
    make(NAME).close()
    assert len(made) == 1


def test_copies_may_be_made_and_closed_in_any_thread(made: list[Fake]):
    def come_and_go() -> None:
        for _ in range(20):
            DataScienceEnv().close()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert module._SHARED == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tries": 0}, "tries must be at least 1, got 0"),
        ({"budget": 0}, "budget must be above 0 seconds, got 0"),
        ({"budget": float("nan")}, "budget must be above 0 seconds, got nan"),
        ({"workers": -1}, "workers must not be negative, got -1"),
        (
            {"isolation": "docker"},
            "isolation must be one of auto, bubblewrap, process, none, got 'docker'",
        ),
        (
            {"fill_in_the_middle": "gpt"},
            "must be one of none, code-llama, starcoder, qwen, got 'gpt'",
        ),
    ],
)
def test_wrong_arguments_are_errors_before_anything_starts(
    made: list[Fake], arguments: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        make(NAME, **arguments)
    assert made == []


def test_wrong_data_is_an_error_before_anything_starts(made: list[Fake], tmp_path: Path):
    with pytest.raises(DataError, match="Did you mean 'iris'"):
        make(NAME, dataset="irs")
    path = tmp_path / "rare.csv"
    path.write_text("a,b\n" + "1,x\n2,y\n" * 20 + "3,z\n")
    with pytest.raises(DataError, match="no column 'c'"):
        make(NAME, dataset=str(path), target="c")
    with pytest.raises(DataError, match="leaves no row of class 'z'"):
        make(NAME, dataset=str(path), target="b")
    assert made == []


def test_a_csv_of_ones_own(made: list[Fake], tmp_path: Path):
    path = tmp_path / "flower_beds.csv"
    path.write_text("a,b,label\n" + "".join(f"{i},{i * i % 7},{i % 3}\n" for i in range(60)))
    env = opened(dataset=str(path), target="label")
    assert env.reset()[0] == prompt("flower beds", 60, 2, 3)
    assert env.step(GOOD)[2] is True


def test_a_replay_sees_the_verdicts_of_the_stopped_run(made: list[Fake]):
    """Programs do not run again: a time-out, for one, depends on the machine and its load."""
    first = CheckedWorld(make(NAME))
    first.reset(0)
    first.step(BAD)
    first.step("raise ValueError")
    memory = json.loads(json.dumps(cast(DataScienceEnv, first.unwrapped).memory()))
    seen = first.seen
    first.close()
    again = CheckedWorld(make(NAME))
    cast(DataScienceEnv, again.unwrapped).load_memory(memory)
    again.reset(0)
    again.step(BAD)
    again.step("raise ValueError")
    assert again.seen == seen
    assert not made[-1].asked
    assert len(made) == 2
    again.close()


@needs_sandbox
def test_the_world_keeps_the_contract_with_the_lightest_real_sandbox():
    check_env(lambda: make(NAME, isolation="process", workers=1), episodes=3)


def test_arguments_are_typed_and_documented():
    arguments = world_arguments(NAME)
    page = DataScienceEnv.__doc__ or ""
    assert {name: default for name, (_, default) in arguments.items()} == {
        "dataset": "balance-scale-125",
        "target": None,
        "tries": 5,
        "budget": 30.0,
        "isolation": "auto",
        "workers": 0,
        "fill_in_the_middle": "none",
        "parity": True,
    }
    assert all(f"* `{name}`:" in page for name in arguments)


def test_without_the_extra_worlds_can_be_listed_and_the_error_says_how_to_install_it():
    code = """
import sys
for missing in ("sklearn", "pandas", "scipy", "pyseccomp"):
    sys.modules[missing] = None
from poad.envs import free_text_of, known_worlds, make
assert "poad/DataScience-v0" in dict(known_worlds())
assert free_text_of("poad/DataScience-v0").max_tokens == 128
make("poad/TomatoSalad-v0").reset()
try:
    make("poad/DataScience-v0")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install scikit-learn" in done.stdout


def test_importing_the_world_loads_none_of_its_extra():
    code = (
        "import sys, poad.envs.datasci.env\n"
        "print(*[m for m in ('sklearn', 'pandas', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_it_is_a_gymnasium_environment(made: list[Fake]):
    env = make(NAME)
    assert isinstance(env, gymnasium.Env)
    assert env.spec is not None
    assert env.spec.id == NAME
    env.close()
