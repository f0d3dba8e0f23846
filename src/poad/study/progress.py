"""The progress of a study's runs: a line at the end of each, and a live table."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group

from poad.display import Table, percent
from poad.runs import read_lines
from poad.study.aggregate import read_run
from poad.study.directory import StudyDirectory
from poad.study.spec import Job
from poad.study.workers import Event, cpu_seconds_spent


class StudyProgress:
    """Counts runs by world and method, and knows which are active."""

    def __init__(self, directory: StudyDirectory, jobs: Sequence[Job]) -> None:
        tasks = directory.tasks
        self.directory, self.start = directory, time.monotonic()
        self.jobs: Mapping[Path, Job] = {tasks[job.name].path: job for job in jobs}
        self.done = {path for path, job in self.jobs.items() if tasks[job.name].finished}
        self.failed, self.running = set[Path](), set[Path]()

    def update(self, event: Event) -> None:
        """Count an event."""
        if event.task is None:
            return
        path = event.task.path
        if event.kind == "started":
            self.running.add(path)
            return
        self.running.discard(path)
        if event.kind == "finished":
            self.done.add(path)
        elif event.kind == "failed":
            self.failed.add(path)

    def describe(self, event: Event) -> str:
        """Describe the end of a run in a line; a failure with its last lines of output."""
        assert event.task is not None
        line = f"{len(self.done):>4}/{len(self.jobs)} {event.kind} {event.task.path.name}"
        if event.kind == "finished":
            row = read_run(self.jobs[event.task.path], event.task)
            return f"{line}: success {percent(row.success, 0)}, {row.cpu_seconds:.1f} CPU-s"
        again = ", trying again" if event.kind == "retried" else ""
        return f"{line}{again}:\n      " + event.why.replace("\n", "\n      ")

    def render(self) -> Group:
        """Render the live table: finished runs by method and world, active runs, and the cost."""
        study = self.directory.study
        counts = self._count(self.jobs)
        done, failed = self._count(self.done), self._count(self.failed)

        def cell(method: str, world: str) -> str:
            key = (method, world)
            failures = f", {failed[key]} failed" if failed[key] else ""
            return f"{done[key]}/{counts[key]}{failures}"

        rows = [[method, *(cell(method, w) for w in study.worlds)] for method in study.methods]
        active = [f"{path.name}: {self._steps(path)}" for path in sorted(self.running)]
        minutes = (time.monotonic() - self.start) / 60
        spent = cpu_seconds_spent(self.directory.runs) / 60
        return Group(
            Table(("method", *study.worlds), rows).to_terminal(),
            *active,
            f"{minutes:.0f} minutes, {spent:.1f} CPU minutes",
        )

    def _count(self, paths: Mapping[Path, Job] | set[Path]) -> Counter[tuple[str, str]]:
        """Number of runs by (method, world)."""
        return Counter((self.jobs[path].method, self.jobs[path].world) for path in paths)

    def _steps(self, path: Path) -> str:
        lines = deque(read_lines(path / "metrics.jsonl"), maxlen=1)
        steps = lines[0].get("env_steps", 0) if lines else 0
        return f"{steps:,} of {self.jobs[path].config.steps:,} steps"
