"""A run is its configuration: twice the same, and the same whether or not it was interrupted."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_worlds import settings
from torch import Tensor

from poad.agent.build import load_agent
from poad.config import Config
from poad.errors import ConfigError, RunError
from poad.learn.evaluate import evaluate
from poad.learn.ppo import PPO
from poad.learn.train import Trainer, train
from poad.runs.run import Run

Metrics = dict[str, float]

# Stops fall between and onto checkpoints; there are four iterations.
BASE: dict[str, Any] = {"streams": 3, "horizon": 5, "steps": 60, "checkpoint_every": 2}
CASES: dict[str, dict[str, Any]] = {
    "poad": {"world": "Novel"},
    "reinforce": {"world": "Chain", "credit": {"method": "reinforce"}},
    "shared": {"world": "Mixed", "critic": {"body": "shared"}},
}


def config_of(case: str, **changes: Any) -> Config:
    return settings(**CASES[case] | BASE | changes)


def timeless(metrics: Metrics) -> str:
    """Metrics without what a clock said; as text, so that NaN equals NaN."""
    clocks = ("_seconds", "_per_second")
    return repr({k: v for k, v in metrics.items() if not k.endswith(clocks)})


def weights(trainer: Trainer) -> Tensor:
    tensors = trainer.agent.tensors()
    return torch.cat([t.flatten().clone() for group in tensors.values() for t in group.values()])


def digest(config: Config) -> str:
    trainer = Trainer(config)
    told = "".join(map(timeless, trainer.train()))
    return hashlib.sha256(told.encode() + weights(trainer).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("case", ["reinforce", "shared"])
def test_the_same_configuration_gives_the_same_run(case: str) -> None:
    assert digest(config_of(case)) == digest(config_of(case))


def test_it_is_the_same_in_another_process_and_another_with_another_seed() -> None:
    """Nothing hangs on the order of a set or a dictionary of hashes."""
    code = "import test_train as t; print(t.digest(t.config_of('poad')))"
    environment = os.environ | {
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest(config_of("poad")) != digest(config_of("poad", seed=1))


def test_a_run_counts_what_it_does() -> None:
    trainer = Trainer(config_of("poad"))  # episodes of four turns, in three streams
    for k, metrics in enumerate(trainer.train(), 1):
        assert metrics["iteration"] == k
        assert metrics["env_steps"] == 15 * k
        assert metrics["episodes"] == 3 * (5 * k // 4)
        assert metrics["length"] == 4
        assert metrics["success"] == 0
        assert metrics["passes"] >= 1
        assert metrics["cpu_seconds"] > 0
        assert metrics["wall_seconds"] >= metrics["collect_seconds"] + metrics["update_seconds"]
    assert trainer.meters.iteration == 4


def test_a_run_records_what_it_trained_with(tmp_path: Path) -> None:
    """Another directory would not find a relative path, and another version may resolve anew."""
    told = config_of("poad", steps=15)
    run = Run.create(tmp_path / "run", told)
    trainer = Trainer(told, run)
    list(trainer.train())
    run.close()
    assert trainer.config != told
    assert Run.open(tmp_path / "run").config == trainer.config
    assert list(train(trainer.config, Run.open(tmp_path / "run"), resume=True)) == []


def test_the_metrics_are_means_over_the_last_hundred_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(settings("Prefixes", streams=10, horizon=13, steps=1000))
    returns: list[float] = []
    collect = trainer.collector.collect

    def spy(*arguments: Any) -> Any:
        rollout = collect(*arguments)
        returns.extend(episode.episode_return for episode in rollout.episodes)
        return rollout

    monkeypatch.setattr(trainer.collector, "collect", spy)
    for metrics in islice(trainer.train(), 4):
        assert metrics["return"] == pytest.approx(sum(returns[-100:]) / len(returns[-100:]))
    assert len(returns) > 150


def test_rates_fall_to_nearly_nothing_by_the_end() -> None:
    trainer = Trainer(settings("Novel", ppo={"anneal": True, "lr": 1e-3}, **BASE))
    rates = [trainer.learner.optimizer.param_groups[0]["lr"] for _ in trainer.train()]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_no_run_trains_on_the_episodes_of_another_or_of_its_examination() -> None:
    first = [Config().eval.seed]
    for seed in range(3):
        streams = Trainer(settings("Novel", seed=seed)).collector.streams
        first.append(min(stream.seed for stream in streams))
    assert all(later - earlier >= 1_000_000 for earlier, later in pairwise(first))


# --- stopping and going on ---


def assert_same_outcome(found: Run, expected: Run) -> None:
    """All that a run leaves behind, but for the time it took."""
    one, other = ([timeless(m) for m in run.metrics()] for run in (found, expected))
    assert one == other
    assert list(found.episodes()) == list(expected.episodes())
    (tensors, state), (expected_tensors, expected_state) = (
        run.load_checkpoint() for run in (found, expected)
    )
    assert state | {"seconds": None} == expected_state | {"seconds": None}
    assert tensors.keys() == expected_tensors.keys()
    for group, named in expected_tensors.items():
        assert tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(tensors[group][name], tensor)


@pytest.mark.parametrize(("case", "stop"), [("poad", 1), ("reinforce", 2), ("shared", 3)])
def test_a_stopped_run_goes_on_exactly(case: str, stop: int, tmp_path: Path) -> None:
    config = config_of(case, eval={"episodes": 3, "every": 2, "streams": 2})
    with Run.create(tmp_path / "whole", config) as whole:
        assert len(list(train(config, whole))) == 4

    with Run.create(tmp_path / "parted", config) as parted:
        stopped = train(config, parted)
        for _ in range(stop):
            next(stopped)
        stopped.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert parted.checkpoints()[-1] == stop
    with Run.open(tmp_path / "parted") as parted:
        assert len(list(train(parted.config, parted, resume=True))) == 4 - stop

    assert_same_outcome(parted, whole)
    examined = [
        list(evaluate(load_agent(config, r.load_checkpoint()[0]), episodes=4, seed=5, greedy=False))
        for r in (whole, parted)
    ]
    assert examined[0] == examined[1]


def test_a_run_that_ended_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = config_of("poad")
    with Run.create(tmp_path / "run", config) as run:
        list(train(config, run))
        before = run.metrics()
        assert list(train(config, run, resume=True)) == []
        assert run.metrics() == before
        assert run.checkpoints() == [2, 4]


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize("where", ["step", "log"])
def test_an_interrupted_iteration_leaves_the_checkpoint_before_it(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks in the fourth iteration; going on from the second repeats the third."""
    config = config_of("poad", eval={"episodes": 2, "every": 1})
    with Run.create(tmp_path / "whole", config) as whole:
        list(train(config, whole))

    with Run.create(tmp_path / "cut", config) as cut:
        trainer = Trainer(config, cut)

        def fail(*_: Any, **__: Any) -> None:
            raise PowerCut

        with monkeypatch.context() as patch:
            progress = trainer.train()
            for _ in range(3):
                next(progress)
            broken = trainer.learner.optimizer if where == "step" else cut
            patch.setattr(broken, where, fail)
            with pytest.raises(PowerCut):
                next(progress)
        assert cut.checkpoints()[-1] == 2
    with Run.open(tmp_path / "cut") as cut:
        assert len(list(train(config, cut, resume=True))) == 2
    assert_same_outcome(cut, whole)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_breaks_in_its_first_iteration_goes_on_from_checkpoint_0(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PowerCut

    config = config_of(case)
    with Run.create(tmp_path / "whole", config) as whole:
        list(train(config, whole))
    with Run.create(tmp_path / "cut", config) as cut, monkeypatch.context() as patch:
        patch.setattr(PPO, "update", fail)
        with pytest.raises(PowerCut):
            next(train(config, cut))
        assert cut.checkpoints() == [0]
    with Run.open(tmp_path / "cut") as cut:
        assert len(list(train(config, cut, resume=True))) == 4
    assert_same_outcome(cut, whole)


def test_a_checkpoint_is_written_when_so_many_minutes_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration takes a minute here, and there are four."""
    now = iter(range(0, 1_000_000, 60))
    written: dict[float, list[int]] = {}
    for minutes in (0.0, 3.0):
        config = config_of("poad", checkpoint_every=0, checkpoint_minutes=minutes)
        with Run.create(tmp_path / str(minutes), replace(config, keep_checkpoints=9)) as run:
            trainer = Trainer(run.config, run)
            clock = SimpleNamespace(monotonic=lambda: next(now))
            monkeypatch.setattr("poad.learn.saving.time", clock)
            list(trainer.train())
            written[minutes] = run.checkpoints()
    assert written[0.0] == [0, 4]
    assert written[3.0] == [0, 3, 4]


def test_the_best_by_evaluation_stays_beside_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.1, 0.7, 0.7, 0.3, 0.2, 0.6])
    monkeypatch.setattr(
        Trainer, "evaluate", lambda _: {"eval_success": next(found), "eval_return": 0.0}
    )
    config = config_of("poad", steps=90, checkpoint_every=0, eval={"every": 1})
    with Run.create(tmp_path / "run", replace(config, keep_checkpoints=1)) as run:
        list(train(run.config, run))
        assert run.checkpoints() == [2, 6]
        assert run.checkpoint_path("best").name == "000002"
        assert run.checkpoint_path().name == "000006"


def test_without_evaluations_there_is_no_best(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", config_of("poad")) as run:
        list(train(run.config, run))
        with pytest.raises(RunError, match=r"no checkpoint that was evaluated in training"):
            run.checkpoint_path("best")


@pytest.mark.parametrize("file", ["state.json", "policy.safetensors", "optimizer.safetensors"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(file: str, tmp_path: Path) -> None:
    config = config_of("poad", eval={"episodes": 2, "every": 2})
    with Run.create(tmp_path / "run", config) as run:
        list(train(config, run))
    whole = Run.open(shutil.copytree(tmp_path / "run", tmp_path / "whole"))
    damaged = run.checkpoint_path() / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with Run.open(tmp_path / "run") as run:
        with pytest.warns(UserWarning, match=rf"000004 is damaged: {file}.*one before, 000002"):
            assert len(list(train(config, run, resume=True))) == 2
        assert (run.path / "checkpoints" / "damaged-000004" / file).read_bytes() == content
    assert_same_outcome(run, whole)


def test_while_steps_are_skipped_no_checkpoint_is_written(tmp_path: Path) -> None:
    """Weights that lead to NaN never replace those before them."""
    config = config_of("poad", checkpoint_every=1, ppo={"epochs": 1, "minibatches": 1})
    with Run.create(tmp_path / "run", config) as run:
        trainer = Trainer(config, run)
        progress = trainer.train()
        assert next(progress)["skipped"] == 0
        last = trainer.agent.model.parameters()[-1]
        hook = last.register_hook(lambda gradient: gradient * math.nan)
        with pytest.warns(UserWarning, match="step was skipped: the losses are finite, but"):
            assert next(progress)["skipped"] == 1
        assert run.checkpoints() == [0, 1]
        hook.remove()
        assert next(progress)["skipped"] == 0
        assert run.checkpoints() == [1, 3]


def test_being_examined_on_the_way_changes_nothing() -> None:
    def learned(every: int) -> tuple[list[str], Tensor]:
        trainer = Trainer(config_of("poad", eval={"episodes": 3, "every": every}))
        told = []
        for metrics in trainer.train():
            assert ("eval_success" in metrics) == (every == 1)
            told.append(timeless({k: v for k, v in metrics.items() if "eval" not in k}))
        return told, weights(trainer)

    often, never = learned(1), learned(0)
    assert often[0] == never[0]
    assert torch.equal(often[1], never[1])


def test_no_episodes_mean_no_examination() -> None:
    trainer = Trainer(config_of("poad", eval={"episodes": 0, "every": 1}))
    assert "eval_success" not in next(iter(trainer.train()))


# --- what cannot be trained is told before it starts ---


@pytest.mark.parametrize("method", ["twosome", "glam"])
def test_methods_of_whole_actions_refuse_free_writing_at_once(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"{method} .*tiny/Diary-v0 .*poad"):
        Trainer(settings("Diary", credit={"method": method}))


def test_two_discounts_per_step_are_told() -> None:
    kitchen = "poad/TomatoSalad-v0"
    with pytest.warns(UserWarning, match=r"by 0\.99 per primitive step.*gamma = 0\.9"):
        Trainer(settings(kitchen, credit={"gamma": 0.9}))
    for credit in ({"gamma": 0.9, "discount": "turn"}, {"gamma": 0.99}):
        Trainer(settings(kitchen, credit=credit))
    Trainer(settings("Chain", credit={"gamma": 0.9}))


def test_a_world_says_how_its_actions_end() -> None:
    with pytest.warns(UserWarning, match="one lamp is broken"):
        trainer = Trainer(settings("Workshop", acting={"max_action_tokens": None}))
    assert trainer.config.acting.stop == (".",)
    assert trainer.config.acting.max_action_tokens == 5
    usual = Trainer(settings("Diary", acting={"max_action_tokens": None})).config.acting
    assert (usual.stop, usual.max_action_tokens) == (("\n",), 64)


@pytest.mark.filterwarnings("ignore:one lamp is broken")
def test_the_best_work_is_kept_and_measures_are_means(tmp_path: Path) -> None:
    """Also where the run was stopped in between."""
    config = settings("Workshop", checkpoint_every=1)
    outcomes = []
    for name, stop in (("whole", 4), ("parted", 2)):
        with Run.create(tmp_path / name, config) as run:
            steps = train(config, run)
            list(islice(steps, stop))
            steps.close()  # pyright: ignore[reportAttributeAccessIssue]
        if stop < 4:
            (tmp_path / name / "best.txt").unlink()
            with Run.open(tmp_path / name) as run:
                list(train(config, run, resume=True))
        state = run.load_checkpoint()[1]
        best, text = state["works"]["best"], (tmp_path / name / "best.txt").read_text()
        told = f"# score {best['score']:.4f}, standard deviation 0.5000, turn {best['turn']}"
        assert text == f"{told}\n{best['text']}\n"
        outcomes.append((text, [timeless(metrics) for metrics in run.metrics()]))
        letters = [m["letters"] for m in state["measured"] if "letters" in m]
        assert run.metrics()[-1]["world/letters"] == pytest.approx(sum(letters) / len(letters))
        assert best["score"] >= max(letters)
        assert run.metrics()[-1]["cpu_seconds"] >= 0.25 * 60
    assert outcomes[0] == outcomes[1]
