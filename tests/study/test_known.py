"""Parts of a study that were made in different places become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pretended_study import pretend, study_file

from poad.errors import ConfigError
from poad.study.directory import StudyDirectory
from poad.study.known import Known
from poad.study.page import write_results
from poad.study.records import Results, format_results, read_results
from poad.study.run import run_study
from poad.study.spec import Job, read_study

SEARCH: dict[str, Any] = {"grid": {"ppo.lr": [1e-4, 1e-3]}, "seeds": [7]}


def place(folder: Path, known: Sequence[Path] = (), **changes: Any) -> StudyDirectory:
    """A directory of the study in a folder of its own."""
    folder.mkdir(exist_ok=True)
    file = study_file(folder, **changes)
    study = read_study(file)
    made = StudyDirectory(study, folder / "out", file.read_text(), Known(study, known))
    made.runs.mkdir(parents=True, exist_ok=True)
    return made


def made(directory: StudyDirectory, jobs: Sequence[Job]) -> Path:
    """Pretend that these runs were made, and write the results; returns where they are."""
    for job in jobs:
        rate = 100 * job.config.ppo.lr + 0.1 * job.seed  # another number for each
        pretend(directory, job, [0.0, min(rate, 1.0)])
    write_results(directory.results(), directory.out)
    return directory.out


def test_parts_from_two_places_give_the_numbers_of_a_study_made_in_one(tmp_path: Path):
    whole = place(tmp_path / "whole")
    expected = read_results(made(whole, whole.reported()))
    first, second = place(tmp_path / "first"), place(tmp_path / "second")
    parts = [made(first, first.reported()[:3]), made(second, second.reported()[2:])]
    joined = place(tmp_path / "joined", parts)
    found = read_results(made(joined, ()))
    assert (found.runs, found.missing, found.identity) == (expected.runs, (), expected.identity)
    assert found.aggregates == expected.aggregates
    third = place(tmp_path / "third", parts[:1])
    assert {each.run for each in third.results().missing} == {j.name for j in third.reported()[3:]}


def test_a_search_made_elsewhere_is_taken_over_with_its_choice_and_its_cost(tmp_path: Path):
    first = place(tmp_path / "first", search=SEARCH)
    made(first, first.search)
    told = read_results(made(first, first.reported()[:1]))
    assert told.chosen == {"poad": {"ppo.lr": 1e-3}, "ntpo": {"ppo.lr": 1e-3}}
    second = place(tmp_path / "second", [first.out], search=SEARCH)
    assert second.search == []
    found = second.results()
    assert (found.chosen, found.search) == (told.chosen, told.search)
    assert found.cost == told.cost
    assert found.identity.versions == told.identity.versions
    assert all(job.config.ppo.lr == 1e-3 for job in second.reported())


def test_results_that_add_nothing_cost_nothing(tmp_path: Path):
    first = place(tmp_path / "first")
    made(first, first.reported()[:1])
    second = place(tmp_path / "second", [first.out])
    made(second, second.reported()[1:])
    minutes = read_results(second.out).cost.cpu_minutes
    both = place(tmp_path / "both", [first.out, second.out])
    assert both.results().cost.cpu_minutes == minutes


def test_a_run_that_is_here_counts_before_one_from_elsewhere(tmp_path: Path):
    first = place(tmp_path / "first")
    job = first.reported()[0]
    pretend(first, job, [0.25])
    write_results(first.results(), first.out)
    second = place(tmp_path / "second", [first.out])
    assert [row.success for row in second.results().runs] == [0.25]
    pretend(second, job, [0.75])
    assert [row.success for row in second.results().runs] == [0.75]


def test_known_runs_are_not_made_again_and_not_lost(tmp_path: Path):
    first = place(tmp_path / "first")
    made(first, first.reported())
    file, out = tmp_path / "first" / "small.yaml", tmp_path / "again"
    assert run_study(file, out=out, known=[first.out], quiet=True) == 0
    assert [each.name for each in (out / "runs").iterdir() if each.is_dir()] == []
    kept = read_results(out)
    assert len(kept.runs) == 4
    with pytest.raises(ConfigError, match=r"Keep them with --known .*results\.json"):
        run_study(file, out=out, quiet=True)
    assert run_study(file, out=out, known=[out / "results.json"], jobs=0, quiet=True) == 0
    assert read_results(out) == kept


def renamed(results: Results, folder: Path, **identity: Any) -> Path:
    changed = replace(results, identity=replace(results.identity, **identity))
    folder.mkdir()
    (folder / "results.json").write_text(format_results(changed))
    return folder


def test_runs_of_another_study_are_refused_with_what_differs(tmp_path: Path):
    first = place(tmp_path / "first")
    made(first, first.reported()[:1])
    told = read_results(first.out)
    panel = renamed(told, tmp_path / "panel", panel=replace(told.identity.panel, episodes=9))
    old = renamed(told, tmp_path / "old", settings=None, configs={"chain.poad": "abc"})
    methods = {"poad": {"ppo": {"lr": 0.125}}, "ntpo": {"credit": {"method": "ntpo"}}}
    cases: tuple[tuple[Path, dict[str, Any], str], ...] = (
        (first.out, {"methods": methods}, r"chain\.poad: ppo\.lr 0\.0005 and 0\.125"),
        (panel, {}, r"panel: episodes 9 and 3"),
        (old, {}, r"chain\.poad: abc and \w+ \(older results keep only these hashes\)"),
    )
    for i, (known, changes, said) in enumerate(cases):
        with pytest.raises(ConfigError, match=said):
            place(tmp_path / f"case{i}", [known], **changes)


def test_two_searches_that_chose_differently_are_refused(tmp_path: Path):
    outs = []
    for name, best in (("first", 1e-4), ("second", 1e-3)):
        part = place(tmp_path / name, search=SEARCH)
        for job in part.search:
            pretend(part, job, [0.0, float(job.config.ppo.lr == best)])
        outs.append(made(part, part.reported()[:1]))
    with pytest.raises(ConfigError, match="the search selected"):
        place(tmp_path / "both", outs, search=SEARCH)
