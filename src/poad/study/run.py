"""`poad study`: from a study file to its runs, and from the runs to its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from poad.config import Config
from poad.credit import find_method
from poad.display import Screen, Table, can_be_live, counted, interval
from poad.errors import ConfigError, RunError
from poad.study.attempts import Place
from poad.study.comparable import incomparable
from poad.study.directory import StudyDirectory
from poad.study.known import Known
from poad.study.models import make_models
from poad.study.page import write_results
from poad.study.progress import StudyProgress
from poad.study.records import SUCCESS, Results, read_results
from poad.study.spec import (
    Job,
    Study,
    read_study,
    reported_jobs,
    toy_study,
    unknown,
)
from poad.study.workers import run_tasks
from poad.workflows import check_world


def run_study(
    file: Path,
    *,
    out: Path | None = None,
    jobs: int = 2,
    smoke: bool = False,
    only: Sequence[str] = (),
    known: Sequence[Path] = (),
    quiet: bool = False,
    place: Place | None = None,
) -> int:
    """Carry out the missing runs of a study, then write its tables, drawings and page.

    Args:
        file: the study file.
        out: the study's directory; default: runs/studies/<name>.
        jobs: how many runs at once; 0 runs nothing and writes the results so far.
        smoke: run at toy size.
        only: worlds or methods to run now; default: all.
        known: results of this study from elsewhere, whose runs are taken over instead of made.
        quiet: show nothing.
        place: where runs are carried out; default: on this machine.

    Returns:
        The exit status: 1 if a requested run has failed, 130 after Ctrl-C, else 0, even if the
        budget ended the study early.

    Raises:
        ConfigError: the study cannot be run, or the directory or ``known`` hold runs of another.
        RunError: the output cannot be written, or another process is running a study there.
    """
    study = toy_study(read_study(file)) if smoke else read_study(file)
    worlds, methods = _select(study, only)
    out = out or Path("runs") / "studies" / (study.name + ("-smoke" if smoke else ""))
    _check_parts(study)
    if known:  # what a configuration means depends on the model that it names
        make_models(study.models, set(study.models), quiet=quiet)
    directory = StudyDirectory(study, out, file.read_text(encoding="utf-8"), Known(study, known))
    console, requested, interrupted = Screen(quiet=quiet), list[Job](), False
    with directory.lock() if jobs else nullcontext():
        directory.protect_results()
        if jobs:
            told = f", with {counted(len(directory.known.rows), 'known run')}" if known else ""
            console.print("Study", Text(study.name, style="bold"), f"into {out}{told}")
            try:
                for each in _parts(directory, worlds, methods, quiet=quiet):
                    requested += each
                    _run_jobs(directory, each, jobs, console, place)
            except KeyboardInterrupt:
                interrupted = True
                console.print("\nStopped; nothing is lost. The same command goes on.")
        results = directory.results()
        try:
            *_, page = write_results(results, out)
        except OSError as error:
            raise RunError(f"Cannot write the results into {out}: {error}.") from error
    _show(console, results, page)
    names = {job.name for job in requested}
    failed = {m.run for m in results.missing if m.state == "failed"}
    return 130 if interrupted else int(bool(failed & names if jobs else failed))


def compare_studies(first: Path, second: Path) -> int:
    """Print two studies side by side, or why they cannot be compared: then the status is 1."""
    one, other = read_results(first), read_results(second)
    console = Screen()
    if reasons := incomparable(one, other):
        console.print(f"{first} and {second} cannot be compared:")
        for reason in reasons:
            console.print(f"  {reason}", soft_wrap=True)
        return 1
    found = {(each.world, each.method): each.success for each in other.aggregates.summaries}
    rows = [
        (each.world, each.method, interval(each.success), interval(found[each.world, each.method]))
        for each in one.aggregates.summaries
        if (each.world, each.method) in found
    ]
    console.print("Comparable. Success at the end, interquartile mean over seeds:")
    columns = ("world", "method", str(first), str(second))
    console.print(Table(columns, rows, align="llll").to_terminal())
    return 0


def _select(study: Study, only: Sequence[str]) -> tuple[list[str], list[str]]:
    """The worlds and the methods to run."""
    known = [*study.worlds, *study.methods]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only: {unknown(name, known)}")
    worlds = [name for name in study.worlds if name in only] or list(study.worlds)
    methods = [name for name in study.methods if name in only] or list(study.methods)
    return worlds, methods


def _parts(
    directory: StudyDirectory, worlds: Sequence[str], methods: Sequence[str], *, quiet: bool
) -> Iterator[list[Job]]:
    """Make the models that are needed, then list the missing runs: of the search, and of the rest.

    The settings of the rest follow from the search.
    """
    study = directory.study
    jobs = [*directory.search, *directory.unknown(reported_jobs(study, {}))]
    jobs = [job for job in jobs if job.world in worlds and job.method in methods]
    make_models(study.models, {job.config.model.name for job in jobs}, quiet=quiet)
    yield [job for job in directory.search if job.method in methods]
    reported = directory.unknown(directory.reported())
    yield [job for job in reported if job.world in worlds and job.method in methods]


def _check_parts(study: Study) -> None:
    """Open every world and find every method, so that a mistake is reported at once."""
    for job in reported_jobs(study, {}):
        if job.seed == study.seeds[0] and job.method == next(iter(study.methods)):
            check_world(job.config)
        find_method(job.config.credit.method)
    for world in study.unseen.worlds:
        check_world(Config(env=world))


def _run_jobs(
    directory: StudyDirectory,
    jobs: Sequence[Job],
    at_once: int,
    console: Console,
    place: Place | None,
) -> None:
    directory.write_configs(jobs)
    progress = StudyProgress(directory, jobs)
    tasks = [directory.tasks[job.name] for job in jobs]
    live = can_be_live(console)
    screen = Live(console=console, auto_refresh=False, transient=True) if live else None
    events = run_tasks(tasks, at_once, directory.within_budget, place)
    with screen or nullcontext(), closing(events):
        for event in events:
            progress.update(event)
            if event.kind in ("finished", "retried", "failed"):
                console.print(progress.describe(event), soft_wrap=True)
            if screen is not None:
                screen.update(progress.render(), refresh=True)


def _show(console: Console, results: Results, page: Path) -> None:
    """Print the shortest table: success by method and world, or the area under another curve."""
    summaries, curve = results.aggregates.summaries, results.identity.curve
    shown = {
        (each.method, each.world): each.success if curve == SUCCESS else each.area
        for each in summaries
    }
    cells = {key: interval(each, ".2f") for key, each in shown.items()}
    rows = [
        [method, *(cells.get((method, world), "–") for world in results.worlds)]
        for method in results.methods
        if any(each.method == method for each in summaries)
    ]
    score = SUCCESS if curve == SUCCESS else f"area under {curve}"
    columns = (f"{score}, IQM over seeds", *results.worlds)
    console.print(Table(columns, rows, align="l" * len(columns)).to_terminal())
    states = Counter(missing.state for missing in results.missing)
    missing = "".join(f", {count} {state}" for state, count in states.items())
    console.print(f"{counted(len(results.runs), 'run')} finished{missing}. See {page}")
