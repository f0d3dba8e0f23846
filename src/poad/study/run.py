"""`poad study`: from a study file to its runs, and from the runs to one honest table."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from poad.config import Config, dump
from poad.credit import find_method
from poad.display import Screen
from poad.errors import ConfigError, LockedError, RunError
from poad.runs import read_lines, take_lock, write_json, write_text
from poad.study.comparable import changed_settings, identity, incomparable, read_results
from poad.study.page import interval, write_results
from poad.study.results import Choice, choose, read_run, tally
from poad.study.spec import (
    Job,
    Settings,
    Study,
    candidates,
    main_jobs,
    read_study,
    search_jobs,
    shrink,
    unknown,
)
from poad.study.workers import Event, Task, carry_out, spent
from poad.workflows import check_world


def run_study(
    file: Path,
    *,
    out: Path | None = None,
    jobs: int = 2,
    smoke: bool = False,
    only: Sequence[str] = (),
    quiet: bool = False,
) -> int:
    """Run what a study is missing, then write its tables, drawings and page.

    Args:
        file: the study file.
        out: where everything goes; none: runs/studies/<name>.
        jobs: how many runs at once; 0 runs nothing and writes what there is.
        smoke: at toy size.
        only: worlds or methods to run now; none: all.
        quiet: show nothing.

    Returns:
        The exit status: 1 if a run asked for now has failed, 130 for Ctrl-C, else 0, also where the
        budget was spent before all were made.

    Raises:
        ConfigError: a study that cannot be run, or one that is now another than its runs.
        RunError: the output cannot be written, or would be written over results whose runs are
            gone, or another process is at it.
    """
    study = read_study(file)
    study = shrink(study) if smoke else study
    worlds, methods = _wanted(study, only)
    out = out or Path("runs") / "studies" / (study.name + ("-smoke" if smoke else ""))
    for job in main_jobs(study, {}):
        if job.seed == study.seeds[0] and job.method == next(iter(study.methods)):
            check_world(job.config)
        find_method(job.config.credit.method)
    for world in study.unseen.worlds:
        check_world(Config(env=world))
    book = Book(study, out, file.read_text(encoding="utf-8"))
    console, interrupted = Screen(quiet=quiet), False
    searched = [job for job in book.search if job.method in methods]
    asked = {job.name for job in searched}
    with book.alone() if jobs else nullcontext():
        book.keep_what_is_told()
        if jobs:
            console.print(f"Study [bold]{study.name}[/] into {out}", highlight=False)
            try:
                _carry_out(book, searched, jobs, console)
                reported = [j for j in book.main() if j.world in worlds and j.method in methods]
                asked |= {job.name for job in reported}
                _carry_out(book, reported, jobs, console)
            except KeyboardInterrupt:
                interrupted = True
                console.print("\nStopped; nothing is lost. The same command goes on.")
        results = book.results()
        try:
            files = write_results(results, out)
        except OSError as error:
            raise RunError(f"Cannot write the results into {out}: {error}.") from error
    if not quiet:
        _show(console, results, files[-1])
    failed = any(
        line["state"] == "failed" and (line["run"] in asked or not jobs)
        for line in results["missing"]
    )
    return 130 if interrupted else int(failed)


def compare_studies(first: Path, second: Path) -> int:
    """Print two studies' numbers side by side, or why they must not be; the exit status says so."""
    results = [read_results(place) for place in (first, second)]
    console = Screen()
    if reasons := incomparable(*results):
        console.print(f"{first} and {second} cannot be compared:", highlight=False)
        for reason in reasons:
            console.print(f"  {reason}", highlight=False, soft_wrap=True)
        return 1
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("world", "method", str(first), str(second)):
        table.add_column(head)
    there = {(s["world"], s["method"]): s for s in results[1]["summaries"]}
    for line in results[0]["summaries"]:
        other = there.get((line["world"], line["method"]))
        if other is not None:
            cells = (interval(each["success"]) for each in (line, other))
            table.add_row(line["world"], line["method"], *cells)
    console.print("Comparable. Success at the end, interquartile mean over seeds:")
    console.print(table)
    return 0


def _wanted(study: Study, only: Sequence[str]) -> tuple[list[str], list[str]]:
    known = [*study.worlds, *study.methods]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only: {unknown(name, known)}")
    worlds = [name for name in study.worlds if name in only] or list(study.worlds)
    methods = [name for name in study.methods if name in only] or list(study.methods)
    return worlds, methods


class Book:
    """Which runs a study has, where they lie and how they stand."""

    def __init__(self, study: Study, out: Path, text: str) -> None:
        self.study, self.out, self.text = study, out, text
        self.runs = out / "runs"
        self.search = search_jobs(study)
        self.tasks = {job.name: self._task(job) for job in self.search}

    def _task(self, job: Job) -> Task:
        unseen = self.study.unseen if job.candidate is None else None
        path = self.runs / job.name
        return Task(path, unseen.worlds, unseen.episodes) if unseen else Task(path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from running the same study into the same place meanwhile.

        Raises:
            RunError: one of them is at it, or nothing can be written here.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            lock = take_lock(self.runs / ".lock")
        except LockedError as error:
            raise RunError(
                f"Another process ({error}) runs a study in {self.out}. Wait until it ends, stop "
                "it, or give another --out."
            ) from error
        except OSError as error:
            raise RunError(f"Cannot write into {self.runs}: {error}.") from error
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def keep_what_is_told(self) -> None:
        """Refuse a place whose results tell of runs that are no longer there.

        Raises:
            ConfigError: they would be written over and lost, as those that lie in a repository
                without their runs.
        """
        file = self.out / "results.json"
        if not file.is_file():
            return
        told = read_results(file)
        names = [f"{line['world']}.{line['method']}.{line['seed']}" for line in told["runs"]]
        gone = [name for name in names if not (self.runs / name).is_dir()]
        if any(line["runs"] for line in told.get("search", ())):
            gone += [] if any(self.runs.glob("search-*")) else ["those of the search"]
        if gone:
            few = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
            raise ConfigError(
                f"{file} tells of runs that are not in {self.runs}: {few}. What it says of them "
                f"would be lost. Give another --out (default: runs/studies/{self.study.name}), or "
                "move that file away."
            )

    def choice(self) -> Choice:
        """What the search found so far; what runs were begun with stays chosen."""
        found = choose(self.study, self.search, self.tasks)
        tried, begun = candidates(self.study), self._begun_with()
        kept = {method: told for method, told in begun.items() if told in tried}
        return found._replace(settings={**found.settings, **kept}) if self.search else found

    def _begun_with(self) -> dict[str, Settings]:
        """What was chosen for the methods of which a reported run exists."""
        file = self.runs / "chosen.json"
        try:
            told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            begun = {
                job.method
                for job in main_jobs(self.study, {})
                if (self.runs / job.name / "config.yaml").is_file()
            }
            return {method: settings for method, settings in told.items() if method in begun}
        except (ValueError, AttributeError) as error:
            raise RunError(f"{file} cannot be read: {error}. Delete it to choose anew.") from error

    def main(self) -> list[Job]:
        """The reported runs, without those of methods that the search still owes settings."""
        chosen = self.choice().settings
        jobs = main_jobs(self.study, chosen)
        self.tasks |= {job.name: self._task(job) for job in jobs}
        return [job for job in jobs if not self.search or job.method in chosen]

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Write what each run is to be made with.

        Raises:
            ConfigError: a run exists and was made with other settings.
        """
        for job in jobs:
            if changed := changed_settings(job, self.tasks[job.name]):
                raise ConfigError(
                    f"The study now asks for another {job.name} than there is in {self.runs}: "
                    f"{'; '.join(changed)}. Give the study another --out, or delete it with all "
                    f"that is in {self.out}."
                )
        reported = {job.method for job in jobs if job.candidate is None}
        chosen = self.choice().settings if reported and self.search else {}
        chosen = {method: told for method, told in chosen.items() if method in reported}
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            if chosen:
                write_json(self.runs / "chosen.json", self._begun_with() | chosen)
            for job in jobs:
                write_text(self.tasks[job.name].beside(".yaml"), dump(job.config))
        except OSError as error:
            raise RunError(f"Cannot write into {self.runs}: {error}.") from error

    def may_start(self) -> bool:
        """Whether the budget allows another run."""
        budget = self.study.budget_minutes
        return budget is None or spent(self.runs) < 60 * budget

    def results(self) -> dict[str, Any]:
        """Everything there is to tell now."""
        study, ready = self.study, {job.name for job in self.main()}
        chosen, table, versions = self.choice()
        jobs = main_jobs(study, chosen)
        rows, missing = [], []
        for job in [*self.search, *jobs]:
            task = self.tasks[job.name]
            current = job.candidate is not None or job.name in ready
            changed = changed_settings(job, task) if current else []
            if changed:
                why = "; ".join(changed)
                missing.append({"run": job.name, "state": "made with other settings", "why": why})
            elif current and task.finished:
                if job.candidate is None:
                    threshold = study.world(job.world).threshold
                    rows.append(read_run(job, task, threshold))
            else:
                missing.append({"run": job.name, **_standing(task)})
        return {
            "study": study.name,
            "question": study.question,
            "toy": study.toy,
            "identity": identity(study, jobs, [*versions, *(row["versions"] for row in rows)]),
            "methods": list(study.methods),
            "scale": {
                "label": study.scale,
                "at": {name: study.world(name).at for name in study.worlds if study.scale},
            },
            "cost": {
                "cpu_minutes": spent(self.runs) / 60,
                "search_minutes": spent(self.runs, "search-") / 60,
                "budget_minutes": study.budget_minutes,
            },
            "chosen": chosen,
            "search": table,
            **tally(study, rows),
            "missing": missing,
            "runs": rows,
            "file": self.text,
        }


def _standing(task: Task) -> dict[str, str]:
    if (why := task.failure) is not None:
        return {"state": "failed", "why": why}
    begun = (task.path / "metrics.jsonl").is_file()
    return {"state": "unfinished" if begun else "not run", "why": ""}


# What is shown meanwhile.


def _carry_out(book: Book, jobs: Sequence[Job], at_once: int, console: Console) -> None:
    book.prepare(jobs)
    board = Board(book, jobs)
    tasks = [book.tasks[job.name] for job in jobs]
    live = console.is_terminal and not console.is_dumb_terminal and not console.quiet
    screen = Live(console=console, auto_refresh=False, transient=True) if live else None
    with screen or nullcontext(), closing(carry_out(tasks, at_once, book.may_start)) as events:
        for event in events:
            board.note(event)
            if event.kind in ("finished", "retried", "failed"):
                console.print(board.line(event), highlight=False, soft_wrap=True)
            if screen is not None:
                screen.update(board.picture(), refresh=True)


class Board:
    """How the runs stand: counts by world and method, and what is under way."""

    def __init__(self, book: Book, jobs: Sequence[Job]) -> None:
        self.book, self.start = book, time.monotonic()
        self.jobs: Mapping[Path, Job] = {book.tasks[job.name].path: job for job in jobs}
        self.done = {path for path, job in self.jobs.items() if book.tasks[job.name].finished}
        self.failed, self.running = set[Path](), dict[Path, float]()

    def note(self, event: Event) -> None:
        """Take in what happened."""
        if event.task is None:
            return
        path = event.task.path
        if event.kind == "started":
            self.running[path] = time.monotonic()
            return
        self.running.pop(path, None)
        if event.kind == "finished":
            self.done.add(path)
        elif event.kind == "failed":
            self.failed.add(path)

    def line(self, event: Event) -> str:
        """One line about the end of a run."""
        assert event.task is not None
        count = f"{len(self.done):>4}/{len(self.jobs)}"
        told = f"{count} {event.kind} {event.task.path.name}"
        if event.kind == "finished":
            job = self.jobs[event.task.path]
            row = read_run(job, event.task, self.book.study.world(job.world).threshold)
            return f"{told}: success {row['success']:.0%}, {row['cpu_seconds']:.1f} CPU-s"
        again = ", trying again" if event.kind == "retried" else ""
        return f"{told}{again}:\n      " + event.why.replace("\n", "\n      ")

    def picture(self) -> Table:
        """The live table."""
        study = self.book.study
        counts = Counter((j.method, j.world) for j in self.jobs.values())
        done, failed = (
            Counter((self.jobs[p].method, self.jobs[p].world) for p in paths)
            for paths in (self.done, self.failed)
        )
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("method")
        for world in study.worlds:
            table.add_column(world, justify="right")
        for method in study.methods:
            cells = []
            for world in study.worlds:
                key = (method, world)
                bad = f" [red]{failed[key]} failed[/]" if failed[key] else ""
                cells.append(f"{done[key]}/{counts[key]}{bad}")
            table.add_row(method, *cells)
        for path in self.running:
            job = self.jobs[path]
            last = next(reversed(list(read_lines(path / "metrics.jsonl"))), {})
            at = f"{last.get('env_steps', 0):,} of {job.config.steps:,} steps"
            table.add_row(f"[dim]{path.name}[/]", f"[dim]{at}[/]")
        minutes = (time.monotonic() - self.start) / 60
        used = spent(self.book.runs) / 60
        table.add_row(f"[dim]{minutes:.0f} min, {used:.1f} CPU-min[/]")
        return table


def _show(console: Console, results: Mapping[str, Any], page: Path) -> None:
    """The shortest table: success by method and world."""
    worlds = list(dict.fromkeys(line["world"] for line in results["summaries"]))
    cells = {(s["method"], s["world"]): interval(s["success"], ".2f") for s in results["summaries"]}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("success, IQM over seeds", *worlds):
        table.add_column(head)
    for method in results["methods"]:
        if any((method, world) in cells for world in worlds):
            table.add_row(method, *(cells.get((method, world), "–") for world in worlds))
    console.print(table)
    states = Counter(line["state"] for line in results["missing"])
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    console.print(f"{len(results['runs'])} runs{f'; {told}' if told else ''}. See {page}")
