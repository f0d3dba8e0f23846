"""Opening a run runs no code but poad's, unless the user has named that code or trusts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forked import Forked, poad, refuse_each

from poad.cli.trust import check_stored, trust
from poad.config import Config, CreditConfig, ModelConfig, from_dict, load
from poad.errors import ConfigError, WorldError
from poad.runs import Run

MODULE = """
from pathlib import Path
import gymnasium
import poad.envs

Path({witness!r}).write_text("this ran")
if "Own-v0" not in gymnasium.registry:
    gymnasium.register("Own-v0", entry_point=lambda: poad.envs.make("poad/TomatoSalad-v0"))
"""
SHORT = ["--steps", "8", "--streams", "2", "--horizon", "4", "--eval.episodes", "1"]
FEW = [*SHORT, "--model.name", "tiny-kitchen"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory, with an empty memory of what is trusted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "memory"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", sys.path[:])  # to which the directory is added
    return folder


def module(file: Path) -> Path:
    """Write a module with a world; return the file that exists once the module was imported."""
    witness = file.with_suffix(".ran")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(MODULE.format(witness=str(witness)))
    return witness


def ran(*arguments: str) -> tuple[int, str]:
    done = poad(*arguments)
    return done.wait(), done.stdout + done.stderr


def strangers_run(path: Path, **settings: object) -> Path:
    """A run as one gets it from somebody else, with seals that fit."""
    with Run.create(path, Config(**settings)):  # pyright: ignore[reportArgumentType]
        pass
    return path


def openings(run: str) -> list[list[str]]:
    return [
        ["play", run, "--untrained"],
        ["eval", run, "--untrained"],
        ["generalize", run],
        ["export", run, "--to", "out"],
        ["train", "--resume", run],
        ["plan", "--config", f"{run}/config.yaml", "--flops", "1e9"],
        ["train", "--config", f"{run}/config.yaml", "--run", "new"],
        ["config", f"{run}/config.yaml", "--resolved"],
    ]


def refused(cases: list[list[str]]) -> list[str]:
    """Run commands in a process that has imported nothing of the user's; their messages."""
    done = Forked(refuse_each, cases)
    assert done.wait() == 0, done.stderr
    return done.stderr.split("poad: ")[1:]


@pytest.mark.parametrize("setting", ["env", "credit.method"])
def test_a_run_imports_nothing_that_nobody_trusts(folder: Path, setting: str) -> None:
    witness = module(folder / "own.py")
    changed = {"env": {"env": "own:Own-v0"}, "credit.method": {"credit": CreditConfig("own:M")}}
    run = strangers_run(folder / "runs" / "nice", **changed[setting])
    messages = refused(openings("runs/nice"))
    assert len(messages) == len(openings("runs/nice"))
    for message in messages:
        assert "own (" in message
        assert str(folder / "own.py") in message
        assert "--trust-code" in message
    assert not witness.exists()
    assert run.is_dir()


def test_a_run_does_not_decide_to_run_the_code_of_a_model(folder: Path) -> None:
    model = ModelConfig(name=str(folder / "model"), trust_remote_code=True)
    strangers_run(folder / "runs" / "nice", model=model)
    messages = refused(openings("runs/nice"))
    assert len(messages) == len(openings("runs/nice"))
    for message in messages:
        assert f"the remote code of a model ({model.name})" in message
        assert "--trust-code" in message


def test_nothing_is_imported_from_inside_a_run_even_if_it_is_trusted(folder: Path) -> None:
    witness = module(folder / "runs" / "nice" / "helper.py")
    (folder / "aside").mkdir()
    for name in ("runs.nice.helper:Own-v0", "helper:Own-v0"):
        shutil.rmtree(folder / "aside")
        (folder / "runs" / "nice").rename(folder / "aside")
        strangers_run(folder / "runs" / "nice", env=name)
        shutil.copy(folder / "aside" / "helper.py", folder / "runs" / "nice")
        place = Path("runs/nice") if name.startswith("helper") else Path()
        os.chdir(place)
        run = "." if place.name else "runs/nice"
        cases = [[*each, "--trust-code"] for each in openings(run)]
        for message in refused(cases):
            assert "lies inside a run" in message
        os.chdir(folder)
    assert not witness.exists()


def test_programs_are_not_run_unprotected_because_a_run_says_so(folder: Path) -> None:
    args = {"isolation": "none"}
    strangers_run(folder / "nice", env="poad/DataScience-v0", env_args=args)
    for message in refused(openings("nice")):
        assert "isolation=none" in message
        assert "--trust-code" in message
    check_stored(load(folder / "nice" / "config.yaml"), folder / "nice", trusted=True)
    check_stored(load(folder / "nice" / "config.yaml"), folder / "nice", trusted=False)


NAMED = [
    ("object:own:World", {}),
    ("tools:own:Tools", {}),
    ("gymnasium:own:Own-v0", {}),
    ("gymnasium:FrozenLake-v1", {"describe": "own:tell"}),
    ("object:collections:Counter", {"success": "own:won"}),
]


@pytest.mark.parametrize(("env", "env_args"), NAMED)
def test_a_module_that_a_scheme_imports_is_asked_about(
    folder: Path, env: str, env_args: dict[str, str]
) -> None:
    witness = module(folder / "own.py")
    strangers_run(folder / "runs" / "nice", env=env, env_args=env_args)
    messages = refused(openings("runs/nice"))
    assert len(messages) == len(openings("runs/nice"))
    for message in messages:
        assert f"({folder / 'own.py'})" in message
        assert "--trust-code" in message
    assert not witness.exists()
    stored = load(folder / "runs" / "nice" / "config.yaml")
    check_stored(stored, folder / "runs" / "nice", trusted=True)
    check_stored(stored, folder / "runs" / "nice", trusted=False)


@pytest.mark.parametrize("module", ["os", "builtins", "subprocess", "poad.cli.main", "json"])
def test_what_is_called_is_asked_about_in_any_module(folder: Path, module: str) -> None:
    """A stranger could call `os.system`, which is imported already."""
    run = strangers_run(folder / "nice", env=f"object:{module}:system", env_args={"command": "ls"})
    config = load(run / "config.yaml")
    with pytest.raises(ConfigError, match=rf"object:{module}:system \(.*--trust-code"):
        check_stored(config, run, trusted=False)
    lake = "gymnasium:FrozenLake-v1"
    run = strangers_run(folder / "lake", env=lake, env_args={"success": f"{module}:print"})
    with pytest.raises(ConfigError, match=rf"success={module}:print \("):
        check_stored(load(run / "config.yaml"), run, trusted=False)


def test_trusting_one_function_is_not_trusting_its_module(folder: Path) -> None:
    module(folder / "own.py")
    trust(Config(env="object:own:World"))
    run = folder / "run"
    check_stored(Config(env="object:own:World"), run, trusted=False)
    for other in ("object:own:Other", "tools:own:World"):
        with pytest.raises(ConfigError, match=other):
            check_stored(Config(env=other), run, trusted=False)


def test_a_run_connects_to_no_server_that_nobody_trusts(folder: Path) -> None:
    strangers_run(folder / "nice", env="openenv:http://127.0.0.1:9")
    for message in refused(openings("nice")):
        assert "a connection to a server (http://127.0.0.1:9)" in message
        assert "--trust-code" in message
    trust(Config(env="openenv:http://127.0.0.1:9"))
    check_stored(load(folder / "nice" / "config.yaml"), folder / "nice", trusted=False)


def test_a_run_hands_nothing_to_a_vllm_server_that_nobody_trusts(folder: Path) -> None:
    config = from_dict({"acting": {"engine": "vllm"}, "vllm": {"url": "http://127.0.0.1:9"}})
    with pytest.raises(ConfigError, match=r"a connection to a server \(http://127\.0\.0\.1:9\)"):
        check_stored(config, folder / "run", trusted=False)
    trust(config)
    check_stored(config, folder / "run", trusted=False)


def test_a_world_of_a_scheme_without_a_module_asks_nothing(folder: Path) -> None:
    for env in ("babyai:BabyAI-GoTo-v0", "textworld:coin.z8", "gymnasium:FrozenLake-v1"):
        run = strangers_run(folder / env.partition(":")[0], env=env)
        check_stored(load(run / "config.yaml"), run, trusted=False)


def test_ones_own_run_opens_without_a_question(folder: Path) -> None:
    module(folder / "own.py")
    status, shown = ran("train", "--env", "own:Own-v0", "--run", "mine", "--quiet", *FEW)
    assert status == 0, shown
    status, shown = ran("eval", "mine", "--episodes", "1", "--quiet")
    assert status == 0, shown
    shutil.rmtree(folder.parent / "memory")  # as on another machine
    status, shown = ran("play", "mine")
    assert status == 2, shown
    status, shown = ran("play", "mine", "--trust-code")
    assert status == 0, shown
    status, shown = ran("play", "mine")
    assert status == 0, shown


def test_a_trusted_module_is_another_one_elsewhere(folder: Path) -> None:
    module(folder / "own.py")
    config = Config(env="own:Own-v0")
    trust(config)
    check_stored(config, folder / "run", trusted=False)
    elsewhere = folder / "elsewhere"
    module(elsewhere / "own.py")
    os.chdir(elsewhere)
    before = sys.path[:]
    sys.path[:] = [place for place in sys.path if place != str(folder)]
    try:
        with pytest.raises(ConfigError, match=r"elsewhere.own\.py"):
            check_stored(config, folder / "run", trusted=False)
    finally:
        sys.path[:] = before
        os.chdir(folder)


def test_a_file_in_the_directory_does_not_pass_for_a_library(folder: Path) -> None:
    for library in ("yaml", "peft", "wandb", "tyro", "rich"):
        module(folder / f"{library}.py")
    command = [sys.executable, "-m", "poad", "config"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["seed"] == 0
    assert not list(folder.glob("*.ran"))


BAD_NAMES = ["config.yaml", "Config.YAML", "metrics.jsonl", "checkpoints", ".lock", "a/b.py", "."]


@pytest.mark.parametrize("name", [*BAD_NAMES, "", "../best.py"])
def test_a_world_cannot_write_over_the_files_of_a_run(folder: Path, name: str) -> None:
    run = Run.create(folder / "run", Config())
    before = (folder / "run" / "config.yaml").read_text()
    with pytest.raises(WorldError, match=r"best_program\.py"):
        run.keep(name, "seed: 3")
    assert (folder / "run" / "config.yaml").read_text() == before
    run.keep("best.txt", "words")
    assert (folder / "run" / "best.txt").read_text() == "words"
