"""Studies: what a file means, that nothing is lost, and what the numbers are made with."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forked import poad
from pretended_study import chain, pretend, study_file

from poad.cli.main import main
from poad.config import load
from poad.credit.methods import METHODS
from poad.errors import ConfigError, RunError
from poad.learn.train import train
from poad.runs import (
    UNTRAINED,
    Evaluation,
    Generalization,
    Mode,
    Run,
    UnseenEvaluation,
    Versions,
    encode,
    plain,
    read_lines,
    write_json,
    write_sealed,
    write_text,
)
from poad.study.comparable import FORMAT, identify, incomparable
from poad.study.directory import StudyDirectory
from poad.study.page import write_results
from poad.study.progress import StudyProgress
from poad.study.records import Results, WorldIdentity, format_results, read_results
from poad.study.run import run_study
from poad.study.spec import (
    Job,
    candidates,
    fingerprint,
    read_study,
    reported_jobs,
    search_jobs,
    toy_study,
)
from poad.study.workers import Event

ROOT = Path(__file__).parents[2]


def facts(path: Path) -> list[dict[str, Any]]:
    """A run's metrics without what a clock said."""
    timed = ("seconds", "per_second")
    return [
        {k: v for k, v in line.items() if not k.endswith(timed)}
        for line in read_lines(path / "metrics.jsonl")
    ]


# What a file means.


def test_a_study_is_the_product_and_stays_balanced_however_early_it_ends(tmp_path: Path):
    worlds = {"a": chain(), "b": chain(steps=24)}
    study = read_study(study_file(tmp_path, worlds=worlds, seeds=[0, 1, 2]))
    jobs = reported_jobs(study, {})
    assert len({job.name for job in jobs}) == len(jobs) == 12
    assert {(j.world, j.method, j.seed) for j in jobs} == {
        (w, m, s) for w in worlds for m in study.methods for s in (0, 1, 2)
    }
    for end in range(len(jobs)):
        counts = [
            sum((j.world, j.method) == (w, m) for j in jobs[:end])
            for w in worlds
            for m in study.methods
        ]
        assert max(counts) - min(counts) <= 1


def test_the_method_overrides_the_world_and_the_search_overrides_both(tmp_path: Path):
    world = chain(ppo={"lr": 1e-3, "epochs": 3, "clip": 0.3})
    methods = {"mine": {"ppo": {"lr": 2e-3, "epochs": 2}}}
    study = read_study(study_file(tmp_path, worlds={"a": world}, methods=methods, compare={}))
    (config,) = {j.config.ppo for j in reported_jobs(study, {"mine": {"ppo.lr": 3e-3}})}
    assert (config.lr, config.epochs, config.clip) == (3e-3, 2, 0.3)
    job = reported_jobs(study, {})[1]
    assert (job.config.seed, job.config.steps, job.config.streams) == (1, 16, 2)
    assert (job.config.eval.episodes, job.config.eval.every, job.config.eval.turns) == (3, 1, False)


def test_the_search_tries_every_combination_on_other_seeds_and_other_episodes(tmp_path: Path):
    grid = {"ppo.lr": [1e-4, 1e-3], "ppo.entropy": [0.0, 0.1, 0.2]}
    study = read_study(study_file(tmp_path, search={"grid": grid, "seeds": [7, 8]}))
    jobs = search_jobs(study)
    assert len(jobs) == 6 * 2 * 2
    assert {(j.config.ppo.lr, j.config.ppo.entropy) for j in jobs} == {
        (lr, h) for lr in (1e-4, 1e-3) for h in (0.0, 0.1, 0.2)
    }
    reported = reported_jobs(study, {})
    assert not {j.seed for j in jobs} & {j.seed for j in reported}
    first = {j.config.eval.seed for j in reported}
    assert {j.config.eval.seed for j in jobs} == {seed + study.panel.episodes for seed in first}


def test_settings_that_share_an_entry_of_the_grid_go_together(tmp_path: Path):
    grid = {"ppo.lr": [1e-4, 1e-3], "ppo.entropy, ppo.entropy_free": [[0.1, 0], [0.2, 0.3]]}
    study = read_study(study_file(tmp_path, search={"grid": grid, "seeds": [7]}))
    tried = {
        (j.config.ppo.lr, j.config.ppo.entropy, j.config.ppo.entropy_free)
        for j in search_jobs(study)
    }
    assert tried == {(lr, *pair) for lr in (1e-4, 1e-3) for pair in ((0.1, 0.0), (0.2, 0.3))}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'. Did you mean 'seeds'"),
        ({"panel": {"episode": 3}}, "Did you mean 'episodes'"),
        ({"worlds": {"a": {"evn": "x"}}}, "unknown key 'a.evn'"),
        ({"worlds": {"a": {"steps": 5}}}, "needs either config or env"),
        ({"methods": {"poad": {"credit": {"gama": 1}}}}, "Did you mean 'gamma'"),
        ({"methods": {"a/b": {}}}, "cannot name"),
        ({"seeds": []}, "no seeds"),
        ({"seeds": [0, 0]}, "listed twice"),
        ({"seeds": ["a"]}, "wrong type"),
        ({"compare": {"poda": "all"}}, "Did you mean 'poad'"),
        ({"compare": {"poad": ["ntop"]}}, "Did you mean 'ntpo'"),
        ({"compare": {"poad": "some"}}, "a list of methods, or `all`"),
        ({"search": {"grid": {"ppo.lr": [1]}, "seeds": [0]}}, "must not be reported"),
        ({"search": {"grid": {"ppo.lr": [1]}}}, "both a grid and seeds"),
        ({"search": {"grid": {"ppo.rl": [1]}, "seeds": [9]}}, "unknown key 'ppo.rl'"),
        ({"search": {"grid": {"ppo.lr": 1}, "seeds": [9]}}, "list of values"),
        ({"search": {"grid": {"ppo.lr,ppo.clip": [[1]]}, "seeds": [9]}}, "lists of 2 values each"),
        ({"search": {"worlds": ["chian"]}}, "Did you mean 'chain'"),
        ({"search": {"grid": {3: [1]}, "seeds": [9]}}, "3 is not a setting"),
        ({"search": {"grid": {"ppo.lr": [1]}, "seeds": [9, 9]}}, "listed twice"),
        ({"search": {"worlds": ["chain", "chain"]}}, "listed twice"),
        (
            {"search": {"grid": {"ppo.lr": [1], "ppo.clip, ppo.lr": [[1, 1]]}, "seeds": [9]}},
            "in two entries",
        ),
        ({"search": {"grid": {"steps": [1]}, "seeds": [9]}}, "give `steps` to the world"),
        ({"methods": {"poad": {"steps": 9}}}, "give `steps` to the world"),
        ({"methods": {True: {}}}, "put quotes around names"),
        ({"worlds": {2: chain()}}, "put quotes around names"),
        ({"worlds": {"all": chain()}}, "means all of them"),
        ({"unseen": {"worlds": ["poad/Chese-v0"]}}, "Did you mean 'poad/Cheese-v0'"),
        ({"unseen": {"worlds": ["tiny_worlds:tiny/Chain-v0"]}}, "are trained in"),
        ({"panel": {"seed": 2_000_000}}, "1000000, which is free"),
        ({"panel": {"seed": -1}}, "negative"),
        ({"panel": {"episodes": 0}}, "above 0"),
        ({"budget_minutes": -1}, "budget"),
        ({"worlds": {"chain": chain() | {"threshold": 2}}}, "at most 1, not 2"),
    ],
)
def test_mistakes_are_reported_with_suggestions(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ConfigError) as caught:
        read_study(study_file(tmp_path, **changes))
    assert said in str(caught.value)


SHIPPED = sorted((ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_can_be_read_and_shrunk(path: Path):
    study = read_study(path)
    assert study.name == path.stem
    assert len(study.seeds) >= 5
    toy = toy_study(study)
    jobs = [*search_jobs(toy), *reported_jobs(toy, {})]
    assert len(jobs) <= 60
    assert {job.config.steps for job in jobs} == {128}
    assert {job.method for job in jobs} == set(study.methods)


# Runs: carried out once, reported when they fail, resumed when they were stopped.


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A study with a method that cannot work: file, output, exit status."""
    folder = tmp_path_factory.mktemp("study")
    methods = {"poad": {}, "broken": {"env": "tiny_worlds:tiny/Broken-v0"}}
    search = {"grid": {"ppo.lr": [1e-4, 1e-3]}, "seeds": [9]}
    file = study_file(folder, methods=methods, search=search)
    return file, folder / "out", run_study(file, out=folder / "out", quiet=True)


def test_a_run_of_a_study_is_an_ordinary_run(studied: tuple[Path, Path, int], tmp_path: Path):
    _, out, _ = studied
    made = Run.open(out / "runs" / "chain.poad.1")
    summary = made.summary()
    assert summary is not None
    assert summary.status == "finished"
    with Run.create(tmp_path / "alone", made.config) as run:
        list(train(made.config, run))
    assert facts(tmp_path / "alone") == facts(made.path)


def test_a_failed_run_is_tried_twice_and_listed_with_its_last_words(
    studied: tuple[Path, Path, int],
):
    file, out, status = studied
    assert status == 1
    results = read_results(out)
    missing = {each.run: each for each in results.missing}
    assert set(missing) == {
        "search-0.chain.broken.9",
        "search-1.chain.broken.9",
        "chain.broken.0",
        "chain.broken.1",
    }
    failed = missing["search-0.chain.broken.9"]
    assert failed.state == "failed"
    assert "the floor gave way" in failed.why
    assert missing["chain.broken.0"].state == "not run"  # its settings were never found
    for page in ("results.md", "study.html"):
        assert "the floor gave way" in (out / page).read_text()
    attempts = [line["run"] for line in read_lines(out / "runs" / "spent.jsonl")]
    assert attempts.count("search-0.chain.broken.9") == 2
    assert attempts.count("chain.poad.0") == 1

    assert run_study(file, out=out, quiet=True) == 1
    again = [line["run"] for line in read_lines(out / "runs" / "spent.jsonl")][len(attempts) :]
    assert set(again) == {"search-0.chain.broken.9", "search-1.chain.broken.9"}


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_what_a_killed_run_has_cost_is_counted(tmp_path: Path):
    world = chain(steps=9600) | {"env": "tiny_worlds:tiny/Deadly-v0"}
    file = study_file(tmp_path, worlds={"a": world}, methods={"poad": {}}, seeds=[0], compare={})
    out = tmp_path / "out"
    assert run_study(file, out=out, quiet=True) == 1
    (missing,) = read_results(out).missing
    assert (missing.state, missing.why) == ("failed", "ended by signal 9")
    lines = list(read_lines(out / "runs" / "spent.jsonl"))
    assert [line["run"] for line in lines] == ["a.poad.0"] * 2
    assert all(line["killed"] and line["cpu_seconds"] > 0 for line in lines)
    assert not list((out / "runs").glob("*.cpu"))


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_the_last_words_are_those_of_the_last_attempt(tmp_path: Path):
    world = chain(steps=9600) | {"env": "tiny_worlds:tiny/Deadly-v0"}
    file = study_file(tmp_path, worlds={"a": world}, methods={"poad": {}}, seeds=[0], compare={})
    runs = tmp_path / "out" / "runs"
    runs.mkdir(parents=True)
    (runs / "a.poad.0.log").write_text("what an earlier attempt said\n")
    assert run_study(file, out=tmp_path / "out", quiet=True) == 1
    (missing,) = read_results(tmp_path / "out").missing
    assert missing.why == "ended by signal 9"
    assert "an earlier attempt" in (runs / "a.poad.0.log").read_text()


def test_the_search_chooses_the_best_area_and_its_cost_is_told(studied: tuple[Path, Path, int]):
    _, out, _ = studied
    results = read_results(out)
    tried = [each for each in results.search if each.method == "poad"]
    best = max(tried, key=lambda each: each.area)
    assert results.chosen == {"poad": best.settings}
    assert all(each.cpu_seconds > 0 and each.runs == 1 for each in tried)
    made = Run.open(out / "runs" / "chain.poad.0").config
    assert made.ppo.lr == best.settings["ppo.lr"]
    assert "Search" in (out / "results.md").read_text()


def test_the_page_needs_nothing_else(studied: tuple[Path, Path, int]):
    _, out, _ = studied
    page = (out / "study.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "src=" not in page
    assert 'href="' not in page.replace('xlink:href="#', "")
    assert page.count("<svg") == 4
    assert sum(file.stat().st_size for file in out.iterdir() if file.is_file()) < 600_000


def test_a_study_that_became_another_is_refused(studied: tuple[Path, Path, int], tmp_path: Path):
    file, out, _ = studied
    text = file.read_text().replace("steps: 16", "steps: 24")
    (tmp_path / "small.yaml").write_text(text)
    with pytest.raises(ConfigError, match="steps 16 → 24"):
        run_study(tmp_path / "small.yaml", out=out, quiet=True)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, number: signal.Signals):
    world = chain(steps=960, streams=4, checkpoint_every=2)
    file = study_file(
        tmp_path, worlds={"chain": world}, methods={"poad": {}}, seeds=[0], compare={}
    )
    out = tmp_path / "out"
    process = poad("study", str(file), "--out", str(out), "--quiet")
    run = out / "runs" / "chain.poad.0"
    while len(list(read_lines(run / "metrics.jsonl"))) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    status = process.wait()
    assert status == (130 if number == signal.SIGINT else -number)
    while (summary := Run.open(run).summary()) is None:
        time.sleep(0.05)  # without its parent it stops by itself
    assert summary.status == "stopped"
    before = len(facts(run))
    assert before < 60

    assert run_study(file, out=out, quiet=True) == 0
    rows = facts(run)
    assert [row["iteration"] for row in rows] == list(range(1, 61))
    config = load(out / "runs" / "chain.poad.0.yaml")
    alone = (plain(row) for row in train(config))
    for row, other in zip(rows[: before + 3], alone, strict=False):
        assert row["return"] == other["return"]
        assert row["value_loss"] == other["value_loss"]


@pytest.mark.filterwarnings("default:.*moved to.*:UserWarning")
def test_a_run_that_cannot_be_opened_is_moved_aside_with_everything_in_it(tmp_path: Path):
    file = study_file(tmp_path, methods={"poad": {}}, seeds=[0])
    out = tmp_path / "out"
    assert run_study(file, out=out, quiet=True) == 0
    path = out / "runs" / "chain.poad.0"
    for number in (1, 2):
        (path / "notes.txt").write_text("a stranger's")
        (path / "summary.json").unlink()
        (path / "config.yaml").write_text("")
        held = sorted(each.relative_to(path) for each in path.rglob("*"))
        with pytest.warns(UserWarning, match=r"config.yaml is incomplete.*moved to .*\.aside"):
            assert run_study(file, out=out, quiet=True) == 0
        aside = path.with_name(path.name + (".aside" if number == 1 else ".aside-2"))
        assert sorted(each.relative_to(aside) for each in aside.rglob("*")) == held
        assert Run.open(path).summary() is not None


def test_what_does_not_fit_the_budget_is_listed_as_not_run(tmp_path: Path):
    file = study_file(tmp_path, budget_minutes=1e-6)
    assert run_study(file, out=tmp_path / "out", jobs=1, quiet=True) == 0
    results = read_results(tmp_path / "out")
    assert len(results.runs) == 1
    assert [each.state for each in results.missing] == ["not run"] * 3


def test_any_study_runs_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = str(ROOT / "studies" / "generalization.yaml")
    out = tmp_path / "out"
    assert main(["study", file, "--smoke", "--out", str(out), "--only", "poad"]) == 0
    assert "finished food_preparation.poad.0" in capsys.readouterr().out
    results = read_results(out)
    assert [run.seed for run in results.runs] == [0, 1]
    assert {each.world for run in results.runs for each in run.unseen} == {"poad/Cheese-v0"}
    assert "at toy size" in (out / "study.html").read_text()


# Numbers, from runs that nobody trained.


@pytest.fixture
def study(tmp_path: Path) -> StudyDirectory:
    file = study_file(tmp_path, seeds=[0, 1, 2, 3])
    made = StudyDirectory(read_study(file), tmp_path / "out", file.read_text())
    made.runs.mkdir(parents=True)
    return made


def test_the_numbers_are_those_of_the_runs(study: StudyDirectory):
    for job in study.reported():
        late = [0.0, 0.25, 0.75] if job.seed else [0.0, 0.0, 0.0]
        pretend(study, job, [0.0, 1.0, 1.0] if job.method == "poad" else late)
    results = study.results()
    found = {each.method: each for each in results.aggregates.summaries}
    assert found["poad"].success == (1.0, 1.0, 1.0)
    assert found["poad"].area[0] == 0.75
    assert found["poad"].speed is not None
    assert (found["poad"].speed.steps_to, found["poad"].speed.cpu_seconds_to) == (16, 4)
    assert found["ntpo"].speed is not None
    assert (found["ntpo"].never, found["ntpo"].speed.steps_to) == (0.25, 24)
    (pair,) = results.aggregates.pairs
    assert pair.success.difference[0] == pytest.approx((3 * 0.25 + 1) / 4)
    assert pair.success.improvement[0] == 1
    assert pair.success.p == 2 / 2**4
    write_results(results, study.out)
    text = (study.out / "results.md").read_text()
    assert "poad − ntpo" in text
    assert "from all 8 runs" in text
    assert encode(read_results(study.out)) == encode(results)


def test_curves_show_what_the_study_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One table of the same runs by success, by return, and by a metric of every iteration."""
    found: dict[str, Results] = {}
    for curve, threshold in (("success", 0.5), ("return", 40), ("world/right", -3)):
        worlds = {"chain": chain() | {"threshold": threshold}}
        file = study_file(tmp_path, curve=curve, worlds=worlds)
        study = StudyDirectory(read_study(file), tmp_path / f"by {threshold}", file.read_text())
        study.runs.mkdir(parents=True)
        for job in study.reported():
            heights = {"eval_return": [0.0, 100.0], "world/right": [-4.0, -3.0]}
            pretend(study, job, [0.0, 1.0], heights)
        results = found[curve] = study.results()
        for row in results.runs:
            assert row.success == 1
            assert [point[2:] for point in row.curve] == [(0, 0), (1, 100)]
            assert (row.steps_to, row.cpu_seconds_to) == (16, 4)
        write_results(results, study.out)
        assert encode(read_results(study.out)) == encode(results)
        assert curve in (study.out / "results.md").read_text()
        assert run_study(file, out=study.out, jobs=0) == 0
        said = capsys.readouterr().out
        assert ("success, IQM over seeds" in said) == (curve == "success")
        assert (f"area under {curve}, IQM" in said) == (curve != "success")
        area, job = results.runs[0].area, study.reported()[0]
        finished = Event("finished", study.tasks[job.name])
        described = StudyProgress(study, [job]).describe(finished)
        assert "success 100%" in described
        assert (f", {curve} {results.runs[0].learning[-1][2]:.3g}," in described) == (
            curve != "success"
        )
        assert (f"{area:.2f} [" in said) == (curve != "success")
    assert [results.runs[0].area for results in found.values()] == [0.5, 50, -3.5]
    assert [results.aggregates.curves[0].points[-1][1] for results in found.values()] == [
        1,
        100,
        -3,
    ]
    (reason,) = incomparable(found["success"], changed(found["success"], curve="return"))
    assert reason == "learning curves: success and return"


def test_a_metric_of_the_training_is_compared_over_runs(
    study: StudyDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for job in study.reported():
        better = 1.0 if job.method == "poad" else 0.0
        values = [job.seed + better * i for i in range(5)]
        pretend(study, job, [0.0] * 5, {"world/right": values})
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", ["", str(study.out), "chain", "world/right", "ntpo"])
    importlib.import_module("training_metric").main()
    table = capsys.readouterr().out
    assert "| 4 seeds |" in table
    assert "| poad | 3.500 | 4.500 | +2.000 [+2.000, +2.000] | +3.000 [+3.000, +3.000] |" in table
    assert "| ntpo | 1.500 | 1.500 | +0.000" in table


def test_a_curve_of_no_metric_says_what_there_is(tmp_path: Path):
    file = study_file(tmp_path, curve="world/rihgt")
    study = StudyDirectory(read_study(file), tmp_path / "out", file.read_text())
    study.runs.mkdir(parents=True)
    for job in study.reported():
        pretend(study, job, [0.0, 1.0], {"world/right": [0.0, 1.0]})
    with pytest.raises(RunError, match=r"no metric 'world/rihgt'. Did you mean 'world/right'"):
        study.results()


COMMITTED = sorted((ROOT / "benchmarks" / "studies").glob("*/results.json"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_committed_results_are_read_and_written_back_to_the_byte(file: Path, tmp_path: Path):
    results = read_results(file.parent)
    assert format_results(results) == file.read_text(encoding="utf-8")
    write_results(results, tmp_path)
    report = (file.parent / "results.md").read_text(encoding="utf-8")
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == report
    content = encode(results.identity)
    if results.identity.format == FORMAT:
        content.pop("settings", None)
        assert content.pop("hash") == fingerprint(content)


def test_results_that_lack_a_key_are_rejected_with_its_name(tmp_path: Path):
    content = json.loads(COMMITTED[0].read_text(encoding="utf-8"))
    del content["runs"][3]["area"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"results.json: runs: 3: the key 'area' is missing"):
        read_results(tmp_path)


def test_a_seed_without_its_counterpart_is_left_out_of_pairs_alone(study: StudyDirectory):
    for job in study.reported():
        if (job.method, job.seed) != ("ntpo", 3):
            pretend(study, job, [0.0, 0.5])
    results = study.results()
    assert [each.seeds for each in results.aggregates.summaries] == [4, 3]
    assert [each.seeds for each in results.aggregates.pairs] == [3]
    assert [each.run for each in results.missing] == ["chain.ntpo.3"]


def test_seeds_that_not_every_world_has_are_left_out_of_all_worlds_together(tmp_path: Path):
    worlds = {"a": chain(), "b": chain()}
    file = study_file(tmp_path, worlds=worlds, methods={"poad": {}}, seeds=list(range(10)))
    study = StudyDirectory(read_study(file), tmp_path / "out", file.read_text())
    study.runs.mkdir(parents=True)
    for job in study.reported():
        if job.world == "a" or job.seed < 3:
            pretend(study, job, [0.0, 1.0 if job.world == "a" else 0.0])
    results = study.results()
    found = {each.world: each for each in results.aggregates.summaries}
    assert [found[name].seeds for name in ("a", "b", "all")] == [10, 3, 3]
    assert found["all"].success[0] == pytest.approx(0.5)
    assert found["all"].never == 0.5
    (profile,) = results.aggregates.profiles
    assert profile.points[0][1] == 0.5


def test_without_a_word_on_comparisons_the_first_method_is_compared_with_all(tmp_path: Path):
    methods = {"poad": {}, "ntpo": {"credit": {"method": "ntpo"}}, "other": {}}
    study = read_study(study_file(tmp_path, methods=methods, compare={}))
    assert study.pairs == (("poad", "ntpo"), ("poad", "other"))


def generalized(study: StudyDirectory, job: Job, rates: dict[str, float], episodes: int) -> None:
    """As `poad generalize` leaves it: the run, another beside it, and the untrained agent."""
    agents = {"poad, seed 0": 0.0, "somebody else": 0.9, UNTRAINED: -0.2}
    modes: tuple[Mode, ...] = ("sampled", "greedy")
    found = Generalization(
        tuple(
            UnseenEvaluation(
                agent, 8, world, mode, Evaluation(episodes, rate + more, (0.0, 1.0), 0.5, 3.0)
            )
            for agent, more in agents.items()
            for world, rate in rates.items()
            for mode in modes
        )
    )
    write_json(study.tasks[job.name].path / "generalization.json", found)


def test_unseen_worlds_have_intervals_over_seeds_and_comparisons(tmp_path: Path):
    unseen = {"worlds": ["poad/Cheese-v0", "poad/Pizza-v0"], "episodes": 5}
    file = study_file(tmp_path, seeds=[0, 1, 2, 3], unseen=unseen)
    study = StudyDirectory(read_study(file), tmp_path / "out", file.read_text())
    study.runs.mkdir(parents=True)
    for job in study.reported():
        pretend(study, job, [0.5])
        good = 0.8 if job.method == "poad" else 0.4
        rates = {"poad/Cheese-v0": good, "poad/Pizza-v0": good - 0.2}
        generalized(study, job, rates, episodes=5)
    results = study.results()
    found = {(u.method, u.mode, u.world): u for u in results.aggregates.unseen}
    assert len(found) == 2 * 2 * 3
    whole = found["poad", "sampled", "all"]
    assert (whole.success[0], whole.mean, whole.runs) == (
        pytest.approx(0.7),
        pytest.approx(0.7),
        4,
    )
    (against,) = whole.against
    assert against.other == "ntpo"
    assert against.compared is not None
    assert against.compared.difference[0] == pytest.approx(0.4)
    assert against.compared.improvement[0] == 1
    write_results(results, study.out)
    text = (study.out / "results.md").read_text()
    assert "| poad | sampled | 4 | 0.80 [0.80, 0.80] | 0.60 [0.60, 0.60]" in text
    assert "untrained" in text

    again = study.results().identity.hash
    more = study_file(tmp_path, seeds=[0, 1, 2, 3], unseen=unseen | {"episodes": 9})
    other = StudyDirectory(read_study(more), tmp_path / "out", "")
    assert other.results().runs == ()  # examined, but not as is asked now
    assert other.results().identity.hash != again
    told_apart = incomparable(results, other.results())
    assert any("unseen worlds: episodes 5 and 9" in reason for reason in told_apart)

    for spoilt in ("", "[]", '{"results": []}', '{"results": [{}]}'):
        (study.runs / "chain.poad.0" / "generalization.json").write_text(spoilt)
        missing = [each.run for each in study.results().missing]
        assert missing == ["chain.poad.0"]


def test_unseen_worlds_are_counted_by_the_world_that_was_trained_in(tmp_path: Path):
    unseen = {"worlds": ["poad/Cheese-v0"], "episodes": 5}
    worlds = {"a": chain(), "b": chain()}
    file = study_file(tmp_path, worlds=worlds, seeds=[0, 1, 2, 3, 4], unseen=unseen)
    study = StudyDirectory(read_study(file), tmp_path / "out", file.read_text())
    study.runs.mkdir(parents=True)
    for job in study.reported():
        pretend(study, job, [0.5])
        rate = (0.1 if job.world == "a" else 0.8) + 0.05 * (job.method == "poad")
        generalized(study, job, {"poad/Cheese-v0": rate, "poad/Pizza-v0": 1.0}, episodes=5)
    found = {(u.method, u.mode): u for u in study.results().aggregates.unseen}
    assert {u.world for u in found.values()} == {"poad/Cheese-v0"}  # Pizza was not asked for
    cheese = found["poad", "sampled"]
    assert cheese.runs == 10
    assert cheese.success == (pytest.approx(0.5),) * 3  # the worlds weigh the same in all draws
    (against,) = cheese.against
    assert against.compared is not None
    assert against.compared.improvement == (1, 1, 1)


@pytest.mark.parametrize("spoilt", ["", "[]", "<<<<<<<"])
def test_a_record_that_cannot_be_read_is_told_and_kept(study: StudyDirectory, spoilt: str):
    (study.out / "results.json").write_text(spoilt)
    with pytest.raises(ConfigError, match=r"results.json.* holds no results"):
        run_study(study.out.parent / "small.yaml", out=study.out, quiet=True)
    assert (study.out / "results.json").read_text() == spoilt


def test_a_choice_that_cannot_be_read_is_told(tmp_path: Path):
    study = searching(tmp_path, [1e-4])
    write_text(study.runs / "chosen.json", "[]")
    with pytest.raises(RunError, match="Delete it to select settings again"):
        study.selection()


def test_a_failure_that_was_not_asked_about_is_no_failure_now(tmp_path: Path):
    methods = {"poad": {}, "broken": {"env": "tiny_worlds:tiny/Broken-v0"}}
    file = study_file(tmp_path, methods=methods, seeds=[0])
    out = tmp_path / "out"
    assert run_study(file, out=out, quiet=True, only=["broken"]) == 1
    assert run_study(file, out=out, quiet=True, only=["poad"]) == 0
    assert run_study(file, out=out, quiet=True, jobs=0) == 1


def searching(folder: Path, rates: list[float]) -> StudyDirectory:
    grid = {"ppo.lr": rates}
    changes: dict[str, Any] = {"methods": {"poad": {}}, "search": {"grid": grid, "seeds": [7]}}
    file = study_file(folder, **changes)
    study = StudyDirectory(read_study(file), folder / "out", file.read_text())
    study.runs.mkdir(parents=True, exist_ok=True)
    return study


def test_a_search_with_other_settings_than_its_runs_is_told_and_decides_nothing(tmp_path: Path):
    study = searching(tmp_path, [1e-4, 1e-3])
    for job in study.search:
        pretend(study, job, [0.0, 10 * job.config.ppo.lr])
    assert study.selection().settings == {"poad": {"ppo.lr": 1e-3}}
    edited = searching(tmp_path, [1e-4, 5e-2])
    results = edited.results()
    assert results.chosen == {}
    states = {each.run: each for each in results.missing}
    assert states["search-1.chain.poad.7"].state == "made with other settings"
    assert "ppo.lr 0.001 → 0.05" in states["search-1.chain.poad.7"].why


def test_what_runs_were_begun_with_stays_chosen(tmp_path: Path):
    study = searching(tmp_path, [1e-4, 1e-3])
    first, second = study.search
    pretend(study, first, [0.0, 0.5])
    write_text(study.tasks[second.name].sibling(".failed"), "the floor gave way")
    jobs = study.reported()
    study.write_configs(jobs)
    for job in jobs:
        pretend(study, job, [0.5])
    write_text(study.tasks[second.name].sibling(".failed"), "")
    pretend(study, second, [0.0, 1.0])  # the retry does better
    again = searching(tmp_path, [1e-4, 1e-3])
    again.write_configs(again.reported())
    results = again.results()
    assert results.chosen == {"poad": {"ppo.lr": 1e-4}}
    assert len(results.runs) == 2
    for job in jobs:  # with no run begun, the best is chosen anew
        shutil.rmtree(again.tasks[job.name].path)
    assert again.selection().settings == {"poad": {"ppo.lr": 1e-3}}


def test_versions_of_the_search_count_as_well(tmp_path: Path):
    study = searching(tmp_path, [1e-4])
    (job,) = study.search
    pretend(study, job, [0.5])
    place = study.tasks[job.name].path / "versions.json"
    write_sealed(place, json.loads(place.read_text()) | {"torch": "0.1"})
    for reported in study.reported():
        pretend(study, reported, [0.5])
    assert {v["torch"] for v in study.results().identity.versions} >= {"0.1"}
    assert len(study.results().identity.versions) == 2


def test_results_whose_runs_are_gone_are_not_written_over(study: StudyDirectory, tmp_path: Path):
    file = tmp_path / "small.yaml"
    for job in study.reported():
        pretend(study, job, [0.5])
    write_results(study.results(), study.out)
    before = (study.out / "results.json").read_text()
    shutil.rmtree(study.runs)
    for jobs in (0, 2):
        with pytest.raises(ConfigError, match=r"describes runs that are not in .* and 5 more"):
            run_study(file, out=study.out, jobs=jobs, quiet=True)
    assert (study.out / "results.json").read_text() == before
    assert run_study(file, out=tmp_path / "elsewhere", jobs=0, quiet=True) == 0


@pytest.mark.skipif(os.name != "posix", reason="needs advisory locks")
def test_two_studies_do_not_share_a_place(study: StudyDirectory, tmp_path: Path):
    hold = "import sys, pathlib; from poad.runs.files import take_lock; "
    hold += "take_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(study.runs / ".lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"process {other.pid} .* is running a study in"):
            run_study(tmp_path / "small.yaml", out=study.out, quiet=True)
        other.communicate("")
    with study.lock():
        pass


def changed(results: Results, **identity: Any) -> Results:
    return replace(results, identity=replace(results.identity, **identity))


def test_other_panels_worlds_versions_or_settings_make_numbers_incomparable(study: StudyDirectory):
    for job in study.reported():
        pretend(study, job, [0.5])
    results = study.results()
    assert incomparable(results, results) == []
    told = results.identity

    def world(**changes: Any) -> dict[str, WorldIdentity]:
        return {"chain": replace(told.worlds["chain"], **changes)}

    other: Versions = dict(told.versions[0], torch="0.1")
    for key, to, said in (
        ("panel", replace(told.panel, seed=5), "panel"),
        ("worlds", world(source="abc"), "world chain: source"),
        ("worlds", world(steps=99), "steps 16 and 99"),
        ("versions", (other,), "version of torch"),
    ):
        (reason,) = incomparable(results, changed(results, **{key: to}))
        assert said in reason
    hashed = replace(told, configs=told.configs | {"chain.poad": "abc"})
    assert told.settings is not None
    # Settings count, not their hashes; one that poad gained since had its default before.
    before = {k: v for k, v in told.settings["all"].items() if k != "critic.warmup"}
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, ""),
        ({"all": before}, ""),
        ({"all": before | {"ppo.lr": 7.0}}, "ppo.lr 0.0005 and 7.0"),
        ({"all": before | {"critic.warmup": 3}}, "critic.warmup 0 and 3"),
    )
    for change, said in changes:
        new = replace(hashed, settings=told.settings | change)
        reasons = incomparable(results, replace(results, identity=new))
        assert [said in reason for reason in reasons] == ([True] if said else [])
    two = changed(results, versions=(*told.versions, other))
    assert any("different versions" in reason for reason in incomparable(results, two))


def test_the_hash_follows_panel_and_versions_and_nothing_of_the_machine(study: StudyDirectory):
    jobs = study.reported()
    for job in jobs:
        pretend(study, job, [0.5])
    results = study.results()
    told, made = results.identity.hash, [row.versions for row in results.runs]
    assert identify(study.study, jobs, made).hash == told
    for job in jobs:  # a slower machine, and a commit that changed no source
        run = study.tasks[job.name].path
        versions = json.loads((run / "versions.json").read_text())
        write_sealed(run / "versions.json", versions | {"git": "another", "platform": "a laptop"})
        summary = json.loads((run / "summary.json").read_text())
        write_sealed(run / "summary.json", summary | {"cpu_seconds": 99.0})
    assert study.results().identity.hash == told
    assert study.results().runs[0].cpu_seconds == 99
    for name in ("torch", "source", "python"):
        newer = [versions | {name: "0.1"} for versions in made]
        assert identify(study.study, jobs, newer).hash != told
    assert identify(toy_study(study.study), jobs, made).hash != told


def test_what_a_default_means_is_part_of_the_identity(
    study: StudyDirectory, monkeypatch: pytest.MonkeyPatch
):
    jobs = study.reported()
    before = identify(study.study, jobs, [])
    meaning = dict(METHODS) | {"poad": replace(METHODS["poad"], slots="tokens")}
    monkeypatch.setattr("poad.agent.settings.find_method", meaning.__getitem__)
    after = identify(study.study, jobs, [])
    assert before.configs["chain.poad"] != after.configs["chain.poad"]
    assert before.configs["chain.ntpo"] == after.configs["chain.ntpo"]


def test_the_command_compares_or_says_why_not(
    study: StudyDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for job in study.reported():
        pretend(study, job, [0.5])
    write_results(study.results(), study.out)
    results = read_results(study.out)
    panel = replace(results.identity.panel, seed=5)
    (tmp_path / "other.json").write_text(format_results(changed(results, panel=panel)))
    assert main(["study", "--compare", str(study.out), str(study.out)]) == 0
    assert "Comparable" in capsys.readouterr().out
    assert main(["study", "--compare", str(study.out), str(tmp_path / "other.json")]) == 1
    assert "panel" in capsys.readouterr().out
    assert main(["study", "--compare", str(study.out), str(tmp_path)]) == 2


def test_candidates_of_no_grid_are_one_that_changes_nothing(tmp_path: Path):
    study = read_study(study_file(tmp_path))
    assert candidates(study) == [{}]
    assert search_jobs(study) == []


def test_worlds_on_a_scale_are_drawn_against_it(tmp_path: Path):
    worlds = {"short": chain() | {"at": 2}, "long": chain() | {"at": 128}}
    file = study_file(tmp_path, worlds=worlds, scale="tokens per action")
    study = StudyDirectory(read_study(file), tmp_path / "out", file.read_text())
    study.runs.mkdir(parents=True)
    for job in study.reported():
        pretend(study, job, [0.0, 1.0 if job.world == "short" else 0.5])
    write_results(study.results(), study.out)
    drawing = (study.out / "scale.svg").read_text()
    assert "tokens per action" in drawing
    assert ">128<" in drawing.replace("\n", "").replace(" ", "")
    with pytest.raises(ConfigError, match="needs its place on it"):
        read_study(study_file(tmp_path, scale="tokens per action"))
