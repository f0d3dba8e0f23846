"""Trackers are optional: missing ones are an error before training, failing ones only a warning."""

from __future__ import annotations

import importlib
import math
import types
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import evaluation, metrics, summary

from poad.config import Config
from poad.errors import TrackerError
from poad.runs.run import Run, show_page
from poad.runs.trackers import Tracker, grouped, open_trackers

METRICS = {"iteration": 1, "success": 0.5, "return": math.nan}


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Let importing these packages fail, installed or not."""
    original = importlib.import_module

    def fail(name: str, *rest: Any) -> Any:
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", fail)


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")],
)
def test_a_missing_package_is_named_with_its_cure(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    without(monkeypatch, module)
    with pytest.raises(TrackerError) as error:
        open_trackers([name], tmp_path, "id", {}, 1)
    assert f"pip install {name}`" in str(error.value)


def test_a_service_that_refuses_is_an_error_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(**_: Any) -> None:
        raise RuntimeError("not logged in")

    services = {"wandb": types.SimpleNamespace(init=refuse)}
    monkeypatch.setattr(importlib, "import_module", services.__getitem__)
    with pytest.raises(TrackerError, match=r"tracker wandb does not start .*not logged in"):
        open_trackers(["wandb"], tmp_path, "id", {}, 1)


def test_a_tracker_that_fails_warns_once_and_is_then_left_alone():
    calls: list[int] = []

    def send(metrics: dict[str, float], iteration: int) -> None:
        calls.append(iteration)
        if iteration == 2:
            raise ConnectionError("gone")

    tracker = Tracker("far away", send, lambda: calls.append(-1))
    tracker.log(METRICS, 1)
    with pytest.warns(UserWarning, match="tracker far away failed .ConnectionError: gone"):
        tracker.log(METRICS, 2)
    tracker.log(METRICS, 3)
    tracker.close()
    assert calls == [1, 2]


def test_what_is_no_number_stays_at_home_and_closing_twice_is_fine():
    sent: list[Any] = []
    tracker = Tracker(
        "near", lambda metrics, i: sent.append((metrics, i)), lambda: sent.append("end")
    )
    tracker.log(METRICS, 1)
    tracker.close()
    tracker.close()
    assert sent == [({"progress/iteration": 1.0, "train/success": 0.5}, 1), "end"]


def test_wandb_and_trackio_are_called_as_their_manuals_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple[str, Any, Any]] = []

    def record(name: str, answer: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return answer

        return call

    run = types.SimpleNamespace(log=record("wandb.log"), finish=record("wandb.finish"))
    services = {
        "wandb": types.SimpleNamespace(init=record("wandb.init", run)),
        "trackio": types.SimpleNamespace(
            init=record("trackio.init"), log=record("trackio.log"), finish=record("trackio.finish")
        ),
    }
    monkeypatch.setattr(importlib, "import_module", services.__getitem__)
    for tracker in open_trackers(["wandb", "trackio"], tmp_path, "abc", {"seed": 3}, 1):
        tracker.log(METRICS, 1)
        tracker.close()
    made = {name: kwargs for name, _, kwargs in calls}
    assert made["wandb.init"]["id"] == "abc"
    assert made["wandb.init"]["config"] == made["trackio.init"]["config"] == {"seed": 3}
    for name in ("wandb", "trackio"):
        assert made[f"{name}.init"]["resume"] == "allow"
        assert made[f"{name}.log"] == {"step": 1}
        assert f"{name}.finish" in made


def test_tensorboard_gets_every_scalar_and_forgets_what_a_resumed_run_takes_back(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (first,) = open_trackers(["tensorboard"], tmp_path, "id", {}, 1)
    for iteration in (1, 2, 3):
        first.log({"success": 0.1 * iteration}, iteration)
    first.close()
    (second,) = open_trackers(["tensorboard"], tmp_path, "id", {}, 3)
    second.log({"success": 0.9}, 3)
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(event.step, round(event.value, 4)) for event in events.Scalars("train/success")]
    assert found == [(1, 0.1), (2, 0.2), (3, 0.9)]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("kl", "train/kl"),
        ("success", "train/success"),
        ("eval_success", "eval/success"),
        ("explained_variance_root", "critic/explained_variance_root"),
        ("value_bias_last", "critic/value_bias_last"),
        ("critic_grad_norm", "critic/critic_grad_norm"),
        ("world/score", "world/score"),
        ("env_steps", "progress/env_steps"),
        ("update_seconds", "time/update_seconds"),
        ("final/greedy_return", "final/greedy_return"),
    ],
)
def test_names_are_in_groups(name: str, shown: str):
    assert grouped(name) == shown


def test_a_run_is_drawn_against_environment_steps_with_its_settings_and_its_outcome(
    tmp_path: Path,
):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path / "run", Config(trackers=("tensorboard",), seed=7))
    for i in (1, 2, 3):
        run.log(metrics(i))
    run.write_summary(summary(env_steps=1536, evaluation={"greedy": evaluation(0.75)}))
    run.close()
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/entropy")] == [512, 1024, 1536]
    (final,) = events.Scalars("final/greedy_success")
    assert (final.step, final.value) == (1536, 0.75)
    (tag,) = events.Tags()["tensors"]
    (settings,) = events.Tensors(tag)
    assert b'"seed": 7' in settings.tensor_proto.string_val[0]


def test_what_wandb_reads_from_its_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: dict[str, Any] = {}
    run = types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    service = types.SimpleNamespace(init=lambda **options: made.update(options) or run)
    monkeypatch.setattr(importlib, "import_module", lambda _: service)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "seven")
    open_trackers(["wandb"], tmp_path, "abc", {"seed": 3}, 1)
    assert set(made) == {"config", "name", "resume", "dir"}


TRACKING = {
    "project": "kitchens",
    "name": "first",
    "group": "poad",
    "entity": "cooks",
    "tags": ["tomato", "salad"],
}
PAGE = "<!doctype html><p>A token: <b>chop</b>"


def test_runs_are_filed_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: dict[str, dict[str, Any]] = {}

    def service(name: str) -> Any:
        run = types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
        return types.SimpleNamespace(
            init=lambda **options: made.update({name: options}) or run, log=run.log, finish=None
        )

    monkeypatch.setattr(importlib, "import_module", service)
    for variable in ("WANDB_PROJECT", "WANDB_TAGS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_ENTITY", "others")
    open_trackers(["wandb", "trackio"], tmp_path, "abcdefgh", {"tracking": TRACKING}, 1)
    filed = {name: made["wandb"].get(name) for name in TRACKING}
    assert filed == TRACKING | {"entity": None}
    assert made["trackio"]["project"] == "kitchens"
    assert made["trackio"]["group"] == "poad"
    assert made["trackio"]["name"] == "first-abcdef"


def test_pages_go_where_they_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[Any] = []

    def send(metrics: Any, step: int) -> None:
        shown.append((metrics, step))

    page = types.SimpleNamespace(Html=lambda text, inject: (text, inject), finish=lambda: None)
    services = {
        "wandb": types.SimpleNamespace(**vars(page), init=lambda **_: _service(send)),
        "trackio": types.SimpleNamespace(**vars(page), init=lambda **_: None, log=send),
        "torch.utils.tensorboard": types.SimpleNamespace(SummaryWriter=lambda *_, **__: _Writer()),
    }
    monkeypatch.setattr(importlib, "import_module", services.__getitem__)
    run = Run.create(tmp_path / "run", Config(trackers=("tensorboard", "wandb", "trackio")))
    show_page(run, "eval/episodes", lambda: PAGE, 7)
    show_page(run, "eval/episodes", lambda: None, 8)
    assert shown == [({"eval/episodes": (PAGE, False)}, 7)] * 2
    run.close()
    plain = Run.create(tmp_path / "plain", Config(trackers=("tensorboard",)))
    show_page(plain, "eval/episodes", lambda: pytest.fail("nobody would see it"), 7)
    plain.close()


def _service(send: Any) -> Any:
    return types.SimpleNamespace(log=send, finish=lambda: None)


class _Writer:
    """A place without pages."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


def test_the_real_trackio_takes_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    settings = {"seed": 3, "tracking": TRACKING}
    (tracker,) = open_trackers(["trackio"], tmp_path, "abcdefgh", settings, 1)
    tracker.log({"success": 0.5}, 512)
    tracker.show("eval/episodes", PAGE, 512)
    tracker.close()
    pages = [file.read_text() for file in tmp_path.rglob("*.html")]
    assert any("<b>chop</b>" in page for page in pages)


def test_the_real_wandb_takes_all_of_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    (tracker,) = open_trackers(["wandb"], tmp_path, "abc", {"seed": 3}, 1)
    for step in (512, 1024):
        tracker.log({"success": 0.5, "explained_variance": 0.1}, step)
    tracker.log({"final/greedy_success": 1.0}, 1024)
    tracker.show("eval/episodes", PAGE, 1024)
    tracker.close()
    wandb.teardown()  # its own process has then written everything
    (record,) = tmp_path.glob("wandb/offline-run-*/run-abc.wandb")
    content = record.read_bytes()
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/eval/*.html")
    assert "<b>chop</b>" in page.read_text()
    for name in (b"train/success", b"critic/explained_variance", b"final/greedy_success", b"mine"):
        assert name in content
