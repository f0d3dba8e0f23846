"""Runs of a study that were made elsewhere: what the results that report them say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from poad.errors import ConfigError
from poad.runs import Versions
from poad.study.comparable import conditions, identify
from poad.study.records import Candidate, Results, RunRow, Settings, read_results
from poad.study.spec import Study, reported_jobs


class Known:
    """The runs and the search of a study that results of other places report.

    Args:
        study: the study.
        places: files ``results.json``, or directories that hold one. Where two report the same run,
            the one with more runs counts.

    Raises:
        ConfigError: results cannot be read, belong to another study, or contradict each other.
    """

    def __init__(self, study: Study, places: Sequence[Path] = ()) -> None:
        self.rows: dict[str, RunRow] = {}
        """The reported runs by name."""
        self.chosen: dict[str, Settings] = {}
        """The settings that the search selected, by method."""
        self.candidates: list[Candidate] = []
        self.versions: list[Versions] = []
        """What the runs were made with, those of the search included."""
        self.cpu_minutes = self.search_minutes = 0.0
        found = [(place, read_results(place)) for place in places]
        for place, results in sorted(found, key=lambda each: -len(each[1].runs)):
            self._check(study, place, results)
            self._add(study, results)

    def _check(self, study: Study, place: Path, results: Results) -> None:
        """Refuse runs that the study would now make otherwise."""
        jobs = reported_jobs(study, results.chosen)
        reasons = conditions(results.identity, identify(study, jobs, ()))
        if results.toy != study.toy:
            reasons.append("one of the two has toy size")
        for method, settings in results.chosen.items():
            if self.chosen.get(method, settings) != settings:
                reasons.append(
                    f"the search selected {settings} for {method}, and {self.chosen[method]} in "
                    "the other results"
                )
        if reasons:
            raise ConfigError(
                f"The runs of {place} do not belong to the study {study.name} as it is now: "
                f"{'; '.join(reasons)}. Leave these results out, or make their runs again."
            )

    def _add(self, study: Study, results: Results) -> None:
        """Take over what is new. Results that report nothing new cost nothing."""
        names = {job.name for job in reported_jobs(study, {})}
        rows = {f"{row.world}.{row.method}.{row.seed}": row for row in results.runs}
        new = {name: row for name, row in rows.items() if name in names and name not in self.rows}
        searched = results.chosen.keys() & study.methods.keys() - self.chosen.keys()
        if not new and not searched:
            return
        self.rows |= new
        self.chosen |= {method: results.chosen[method] for method in searched}
        self.candidates += [each for each in results.search if each.method in searched]
        self.versions += [each for each in results.identity.versions if each not in self.versions]
        self.cpu_minutes += results.cost.cpu_minutes
        self.search_minutes += results.cost.search_minutes or 0.0
