"""What differs between runs: settings, versions, results, and outcomes on the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from typing import Any, NamedTuple

from poad.config import to_dict, write_value
from poad.display import Table, bounds, compact, number, p_value, percent
from poad.runs import PACKAGES, Evaluation, Mode, Run, summarize
from poad.stats import paired_difference
from poad.turns import Episode

ABSENT = "–"
MIN_PAIRS = 2
"""On fewer common seeds, no difference is computed."""
_NOTE = (
    "Both runs of a pair played the same evaluation seeds. The interval and p (sign-flip test) are "
    "over these episodes. They do not say how another training with the same settings would have "
    "ended: for that, train several seeds with `poad study`."
)


class Played(NamedTuple):
    """What one checkpoint did in one mode and world; a repeated seed counts once."""

    checkpoint: int | None
    mode: Mode
    world: str
    episodes: Mapping[int, Episode]
    """By seed."""

    @property
    def result(self) -> Evaluation:
        """The statistics over the episodes."""
        return summarize(self.episodes.values())


def world_of(env: str, env_args: Mapping[str, Any]) -> str:
    """A world's name with its arguments, which make it another world."""
    told = (f"{name}={write_value(value)}" for name, value in sorted(env_args.items()))
    return " ".join([env, *told])


def played(run: Run) -> list[Played]:
    """Collect the evaluations of a run, its own world and newest checkpoint first."""
    found: dict[tuple[int | None, Mode, str], dict[int, Episode]] = {}
    home = world_of(run.config.env, run.config.env_args)
    for record in run.episodes():
        world = world_of(record.env, record.env_args)
        outcome = Episode(record.episode_return, record.length, record.success)
        found.setdefault((record.checkpoint, record.mode, world), {})[record.seed] = outcome
    evaluations = [Played(*key, episodes) for key, episodes in found.items()]
    evaluations.sort(
        key=lambda e: (e.world != home, e.world, -age(e.checkpoint), e.mode != "sampled")
    )
    return evaluations


def age(checkpoint: int | None) -> int:
    """Return a checkpoint's iteration, and -1 for the untrained agent."""
    return -1 if checkpoint is None else checkpoint


def names(runs: Sequence[Run]) -> list[str]:
    """Name runs by their directories, with as much of the path as tells them apart."""
    paths = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        short = ["/".join(path[-length:]) for path in paths]
        if len(set(short)) == len(runs):
            return short
    return [str(run.path) for run in runs]


def settings_table(runs: Sequence[Run]) -> Table:
    """List the settings in which runs differ, a column for each run."""
    flat = [_flat(run) for run in runs]
    keys = dict.fromkeys(chain.from_iterable(flat))
    return _differing(runs, [(key, [each.get(key, ABSENT) for each in flat]) for key in keys])


def versions_table(runs: Sequence[Run]) -> Table:
    """List the versions in which runs differ: Python, packages, poad's source and the platform."""
    shown = ("python", *PACKAGES, "source", "platform")
    recorded = [run.versions() for run in runs]
    rows = [(name, [str(each.get(name, ABSENT)) for each in recorded]) for name in shown]
    return _differing(runs, rows)


def results_table(runs: Sequence[Run]) -> Table:
    """List what each run cost and achieved in the newest evaluation in its own world."""
    columns = ["run", "method", "seed", "env steps", "CPU seconds", "success", "95 % interval"]
    rows: list[list[str]] = []
    for name, run in zip(names(runs), runs, strict=True):
        last = (run.metrics() or [{}])[-1]
        final = _final(run)
        result = final.result if final else None
        rows.append(
            [
                name,
                run.config.credit.method,
                str(run.config.seed),
                number(last.get("env_steps"), ",.0f"),
                compact(last.get("cpu_seconds")),
                percent(result.success_rate if result else last.get("success")),
                bounds(result.success_interval) if result else "training",
                number(result.mean_return if result else last.get("return")),
            ]
        )
    note = (
        "Success and return are those of the newest checkpoint, sampled. Of a run without an "
        "evaluation they are means over its last 100 training episodes."
    )
    return Table([*columns, "return"], rows, title="Results", note=note, align="llrrrrrr")


def pairs_table(runs: Sequence[Run]) -> Table:
    """Compare each pair of runs on the evaluation seeds that both played."""
    finals = {name: _final(run) for name, run in zip(names(runs), runs, strict=True)}
    rows: list[list[str]] = []
    for (first, a), (second, b) in combinations(finals.items(), 2):
        if a is None or b is None or a.world != b.world:
            continue
        seeds = sorted(a.episodes.keys() & b.episodes.keys())
        if len(seeds) < MIN_PAIRS:
            continue
        both = [[each.episodes[seed] for seed in seeds] for each in (a, b)]
        for what, form in (("success", ".3f"), ("episode_return", ".3f")):
            x, y = ([float(getattr(e, what)) for e in each] for each in both)
            gap, low, high, p = paired_difference([x], [y])
            shown = f"{gap:+{form}} [{low:+{form}}, {high:+{form}}]"
            label = what.removeprefix("episode_")
            rows.append([f"{first} − {second}", label, str(len(seeds)), shown, p_value(p)])
    columns = ("difference", "of", "seeds", "mean and 95 % interval", "p")
    return Table(columns, rows, title="On the same seeds", note=_NOTE, align="llrrr")


def _final(run: Run) -> Played | None:
    """The newest sampled evaluation of a run in its own world."""
    home = world_of(run.config.env, run.config.env_args)
    found = (e for e in played(run) if e.world == home and e.mode == "sampled")
    return next(found, None)


def _differing(runs: Sequence[Run], rows: Sequence[tuple[str, Sequence[str]]]) -> Table:
    different = [[key, *values] for key, values in rows if len(set(values)) > 1]
    return Table(["", *names(runs)], different, align="l" * (len(runs) + 1))


def _flat(run: Run) -> dict[str, str]:
    """A run's settings by dotted names, as they would be written."""
    flat: dict[str, str] = {}
    for name, value in to_dict(run.config).items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): write_value(item) for key, item in inner.items()}
    return flat
