"""The command line: its help, its errors, and the files of a run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from forked import poad
from safetensors.torch import save_file
from tolerance import drift

from poad import config
from poad.cli.main import COMMANDS, main
from poad.credit import METHODS
from poad.runs.run import Run

SMALL = ("--steps", "128", "--streams", "4", "--horizon", "16", "--eval.episodes", "2")
POAD = (sys.executable, "-m", "poad")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "small"
    assert main(["train", "--run", str(path), "--quiet", *SMALL]) == 0
    return path


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a mistake; its exit status must be 2, without a traceback."""
    try:
        status = main(list(arguments))
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return " ".join((printed.out + printed.err).split())


CHEAP = """
import sys
from poad.cli.main import main

sys.modules["trackio"] = None  # as if it were not installed
for arguments, status in {cases!r}:
    try:
        found = main(arguments)
    except SystemExit as stop:
        found = stop.code or 0
    assert found == status, (arguments, found)
    heavy = {{"torch", "transformers"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""


def run_cheaply(cases: list[tuple[list[str], int]], folder: Path) -> str:
    """Run commands in a fresh interpreter; none of them may load torch."""
    command = [sys.executable, "-c", CHEAP.format(cases=cases)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_help_and_version_load_no_torch(tmp_path: Path) -> None:
    helps = [[name, "--help"] for name in COMMANDS]
    cases = [*helps, [], ["help"], ["--help"], ["help", "train"], ["--version"]]
    cases += [["config"], ["config", "--preset", "small"]]
    shown = run_cheaply([(case, 0) for case in cases], tmp_path)
    assert shown.count("usage: poad train") == 2


def test_what_transformers_logs_does_not_break_the_live_table(tmp_path: Path) -> None:
    code = """if True:
        from poad.cli.main import main
        main(["models"])
        from transformers.utils import logging
        logging.get_logger("transformers.any").warning("in the middle of a table")
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "tiny-kitchen" in done.stdout
    assert done.stderr == ""


def test_refusals_load_no_torch(tmp_path: Path) -> None:
    Run.create(tmp_path / "taken", config.Config()).log({"iteration": 1})
    for name, file in (("cut", "versions.json"), ("short", "config.yaml")):
        Run.create(tmp_path / name, config.Config()).close()
        lines = (tmp_path / name / file).read_text().splitlines(keepends=True)
        (tmp_path / name / file).write_text("".join([*lines[:2], *lines[3:]]))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    refused = {
        "already holds a run": ["train", "--run", "taken"],
        "neither empty nor a run": ["train", "--run", "thesis"],
        "package trackio is not installed": ["train", "--trackers", "trackio"],
        "no credit method 'poat'": ["train", "--credit.method", "poat"],
        "no preset 'smal'": ["train", "--preset", "smal"],
        "poad/TomatoSalad-v0": ["train", "--env", "poad/TomatoSalat-v0"],
        "has no checkpoint": ["export", "taken", "--to", "out"],
        "nowhere is not a run": ["eval", "nowhere"],
        "elsewhere is not a run": ["generalize", "elsewhere"],
        "gone is not a run": ["play", "gone"],
        "gone-too is not a run": ["train", "--resume", "gone-too"],
        "versions.json was changed": ["train", "--resume", "cut"],
        "config.yaml is incomplete": ["eval", "short"],
        "no option --colour": ["study", "--colour", "red"],
    }
    cases = [*refused.values()]
    # Of another model, the files or the name tell which preset suits it.
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    for model in (".", "Qwen/Qwen3-0.6B", "model.gguf"):
        begun = (each for each in cases if each[0] == "train" and "--resume" not in each)
        cases += [[*each, "--model.name", model] for each in [*begun] if "--model.name" not in each]
    shown = run_cheaply([(arguments, 2) for arguments in cases], tmp_path)
    assert [message for message in refused if message not in shown] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "{}"],
        ["play", "{}"],
        ["train", "--resume", "{}"],
        ["train", "--config", "{}"],
        ["train", "--env", "{}"],
        ["train", "--env", "{}:World-v0"],
        ["train", "--credit.method", "{}"],
        ["config", "{}"],
        ["{}"],
    ],
)
def test_errors_obey_and_hide_nothing_in_a_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "my\x1b[2J\x1b]0;owned\x07\u202eevil\u2066\u200b\xad\U000e0041World"
    with contextlib.chdir(tmp_path):
        assert main([word.format(name) for word in arguments]) == 2
    printed = capsys.readouterr()
    told = printed.out + printed.err
    assert {
        each for each in {*name} & {*told} if not each.isascii() or not each.isprintable()
    } == set()
    assert "World" in told


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_breaks_no_sentence(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    # A line of a text ends early only where the next word would not have fitted.
    indent = max(len(line) - len(line.lstrip()) for line in lines)
    texts = [line if line.startswith(" " * indent) else "" for line in lines]
    for line, below in itertools.pairwise(texts):
        if line and below.strip():
            assert len(line) + 1 + len(below.split()[0]) > 78, f"{line!r} breaks before {below!r}"


def test_the_overview_fits_80_columns_and_names_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert [name for name in COMMANDS if f"poad {name} " not in shown] == []


def test_help_explains_every_credit_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    section = capsys.readouterr().out.partition("Credit methods")[2].partition("Presets")[0]
    explained = [line.split()[0] for line in section.splitlines() if line.startswith("  ")]
    assert explained == list(METHODS)


def test_train_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for key, value in config.to_dict(config.Config()).items():
        names = (
            [f"{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [key]
        )
        for name in names:
            assert f"--{name.replace('_', '-')}" in shown


def test_a_run_records_everything(trained: Path) -> None:
    run = Run.open(trained)
    assert [m["env_steps"] for m in run.metrics()] == [64, 128]
    records = list(run.episodes())
    assert [(r.mode, r.seed) for r in records] == [
        ("sampled", 1_000_000),
        ("sampled", 1_000_001),
        ("greedy", 1_000_000),
        ("greedy", 1_000_001),
    ]
    summary = run.summary()
    assert summary is not None
    assert summary.status == "finished"
    assert summary.env_steps == 128
    assert summary.sampled is not None
    assert summary.sampled.episodes == 2
    assert summary.evaluation is not None
    assert summary.evaluation["sampled"] == summary.sampled
    assert summary.cpu_seconds > 0
    assert summary.logprob_drift is not None
    assert 0 <= summary.logprob_drift.mean <= summary.logprob_drift.largest <= drift()
    assert run.checkpoints() == [0, 2]
    assert "explained_variance" in (trained / "report.html").read_text(encoding="utf-8")


def test_the_written_configuration_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    written = ["--config", str(trained / "config.yaml"), "--run", str(again), "--quiet"]
    assert main(["train", *written]) == 0
    assert (again / "config.yaml").read_text() == (trained / "config.yaml").read_text()

    def facts(path: Path) -> list[dict[str, float]]:
        timed = ("seconds", "per_second")
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows]

    assert facts(again) == facts(trained)


def test_flags_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 5\nppo:\n  lr: 0.01\n")
    run = tmp_path / "run"
    given = ["--config", str(tmp_path / "c.yaml"), "--seed", "6", "--run", str(run), "--quiet"]
    assert main(["train", *given, *SMALL, "--eval.episodes", "0"]) == 0
    made = Run.open(run).config
    assert (made.seed, made.ppo.lr) == (6, 0.01)


def test_resume_goes_on_and_allows_more_steps(tmp_path: Path, trained: Path) -> None:
    path = tmp_path / "run"
    assert main(["train", "--run", str(path), "--quiet", *SMALL]) == 0
    assert main(["train", "--resume", str(path), "--steps", "192", "--quiet"]) == 0
    run = Run.open(path)
    assert [m["iteration"] for m in run.metrics()] == [1, 2, 3]
    assert run.config.steps == 192
    for key in ("return", "entropy", "value_loss"):
        first, second = run.metrics()[1][key], Run.open(trained).metrics()[1][key]
        assert first == second or (first != first and second != second)


@pytest.mark.filterwarnings("default:.*starts again:UserWarning")
def test_a_run_without_a_checkpoint_is_no_dead_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    Run.create(path, config.Config()).close()  # as a crash in the first iteration leaves it
    assert main(["train", "--run", str(path), "--quiet", *SMALL]) == 0
    assert "stopped before its first iteration; it starts again" in capsys.readouterr().err
    first = Run.open(path).metrics()
    shutil.rmtree(path / "checkpoints")  # as a crash before the first checkpoint leaves it
    (path / "checkpoints").mkdir()
    (path / "summary.json").unlink()
    crashed = shutil.copytree(path, tmp_path / "crashed")
    assert main(["train", "--run", str(path), "--quiet", *SMALL]) == 0  # the same command
    assert "stopped before its first checkpoint; it starts again" in capsys.readouterr().err
    assert [m["entropy"] for m in Run.open(path).metrics()] == [m["entropy"] for m in first]
    assert len(list(Run.open(path).episodes())) == len(list(Run.open(crashed).episodes()))
    shutil.rmtree(path)
    shutil.copytree(crashed, path)
    other = ("train", "--run", str(path), *SMALL, "--seed", "7")
    assert "already holds a run" in error_of(capsys, *other)
    assert Run.open(path).metrics() == Run.open(crashed).metrics()
    assert main(["train", "--resume", str(path), "--quiet"]) == 0
    assert "no checkpoint yet; it starts again" in capsys.readouterr().err
    again = Run.open(path).metrics()
    assert [m["env_steps"] for m in again] == [64, 128]
    assert [m["entropy"] for m in again] == [m["entropy"] for m in first]


def test_resume_refuses_to_become_another_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, "train", "--resume", str(trained), "--ppo.lr", "0.5")
    assert "another ppo" in message


def test_eval_appends_and_play_shows_the_same_episode(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(list(Run.open(trained).episodes()))
    assert main(["eval", str(trained), "--episodes", "3", "--seed", "7", "--quiet"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["sampled", "greedy"]
    records = list(Run.open(trained).episodes())
    assert len(records) == before + 6
    record = next(r for r in records if r.seed == 8 and r.mode == "sampled")
    assert main(["play", str(trained), "--seed", "8"]) == 0
    played = capsys.readouterr().out
    assert played.count("Turn ") == len(record.turns)
    assert record.turns[-1].action in played


def test_eval_in_another_world(trained: Path) -> None:
    other = ["--env", "poad/TomatoLettuceSalad-v0", "--env-args", "max_steps=20"]
    assert main(["eval", str(trained), "--episodes", "1", "--quiet", *other]) == 0
    last = list(Run.open(trained).episodes())[-1]
    assert last.env == "poad/TomatoLettuceSalad-v0"
    assert last.length < 40


def test_play_an_untrained_model_and_as_a_person(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = "poad/TomatoSalad-v0"
    assert main(["play", world, "--env-args", "max_steps=10"]) == 0
    assert "Turn 1" in capsys.readouterr().out
    best = iter(["get the tomato", "3", "5", "get the tomato", "2", "4"])
    monkeypatch.setattr("builtins.input", lambda _: next(best))
    assert main(["play", world, "--human"]) == 0
    assert "Success after 6 turns" in capsys.readouterr().out

    def gone(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", gone)
    assert main(["play", world, "--human"]) == 0
    assert "You left after 0 turns" in capsys.readouterr().out


def test_a_form_is_shown_and_filled_in_by_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = ["poad/Order-v0", "--env-args", "choices=16", "words=16"]
    form = "(small|large)( wheat| rye)( round| square)"
    assert main(["envs", *world]) == 0
    assert form in capsys.readouterr().out.replace("\n", "")
    monkeypatch.setattr("builtins.input", lambda _: "small wheat cake")
    assert main(["play", world[0], "--human", *world[1:]]) == 0
    out = capsys.readouterr().out
    assert form in out.replace("\n", "")
    assert "'small wheat cake' is not one of the offered actions" in out
    assert "after 1 turn;" in out


def test_envs_lists_shows_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    assert "poad/TomatoSalad-v0" in capsys.readouterr().out
    assert main(["envs", "poad/TomatoSalad-v0"]) == 0
    assert "max_steps" in capsys.readouterr().out
    assert main(["envs", "poad/TomatoSalad-v0", "--check"]) == 0


FAULTY = """
import gymnasium
import tiny_worlds


class Faulty(tiny_worlds.TinyWorld):
    def __init__(self, fault: str) -> None:
        super().__init__(tiny_worlds.WORLDS["Chain"])
        self.fault = fault

    def step(self, action):
        prompt, reward, terminated, truncated, info = super().step(action)
        if self.fault == "set":
            info["admissible_actions"] = set(info["admissible_actions"])
        if self.fault == "forgotten":
            del info["admissible_actions"]
        if self.fault == "exit":
            raise SystemExit(0)
        return prompt, "1.5" if self.fault == "reward" else reward, terminated, truncated, info


for fault in ("set", "forgotten", "exit", "reward"):
    gymnasium.register(f"Faulty-{fault}-v0", entry_point=Faulty, kwargs={"fault": fault})
"""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("set", "the order of a set changes"),
        ("forgotten", "no actions after it offered some"),
        ("exit", "The world raised SystemExit(0)"),
        ("reward", "A reward is '1.5'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval", "play", "generalize"])
def test_every_command_tells_the_fault_of_a_world_alike(
    trained: Path,
    tmp_path: Path,
    command: str,
    fault: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "faulty_worlds.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.input", lambda _: "walk on")
    world = f"faulty_worlds:Faulty-{fault}-v0"
    run = str(shutil.copytree(trained, tmp_path / "run"))
    model = ("--model.name", "tiny-kitchen")
    arguments = {
        "train": ("train", "--env", world, *model, *SMALL, "--run", str(tmp_path / "new")),
        "eval": ("eval", run, "--env", world, "--episodes", "2"),
        "play": ("play", world, "--human"),
        "generalize": ("generalize", run, "--worlds", world, "--episodes", "2"),
    }[command]
    if command in ("train", "play"):
        message = error_of(capsys, *arguments)
    else:  # episodes that fail are counted, and the others go on
        with warnings.catch_warnings(action="always"):
            assert main(list(arguments)) == 1  # nothing was found out
        message = " ".join(capsys.readouterr().err.split())
        who = world if command == "generalize" else "The world"  # it plays in several worlds
        assert f"poad: note: {who} failed in 2 of 2 episodes" in message
    assert told in message
    assert f"world 'Faulty-{fault}-v0', seed " in message
    assert "action 1 (" in message
    assert f"`poad envs {world} --check`" in message


def test_envs_shows_the_beginning_of_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large_worlds.py").write_text(
        """
import gymnasium, random
from gymnasium.spaces import Text

class Undescribed(gymnasium.Env):
    observation_space = action_space = Text(100_000, min_length=0)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.offers = tuple(f"take thing {i}" for i in range(2_000))
        return "word " * 10_000 + str(random.random()), {"admissible_actions": self.offers}
    def step(self, action):
        raise ValueError("word " * 10_000)

gymnasium.register("Large-v0", entry_point=Undescribed)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["envs", "large_worlds:Large-v0"]) == 0
    shown = capsys.readouterr().out
    assert "This world has no docstring." in shown
    assert "and 1,960 more actions" in shown
    assert len(shown) < 6_000
    assert main(["envs", "large_worlds:Large-v0", "--check"]) == 1
    told = capsys.readouterr().err
    assert "seed 0, turn 0: the prompt has '" in " ".join(told.split())
    assert len(told) < 4_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("trian",), "Did you mean 'train'"),
        (("help", "paly"), "Did you mean 'play'"),
        (("train", "--env", "poad/TomatoSalat-v0"), "poad/TomatoSalad-v0"),
        (("train", "--env-args", "max_stps=3"), "max_steps"),
        (("train", "--env-args", "max_steps"), "name=value"),
        (("train", "--credit.method", "poat"), "Did you mean 'poad'"),
        (("train", "--credit.gamma", "1.5"), "between 0 and 1"),
        (("train", "--ppo.entropi", "1"), "Did you mean '--ppo.entropy'"),
        (("train", "--ppo_entropy", "1"), "--ppo.entropy"),
        (("train", "--lr", "1"), "Did you mean --critic.lr or --ppo.lr?"),
        (("train", "--learning-rate", "1"), "Did you mean --critic.lr or --ppo.lr?"),
        (("train", "--ppo.learning_rate", "1"), "Did you mean --ppo.lr?"),
        (("plan", "--memory", "1MB", "--flops", "0"), "above 0"),
        (("train", "steps=3"), "did you mean --steps?"),
        (("train", "--steps"), "--steps needs a value."),
        (("train", "--steps", "ten"), "--steps: 'ten' is not a whole number."),
        (("train", "--critic.clip", "off"), "--critic.clip: 'off' is not a number."),
        (("train", "--critic.hidden", "8", "x"), "--critic.hidden: 'x' is not a whole number."),
        (("train", "--acting.scheme", "tree"), "Did you mean 'trie'"),
        (("train", "--trackers", "wandbb"), "--trackers: 'wandbb' is not one of"),
        (("train", "--prompt.examples", "a"), "come in groups of 2"),
        (("train", "--env-args", "max_steps=[1],[2]"), "is not a YAML value"),
        (("train", "--env-args", "max_steps=#7"), "takes '#7' for a comment"),
        (("train", "--env-args", "max_steps=7 #8"), "takes '#8' for a comment"),
        (("train", "--env-args", "max_steps="), "has no value"),
        (("eval",), "RUN is missing."),
        (("eval", "one", "two"), "too many arguments: two."),
        (("train", "--ppo.anneal", "False"), "takes no value: write --ppo.anneal or --ppo.no-"),
        (("train", "--ppo.anneal", "true", "--critic.root", "false"), "A switch takes no value"),
        (("train", "--env-args.max_steps", "3"), "Write --env-args max_steps=VALUE."),
        (("export", "run"), "--to is missing."),
        (("study",), "Name a study file"),
        (("study", "--compare", "one"), "--compare needs 2 values."),
        (("train", "--model.name", "no/such/model"), "Cannot load the model"),
        (("train", "--model.name", "tiny-kitchn"), "Did you mean 'tiny-kitchen'?"),
        (("train", "--config", "missing.yaml"), "missing.yaml"),
        (("train", "--resume", "nowhere"), "nowhere is not a run"),
        (("eval", "nowhere"), "nowhere is not a run"),
        (("play", "nowhere"), "nowhere is not a run"),
        (("eval", "tiny-kitchen", "--untrained", "--checkpoint", "3"), "uses no checkpoint"),
        (("envs", "poad/Tomato-v0"), "Known worlds"),
    ],
)
def test_a_mistake_gives_a_message_with_the_remedy(
    arguments: tuple[str, ...],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert expected in error_of(capsys, *arguments)
    assert not list(tmp_path.rglob("*.jsonl")), "a refused command must not leave a run behind"


def test_the_error_for_an_unknown_key_in_a_file_names_the_nearest_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("credit:\n  gama: 0.9\n")
    assert "gamma" in error_of(capsys, "train", "--config", str(tmp_path / "c.yaml"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_after_an_interrupt_a_run_can_be_resumed(tmp_path: Path, number: int) -> None:
    path = tmp_path / "run"
    long = ("--steps", "1000000", "--streams", "4", "--horizon", "8")
    process = poad("train", "--run", str(path), *long)
    metrics = path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == 130, process.stderr
    assert "Traceback" not in process.stderr
    assert f"poad train --resume {path}" in process.stdout
    run = Run.open(path)
    done = run.checkpoints()[-1]
    assert len(run.metrics()) == done
    summary = run.summary()
    assert summary is not None
    assert summary.status == "stopped"
    resumed = ("--steps", str((done + 1) * 32), "--eval.episodes", "1", "--quiet")
    assert main(["train", "--resume", str(path), *resumed]) == 0
    assert len(Run.open(path).metrics()) == done + 1


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_any_command_ends_at_sigterm_as_at_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = poad("verify", "--out", str(out))
    while not out.exists():  # it makes the directory and then computes for a while
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    assert process.stderr == "\nInterrupted. Everything written so far is intact.\n"


def test_resume_refuses_fewer_steps_than_were_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    assert main(["train", "--run", str(path), "--quiet", *SMALL]) == 0
    written = (path / "config.yaml").read_text()
    assert "already trained 128 steps" in error_of(
        capsys, "train", "--resume", str(path), "--steps", "64"
    )
    assert (path / "config.yaml").read_text() == written


def test_the_report_keeps_evaluations_with_other_world_arguments_apart(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert main(["train", "--run", str(path), "--quiet", *SMALL]) == 0
    before = (path / "report.html").read_text()
    short = ["--episodes", "5", "--env-args", "max_steps=5", "--quiet"]
    assert main(["eval", str(path), *short]) == 0
    after = (path / "report.html").read_text()
    assert "poad/TomatoSalad-v0 max_steps=5" in after
    table = after.index("<h2>Evaluation</h2>")
    assert after[:table] == before[: before.index("<h2>Evaluation</h2>")]


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("narrow", [False, True], ids=["reader gone", "narrow encoding"])
def test_training_goes_on_when_its_output_cannot_be_written(tmp_path: Path, narrow: bool) -> None:
    path = tmp_path / "run"
    command = [*POAD, "train", "--run", str(path), *SMALL]
    environment = {**os.environ, **({"PYTHONIOENCODING": "ascii", "LC_ALL": "C"} if narrow else {})}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if narrow:
            assert "sampled" in process.stdout.read()
        process.stdout.close()  # as `| head` does
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 0
    summary = Run.open(path).summary()
    assert summary is not None
    assert summary.status == "finished"


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "{run}", "--seed", "-4"),
        ("play", "{run}", "--seed", "-4"),
        ("play", "{run}", "--env-args", "max_steps=3"),
        ("play", "{run}", "--human"),
        ("play", "poad/TomatoSalad-v0", "--checkpoint", "3"),
        ("train", "--env-args", "max_steps=abc"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_an_option_that_does_not_apply_is_refused(
    trained: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, *(a.format(run=trained) for a in arguments))
    assert "entry_point" not in message
    assert "kwargs" not in message


# --- what a world raises ----------------------------------------------------------------------

RAISING = """
import gymnasium
from gymnasium.spaces import Text


class Wordless(Exception):
    def __str__(self):
        raise ValueError


ERRORS = [
    ZeroDivisionError("no"),
    KeyError("x"),
    BrokenPipeError(),
    ValueError(chr(27) + "[2J"),
    Wordless(),
    RuntimeError("y" * 9999),
    MemoryError("no room"),
    RuntimeError("out of memory"),
]


class Raising(gymnasium.Env):
    observation_space = action_space = Text(200)

    def __init__(self, error):
        self.error = ERRORS[error]

    def reset(self, *, seed=None, options=None):
        self.turn = 0
        return "You see a pot.", {"admissible_actions": ("chop", "wait")}

    def step(self, action):
        self.turn += 1
        if self.turn == 2:
            raise self.error  # here
        return "You see a pot.", 0.0, False, False, {"admissible_actions": ("wait", "chop")}


gymnasium.register("Raising-v0", entry_point=Raising, order_enforce=True)
"""


@pytest.fixture(scope="module")
def raising(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("worlds") / "raising_world.py"
    file.write_text(RAISING)
    return file


@pytest.mark.parametrize(
    ("number", "says"),
    list(
        enumerate(
            [
                "ZeroDivisionError: no",
                "KeyError: 'x'",
                "BrokenPipeError",
                "ValueError: ␛[2J",
                "Wordless: an error without words",
                "RuntimeError: yyy",
                "MemoryError: no room",
                "RuntimeError: out of memory",
            ]
        )
    ),
)
def test_what_a_world_raises_is_told_in_one_message(
    number: int,
    says: str,
    raising: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(raising.parent)
    line = 1 + RAISING.splitlines().index("            raise self.error  # here")
    run = ("train", "--env", "raising_world:Raising-v0", "--env-args", f"error={number}")
    small = ("--model.name", "tiny-kitchen", "--streams", "2", "--eval.episodes", "0")
    assert main([*run, *small, "--run", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert f"The world raised {says}" in told
    assert f"({raising}, line {line}, in step)" in told
    assert re.search(r"world 'Raising-v0', seed \d+, action 2 \('", told)
    assert "Traceback" not in told
    assert "POAD_TRACEBACK=1" in told
    assert len(told) < 1500
    monkeypatch.setenv("POAD_TRACEBACK", "1")
    raised: Exception | None = None
    try:
        main([*run, *small, "--run", str(tmp_path / "again")])
    except Exception as error:
        raised = error
    assert type(raised).__name__ == says.partition(":")[0]
