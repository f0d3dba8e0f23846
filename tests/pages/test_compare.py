"""Runs compared: what differs is listed, what is the same is not, and seeds are paired."""

from __future__ import annotations

from pathlib import Path

from synthetic_run import episode, run_of

from poad.config import Config
from poad.pages import pairs_table, results_table, settings_table, versions_table
from poad.pages.compare import names
from poad.runs import Run, write_sealed


def test_equal_runs_differ_in_nothing(tmp_path: Path):
    runs = [run_of(tmp_path / name, iterations=2, episodes=2) for name in ("a", "b")]
    assert settings_table(runs).rows == []
    assert versions_table(runs).rows == []


def test_settings_and_versions_that_differ_are_named(tmp_path: Path):
    runs = [run_of(tmp_path / "a", episodes=0), run_of(tmp_path / "b", seed=5, episodes=0)]
    assert settings_table(runs).rows == [["seed", "0", "5"]]
    worlds = [
        Run.create(tmp_path / str(steps), Config(env_args={"max_steps": steps})) for steps in (3, 4)
    ]
    assert settings_table(worlds).rows == [["env_args.max_steps", "3", "4"]]
    file = runs[1].path / "versions.json"
    write_sealed(file, runs[1].versions() | {"torch": "0.1"})
    assert [row[0] for row in versions_table(runs).rows] == ["torch"]


def test_only_seeds_that_both_played_are_paired(tmp_path: Path):
    a, b = (Run.create(tmp_path / name, Config()) for name in ("a", "b"))
    a.add_episodes(episode(seed, success=True) for seed in range(8))
    b.add_episodes(episode(seed, success=seed % 2 == 0) for seed in range(4, 12))
    (success, returned) = pairs_table([a, b]).rows
    assert success[:3] == ["a − b", "success", "4"]
    assert success[3].startswith("+0.500 [")
    assert returned[3].startswith("+0.700 [")  # half of them lose 1.1 − (−.3)


def test_other_worlds_modes_and_too_few_seeds_are_not_paired(tmp_path: Path):
    a, b, c, d = (Run.create(tmp_path / name, Config()) for name in "abcd")
    a.add_episodes(episode(seed) for seed in range(8))
    b.add_episodes(episode(seed, mode="greedy") for seed in range(8))
    c.add_episodes(episode(seed, env="other/World-v0") for seed in range(8))
    d.add_episodes([episode(0)])
    assert pairs_table([a, b, c, d]).rows == []


def test_a_run_without_an_evaluation_has_its_training_means(tmp_path: Path):
    row = results_table([run_of(tmp_path / "a", episodes=0)]).rows[0]
    assert row[6] == "training"
    assert row[5].endswith("%")
    empty = results_table([Run.create(tmp_path / "b", Config())]).rows[0]
    assert empty[3:] == ["–", "–", "–", "training", "–"]


def test_names_are_as_long_as_it_takes_to_tell_runs_apart(tmp_path: Path):
    runs = [run_of(tmp_path / place / "run", iterations=1, episodes=0) for place in ("a", "b")]
    assert names(runs) == ["a/run", "b/run"]
    assert names(runs[:1]) == ["run"]
