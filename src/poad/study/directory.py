"""The directory of a study: its runs, their state, and the results that follow from them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from poad.config import dump
from poad.errors import ConfigError, LockedError, RunError
from poad.runs import take_lock, write_json, write_text
from poad.study.aggregate import Selection, aggregate, read_run, select_settings
from poad.study.comparable import changed_settings, identify
from poad.study.known import Known
from poad.study.records import Cost, MissingRun, Results, RunRow, Scale, Settings, read_results
from poad.study.spec import Job, Study, candidates, reported_jobs, search_jobs
from poad.study.workers import Task, cpu_seconds_spent


class StudyDirectory:
    """A study and the directory it is run in.

    Args:
        study: the study.
        out: the directory.
        text: of the study file.
        known: runs that were made elsewhere.
    """

    def __init__(self, study: Study, out: Path, text: str, known: Known | None = None) -> None:
        self.study, self.out, self.text = study, out, text
        self.runs, self.known = out / "runs", known or Known(study)
        self.search = [job for job in search_jobs(study) if job.method not in self.known.chosen]
        self.tasks = {job.name: self._task(job) for job in self.search}

    def _task(self, job: Job) -> Task:
        path = self.runs / job.name
        if job.candidate is not None:
            return Task(path)
        return Task(path, self.study.unseen.worlds, self.study.unseen.episodes)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from running a study in the same directory."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            lock = take_lock(self.runs / ".lock")
        except LockedError as error:
            raise RunError(
                f"Another process ({error}) is running a study in {self.out}. Wait until it ends, "
                "stop it, or choose another --out."
            ) from error
        except OSError as error:
            raise RunError(f"Cannot write into {self.runs}: {error}.") from error
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def protect_results(self) -> None:
        """Reject a directory whose results would be lost, because their runs are not there."""
        file = self.out / "results.json"
        if not file.is_file():
            return
        results = read_results(file)
        names = {f"{row.world}.{row.method}.{row.seed}" for row in results.runs}
        names -= self.known.rows.keys()
        gone = sorted(name for name in names if not (self.runs / name).is_dir())
        searched = any(
            each.runs and each.method not in self.known.chosen for each in results.search
        )
        if searched and not any(self.runs.glob("search-*")):
            gone.append("those of the search")
        if gone:
            few = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
            raise ConfigError(
                f"{file} describes runs that are not in {self.runs}: {few}. Writing new results "
                f"would lose their numbers. Keep them with --known {file}, choose another --out "
                f"(default: runs/studies/{self.study.name}), or move that file elsewhere."
            )

    # Which settings and which runs.

    def selection(self) -> Selection:
        """Select settings by the search so far; those that runs have started with stay selected."""
        known = self.known
        if not self.search and not known.chosen:
            return Selection({}, [], known.versions)
        found = select_settings(self.study, self.search, self.tasks)
        tried, started = candidates(self.study), self._started_with()
        kept = {method: settings for method, settings in started.items() if settings in tried}
        return Selection(
            {**found.settings, **kept, **known.chosen},
            [*known.candidates, *found.candidates],
            [*known.versions, *found.versions],
        )

    def _started_with(self) -> dict[str, Settings]:
        """The settings of those methods that have a reported run."""
        file = self.runs / "chosen.json"
        try:
            chosen = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            started = {
                job.method
                for job in reported_jobs(self.study, {})
                if (self.runs / job.name / "config.yaml").is_file()
            }
            return {method: settings for method, settings in chosen.items() if method in started}
        except (ValueError, AttributeError) as error:
            raise RunError(
                f"{file} cannot be read: {error}. Delete it to select settings again."
            ) from error

    def reported(self) -> list[Job]:
        """List the reported runs, except those of methods whose settings are not selected yet."""
        selected = self.selection().settings
        jobs = reported_jobs(self.study, selected)
        self.tasks |= {job.name: self._task(job) for job in jobs}
        return [job for job in jobs if not self.study.search.seeds or job.method in selected]

    def unknown(self, jobs: Sequence[Job]) -> list[Job]:
        """List those runs that no result from elsewhere reports."""
        return [job for job in jobs if job.name not in self.known.rows]

    def write_configs(self, jobs: Sequence[Job]) -> None:
        """Write the configuration of each run next to its directory."""
        for job in jobs:
            if changed := changed_settings(job, self.tasks[job.name]):
                raise ConfigError(
                    f"The run {job.name} in {self.runs} was made with other settings than the "
                    f"study now has: {'; '.join(changed)}. Choose another --out, or delete "
                    f"{self.out}."
                )
        reported = {job.method for job in jobs if job.candidate is None}
        selected = self.selection().settings if reported else {}
        selected = {method: each for method, each in selected.items() if method in reported}
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            if selected:
                write_json(self.runs / "chosen.json", self._started_with() | selected)
            for job in jobs:
                write_text(self.tasks[job.name].sibling(".yaml"), dump(job.config))
        except OSError as error:
            raise RunError(f"Cannot write into {self.runs}: {error}.") from error

    def within_budget(self) -> bool:
        """Whether the budget allows another run to start."""
        budget = self.study.budget_minutes
        return budget is None or cpu_seconds_spent(self.runs) < 60 * budget

    # What follows from the runs.

    def results(self) -> Results:
        """Compute the results of the runs that are finished now."""
        study, ready = self.study, {job.name for job in self.reported()}
        selection = self.selection()
        jobs = reported_jobs(study, selection.settings)
        rows, missing = self._rows([*self.search, *jobs], ready)
        versions = [*selection.versions, *(row.versions for row in rows)]
        return Results(
            study=study.name,
            question=study.question,
            toy=study.toy,
            identity=identify(study, jobs, versions),
            methods=tuple(study.methods),
            scale=Scale(
                study.scale,
                {name: world.at or 0.0 for name, world in study.worlds.items() if study.scale},
            ),
            cost=Cost(
                cpu_minutes=self.known.cpu_minutes + cpu_seconds_spent(self.runs) / 60,
                search_minutes=(
                    self.known.search_minutes + cpu_seconds_spent(self.runs, "search-") / 60
                ),
                budget_minutes=study.budget_minutes,
            ),
            chosen=selection.settings,
            search=tuple(selection.candidates),
            aggregates=aggregate(study, rows),
            missing=tuple(missing),
            runs=tuple(rows),
            file=self.text,
        )

    def _rows(self, jobs: Sequence[Job], ready: set[str]) -> tuple[list[RunRow], list[MissingRun]]:
        """Read the finished reported runs, of here or elsewhere, and list the missing ones."""
        rows, missing = [], []
        for job in jobs:
            task = self.tasks[job.name]
            is_ready = job.candidate is not None or job.name in ready
            if job.name in self.known.rows and not task.finished:
                rows.append(self.known.rows[job.name])
            elif is_ready and (changed := changed_settings(job, task)):
                why = "; ".join(changed)
                missing.append(MissingRun(job.name, "made with other settings", why))
            elif not is_ready or not task.finished:
                missing.append(_missing(job, task))
            elif job.candidate is None:
                rows.append(read_run(job, task))
        return rows, missing


def _missing(job: Job, task: Task) -> MissingRun:
    if (why := task.failure) is not None:
        return MissingRun(job.name, "failed", why)
    started = (task.path / "metrics.jsonl").is_file()
    return MissingRun(job.name, "unfinished" if started else "not run", "")
