"""``poad study``: many runs from one file, and a table of the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from poad.cli.arguments import Switch
from poad.cli.trust import trust
from poad.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Run the missing runs of a study, then write its tables, figures and page.

    A study file names worlds, methods and seeds; studies/ holds some. Ctrl-C stops after the
    current iterations, and the same command goes on from there. A run that fails is tried once more
    and then listed as failed.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """The study file."""
    jobs: int | None = None
    """Number of runs at a time, one thread each. 0 runs nothing and writes the results so far.
    Default: 2, or with --ray as many as the cluster has CPUs."""
    ray: Switch = False
    """Spread the runs over the Ray cluster that RAY_ADDRESS names, or over the one of this machine.
    All its machines must see the current directory (docs/scaling.md)."""
    smoke: Switch = False
    """Run the study at toy size, to see that everything works."""
    out: Path | None = None
    """Output directory. Default: runs/studies/<name>."""
    only: tuple[str, ...] = ()
    """Worlds or methods to run now. Default: all."""
    known: tuple[Path, ...] = ()
    """Results of the same study from other places or machines. Their runs are taken over instead of
    made, so that parts of a study become one."""
    quiet: Switch = False
    """Print nothing but errors."""
    compare: tuple[Path, Path] | None = None
    """Compare the results of two studies instead of running one."""


def run(options: Options) -> int:
    """Run the study; the exit status."""
    if options.compare is None and options.file is None:
        raise ConfigError(
            "Name a study file (studies/ holds some), or compare two results with --compare."
        )
    if options.jobs is not None and options.jobs < 0:
        raise ConfigError(f"--jobs {options.jobs}: the number of runs must not be negative.")
    from poad.study import Cluster, compare_studies, named_settings, run_study

    if options.compare is not None:
        return compare_studies(*options.compare)
    assert options.file is not None
    for config in named_settings(options.file):
        trust(config)
    place = Cluster() if options.ray and options.jobs != 0 else None
    jobs = options.jobs if options.jobs is not None else place.cpus if place else 2
    return run_study(
        options.file,
        out=options.out,
        jobs=jobs,
        smoke=options.smoke,
        only=options.only,
        known=options.known,
        quiet=options.quiet,
        place=place,
    )
