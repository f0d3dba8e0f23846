"""A run is a directory that tells the truth, through crashes, full disks and second writers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from synthetic_run import episode, evaluation, metrics, run_of, summary

from poad.config import Config, load
from poad.errors import ConfigError, RunError
from poad.runs.history import write_sealed
from poad.runs.provenance import source_hash
from poad.runs.run import Run
from poad.study.comparable import versions_of

TENSORS = {"policy": {"weight": torch.arange(4.0)}}


def test_a_new_run_has_its_configuration_and_versions(tmp_path: Path):
    config = Config(seed=7, env_args={"horizon": 9}, trackers=())
    run = Run.create(tmp_path / "new", config)
    assert load(run.path / "config.yaml") == config
    versions = json.loads((run.path / "versions.json").read_text())
    for name in ("python", "platform", "poad", "torch", "transformers", "peft", "gymnasium"):
        assert versions[name]
    assert {"numpy", "git", "created"} <= versions.keys()
    assert ("textarena" in versions) is (find_spec("textarena") is not None)
    assert versions == run.versions()
    assert Run.open(run.path).config == config
    assert run.checkpoints() == []
    assert run.metrics() == list(run.episodes()) == []
    assert run.summary() is None


def test_a_run_that_goes_on_with_another_poad_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with Run.create(tmp_path / "new", Config()) as run:
        run.record_versions()
        assert "later" not in run.versions()
        first = run.versions()["source"]
        monkeypatch.setattr("poad.runs.provenance.source_hash", lambda: "another")
        run.record_versions()
        run.record_versions()
        assert run.versions()["source"] == first
        assert [line["source"] for line in run.versions()["later"]] == ["another"]
    assert versions_of(run)["source"] == f"{first}, then another"


def test_the_source_is_told_by_its_content(tmp_path: Path):
    def written(name: str, text: str) -> str:
        source = tmp_path / name
        (source / "inner").mkdir(parents=True)
        (source / "inner" / "code.py").write_text(text)
        (source / "__pycache__").mkdir()
        (source / "__pycache__" / "code.pyc").write_text(name)
        return source_hash(source)

    assert written("a", "x = 1") == written("b", "x = 1") != written("c", "x = 2")
    (tmp_path / "b" / "inner" / "code.py").rename(tmp_path / "b" / "inner" / "other.py")
    source_hash.cache_clear()
    assert source_hash(tmp_path / "b") != source_hash(tmp_path / "a")


def test_an_empty_directory_can_become_a_run(tmp_path: Path):
    Run.create(tmp_path, Config()).close()
    assert Run.open(tmp_path).config == Config()


def test_a_run_is_never_overwritten(tmp_path: Path):
    Run.create(tmp_path / "first", Config()).log(metrics(1))
    with pytest.raises(RunError, match=r"already holds a run.*--resume .*first"):
        Run.create(tmp_path / "first", Config(seed=1))
    assert Run.open(tmp_path / "first").config.seed == 0


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(tmp_path: Path):
    path = tmp_path / "run"
    with Run.create(path, Config()) as run:
        run.log(metrics(1))
        run.save_checkpoint(1, TENSORS, {})
        run.write_summary(summary())
    for name in ("note.txt", "report.html"):
        (path / name).write_text("old")
    with (
        pytest.warns(UserWarning, match=r"Deleted the run .*Left there: note\.txt\."),
        Run.create(path, Config(seed=1), overwrite=True) as run,
    ):
        assert run.config.seed == 1
    assert Run.open(path).metrics() == run.checkpoints() == []
    assert run.summary() is None
    assert (path / "note.txt").read_text() == "old"
    assert not (path / "report.html").exists()


def test_overwriting_leaves_what_is_no_run_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"neither empty nor a run"):
        Run.create(tmp_path, Config(), overwrite=True)
    Run.create(tmp_path / "new", Config(), overwrite=True).close()
    assert Run.open(tmp_path / "new").metrics() == []


def test_a_run_that_is_being_written_is_not_overwritten(tmp_path: Path):
    Run.create(tmp_path / "run", Config()).close()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            with pytest.raises(RunError, match=f"Another process .process {writer.pid} on"):
                Run.create(tmp_path / "run", Config(), overwrite=True)
        finally:
            writer.send_signal(signal.SIGKILL)
    assert Run.open(tmp_path / "run").metrics() == [{"iteration": 1}]


def test_a_run_that_stopped_before_its_first_iteration_is_replaced(tmp_path: Path):
    path = tmp_path / "run"
    Run.create(path, Config()).close()
    (path / "note.txt").write_text("mine")
    with pytest.warns(UserWarning, match="stopped before its first iteration"):
        Run.create(path, Config(seed=1)).close()
    assert Run.open(path).config.seed == 1
    assert (path / "note.txt").read_text() == "mine"


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"neither empty nor a run"):
        Run.create(tmp_path, Config())
    with pytest.raises(RunError, match=r"is a file"):
        Run.create(tmp_path / "thesis.tex", Config())
    with pytest.raises(RunError, match=r"Cannot create the run .*Not a directory"):
        Run.create(tmp_path / "thesis.tex" / "run", Config())
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_opening_what_is_no_run_says_what_is_missing_and_what_is_near(tmp_path: Path):
    Run.create(tmp_path / "here", Config())
    with pytest.raises(RunError, match=r"elsewhere is not a run: no such directory.*nearby.*here"):
        Run.open(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"without config.yaml and versions.json.*here"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match=r"There are no runs nearby"):
        Run.open(tmp_path / "here" / "checkpoints")


def test_a_configuration_that_was_spoiled_by_hand_is_named(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    with (run.path / "config.yaml").open("a") as file:
        file.write("sead: 3\n")
    with pytest.raises(ConfigError, match=r"config.yaml has settings .*'sead'.*mean 'seed'"):
        Run.open(run.path)


def test_a_run_may_go_on_with_another_configuration(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config(steps=512))
    run.change_config(Config(steps=1024))
    assert run.config == Run.open(run.path).config == Config(steps=1024)


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("poad.runs.place.write_sealed", fail)
    with pytest.raises(RunError, match=r"Cannot create the run .*No space left"):
        Run.create(tmp_path / "run", Config())
    assert os.listdir(tmp_path) == []


def test_a_tracker_that_is_not_installed_stops_the_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match="pip install wandb"):
        Run.create(tmp_path / "run", Config(trackers=("wandb",)))
    assert os.listdir(tmp_path) == []


def test_trackers_see_what_is_logged(tmp_path: Path):
    pytest.importorskip("tensorboard")
    with Run.create(tmp_path / "run", Config(trackers=("tensorboard",))) as run:
        run.log(metrics(1))
    assert list((run.path / "tensorboard").glob("events*"))


# Metrics and episodes.


def test_metrics_read_back_as_logged_and_nan_is_null_on_disk(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    for i in (1, 2):
        run.log(metrics(i))
    text = (run.path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text.splitlines()[0])["return"] is None
    first, second = run.metrics()
    assert math.isnan(first["return"])
    assert second == metrics(2)
    assert list(first) == list(metrics(1))


def test_going_on_from_a_checkpoint_takes_back_what_came_after_it(tmp_path: Path):
    run = run_of(tmp_path / "run", iterations=5)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "env_st')
    run.close()
    again = Run.open(run.path)
    with pytest.warns(UserWarning, match=r"line 6"):
        again.truncate_metrics(3)
    again.log(metrics(4))
    assert [m["iteration"] for m in again.metrics()] == [1, 2, 3, 4]
    assert again.summary() is None  # the outcome of a future that was taken back


def test_evaluations_of_a_future_that_was_taken_back_go_too(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.add_episodes([episode(checkpoint=at) for at in (None, 2, 3, 4)])
    run.truncate_metrics(3)
    assert [record.checkpoint for record in run.episodes()] == [None, 2, 3]


def test_episodes_come_back_in_order_and_an_interruption_keeps_those_before_it(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())

    def interrupted():
        yield episode(1)
        yield episode(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.add_episodes(interrupted())
    run.add_episodes([episode(3)])
    assert list(run.episodes()) == [episode(1), episode(2), episode(3)]


def test_a_torn_episode_is_reported_and_costs_no_other(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.add_episodes([episode(1), episode(2)])
    path = run.path / "episodes.jsonl"
    os.truncate(path, path.stat().st_size - 30)
    with pytest.warns(UserWarning, match=r"episodes.jsonl, line 2"):
        assert list(run.episodes()) == [episode(1)]


def test_a_failing_write_says_where(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.path.joinpath("metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"Cannot write to .*metrics.jsonl: Is a directory"):
        run.log(metrics(1))


def test_the_summary_is_strict_json_and_can_be_replaced(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.write_summary(summary(cpu_seconds=math.nan))
    assert json.loads((run.path / "summary.json").read_text())["cpu_seconds"] is None
    told = summary(sampled=evaluation(), evaluation={"sampled": evaluation()})
    run.write_summary(told)
    assert run.summary() == told
    (run.path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"Cannot read .*summary.json.*by hand"):
        run.summary()


# Checkpoints.


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config(keep_checkpoints=2))
    for i in (1, 2, 3):
        path = run.save_checkpoint(i, TENSORS, {"i": i})
        assert path == run.checkpoint_path() == run.path / "checkpoints" / f"{i:06d}"
    assert run.checkpoints() == [2, 3]
    tensors, state = run.load_checkpoint()
    assert state == {"i": 3}
    assert torch.equal(tensors["policy"]["weight"], TENSORS["policy"]["weight"])
    assert run.load_checkpoint(run.checkpoint_path(2))[1] == {"i": 2}


def test_a_checkpoint_drops_those_of_a_future_that_was_taken_back(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config(keep_checkpoints=1))
    run.save_checkpoint(9, TENSORS, {})
    run.save_checkpoint(5, TENSORS, {})
    assert run.checkpoints() == [5]


def test_iterations_beyond_six_digits_stay_in_order(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.save_checkpoint(999_999, TENSORS, {})
    run.save_checkpoint(1_000_000, TENSORS, {"last": True})
    assert run.load_checkpoint()[1] == {"last": True}


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run.create(tmp_path / "run", Config(keep_checkpoints=1))
    run.save_checkpoint(1, TENSORS, {"i": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("poad.runs.checkpoint.write_text", fail)
    with pytest.raises(RunError, match=r"Cannot write checkpoint 2.*No space left.*Intact: 1\."):
        run.save_checkpoint(2, TENSORS, {})
    assert os.listdir(run.path / "checkpoints") == ["000001"]
    assert run.load_checkpoint()[1] == {"i": 1}


def test_a_damaged_checkpoint_names_the_others(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    run.save_checkpoint(1, TENSORS, {})
    run.save_checkpoint(2, TENSORS, {})
    os.truncate(run.checkpoint_path(2) / "policy.safetensors", 10)
    with pytest.raises(RunError, match=r"000002 is missing or damaged.*policy.*000001"):
        run.load_checkpoint()
    os.truncate(run.checkpoint_path(1) / "state.json", 0)
    with pytest.raises(RunError, match=r"000001 is missing or damaged.*000002"):
        run.load_checkpoint(run.checkpoint_path(1))


def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path: Path):
    run = Run.create(tmp_path / "run", Config())
    with pytest.raises(RunError, match=r"no checkpoint: it was stopped before the first"):
        run.checkpoint_path()
    run.save_checkpoint(4, TENSORS, {})
    with pytest.raises(RunError, match=r"no checkpoint 3; it has 4"):
        run.checkpoint_path(3)


# Two writers.

WRITER = """
import sys, time
from poad.runs import Run
run = Run.open(sys.argv[1])
run.log({"iteration": 1})
print("writing", flush=True)
time.sleep(600)
"""


def test_a_second_process_may_read_but_not_write_until_the_first_is_gone(tmp_path: Path):
    Run.create(tmp_path / "run", Config()).close()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            run = Run.open(tmp_path / "run")
            assert run.metrics() == [{"iteration": 1}]
            with pytest.raises(RunError, match=f"Another process .process {writer.pid} on"):
                run.log({"iteration": 2})
        finally:
            writer.send_signal(signal.SIGKILL)
    run.log({"iteration": 2})  # a lock does not outlive its process, however that ended
    assert len(run.metrics()) == 2


def test_the_same_process_may_open_a_run_twice(tmp_path: Path):
    first = Run.create(tmp_path / "run", Config())
    Run.open(tmp_path / "run").log({"iteration": 1})
    first.log({"iteration": 2})
    assert len(first.metrics()) == 2


def test_a_run_of_a_later_version_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Run.create(path, Config(env_args={"anything": 1})).close()
    assert Run.open(path).config.env_args == {"anything": 1}
    stored = yaml.safe_load((path / "config.yaml").read_text())
    stored["ppo"]["shape"], stored["rays"] = "round", {"workers": 3}
    (path / "config.yaml").write_text(yaml.safe_dump(stored))
    versions = json.loads((path / "versions.json").read_text())
    write_sealed(path / "versions.json", versions | {"poad": "9.0.0"})
    with pytest.raises(ConfigError, match=r"does not know: 'ppo.shape', 'rays'\. .*poad 9\.0\.0"):
        Run.open(path)
    del stored["threads"]
    (path / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ConfigError, match=r"lacks threads and has .* 'ppo.shape', 'rays'\. "):
        Run.open(path)


def test_a_run_of_an_earlier_version_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Run.create(path, Config()).close()
    stored = yaml.safe_load((path / "config.yaml").read_text())
    del stored["ppo"]["kl_limit"], stored["critic"]["codes"], stored["threads"]
    (path / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ConfigError, match=r"incomplete: it lacks .* If it was cut off, ") as caught:
        Run.open(path)
    assert "which may have settings" not in str(caught.value)
    versions = json.loads((path / "versions.json").read_text())
    write_sealed(path / "versions.json", versions | {"poad": "0.0.9", "source": "0123abcd"})
    with pytest.raises(ConfigError, match=r"created by poad 0.0.9 \(source 0123abcd\)") as caught:
        Run.open(path)
    for name in ("ppo.kl_limit", "critic.codes", "threads", "this is poad ", "poad config "):
        assert name in str(caught.value)
