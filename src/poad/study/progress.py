"""The progress of a study's runs: a line at the end of each, and a live table."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Group

from poad.display import Table, percent
from poad.runs import read_lines
from poad.study.aggregate import read_run
from poad.study.directory import StudyDirectory
from poad.study.records import SUCCESS
from poad.study.spec import Job
from poad.study.workers import Event, cpu_seconds_spent


class StudyProgress:
    """Counts runs by world and method, and knows which are active."""

    def __init__(self, directory: StudyDirectory, jobs: Sequence[Job]) -> None:
        tasks = directory.tasks
        self.directory, self.start = directory, time.monotonic()
        self.jobs: Mapping[Path, Job] = {tasks[job.name].path: job for job in jobs}
        finished = [path for path, job in self.jobs.items() if tasks[job.name].finished]
        self.states: dict[Path, str] = dict.fromkeys(finished, "finished")
        """The kind of the last event of each run."""

    def update(self, event: Event) -> None:
        """Count an event."""
        if event.task is not None:
            self.states[event.task.path] = event.kind

    def describe(self, event: Event) -> str:
        """Describe the end of a run in a line; a failure with its last lines of output."""
        assert event.task is not None
        done, run = len(self._in("finished")), event.task.path.name
        line = f"{done:>4}/{len(self.jobs)} {event.kind} {run}"
        if event.kind == "finished":
            job = self.jobs[event.task.path]
            row = read_run(job, event.task)
            shown = f"success {percent(row.success, 0)}"
            if job.curve != SUCCESS and row.learning:
                shown += f", {job.curve} {row.learning[-1][2]:.3g}"
            return f"{line}: {shown}, {row.cpu_seconds:.1f} CPU-s"
        again = ", trying again" if event.kind == "retried" else ""
        return f"{line}{again}:\n      " + event.why.replace("\n", "\n      ")

    def render(self) -> Group:
        """Render the live table: finished runs by method and world, active runs, and the cost."""
        study = self.directory.study
        counts = self._count(self.jobs)
        done, failed = (self._count(self._in(state)) for state in ("finished", "failed"))

        def cell(method: str, world: str) -> str:
            key = (method, world)
            failures = f", {failed[key]} failed" if failed[key] else ""
            return f"{done[key]}/{counts[key]}{failures}"

        rows = [[method, *(cell(method, w) for w in study.worlds)] for method in study.methods]
        active = [f"{path.name}: {self._steps(path)}" for path in self._in("started")]
        minutes = (time.monotonic() - self.start) / 60
        spent = cpu_seconds_spent(self.directory.runs) / 60
        return Group(
            Table(("method", *study.worlds), rows).to_terminal(),
            *active,
            f"{minutes:.0f} minutes, {spent:.1f} CPU minutes",
        )

    def _in(self, state: str) -> list[Path]:
        return sorted(path for path, reached in self.states.items() if reached == state)

    def _count(self, paths: Iterable[Path]) -> Counter[tuple[str, str]]:
        """Number of runs by (method, world)."""
        return Counter((self.jobs[path].method, self.jobs[path].world) for path in paths)

    def _steps(self, path: Path) -> str:
        lines = deque(read_lines(path / "metrics.jsonl"), maxlen=1)
        steps = lines[0].get("env_steps", 0) if lines else 0
        return f"{steps:,} of {self.jobs[path].config.steps:,} steps"
