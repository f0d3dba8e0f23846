"""The records of a study: results.json, and the costs of its runs.

An estimate is (value, low, high) with a 95 % interval whose bounds are NaN where too few runs give
one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from poad.config import Above, AtLeast
from poad.errors import ConfigError, RunError
from poad.runs import Mode, Versions, decode, encode, stored

Estimate = tuple[float, float, float]
SUCCESS = "success"
"""The learning curve that a study shows unless it asks for another one."""
Settings = dict[str, Any]
"""Values of settings by dotted name."""


@dataclass(frozen=True)
class Expense:
    """CPU seconds of one attempt at a run: a line of spent.jsonl."""

    run: str
    cpu_seconds: float
    killed: bool = False


# One run.


@dataclass(frozen=True)
class SuccessRate:
    """One agent's success in an unseen world, over the episodes played there."""

    world: str
    mode: Mode
    success_rate: float
    success_interval: tuple[float, float]


@dataclass(frozen=True)
class RunRow:
    """One finished run. Success is that of sampled episodes of the panel."""

    world: str
    method: str
    seed: int
    success: float
    success_interval: tuple[float, float]
    episodes: int
    greedy: float
    """Success rate of greedy episodes."""
    mean_return: float = field(metadata=stored("return"))
    area: float
    """Area under the learning curve by environment steps, divided by its length."""
    steps_to: float = field(metadata=stored(null=math.inf))
    """Environment steps to the curve's first point at the world's threshold; infinite if none."""
    cpu_seconds_to: float = field(metadata=stored(null=math.inf))
    env_steps: int
    cpu_seconds: float
    curve: tuple[tuple[float, float, float, float], ...]
    """(environment steps, CPU seconds, success, return) of each evaluation."""
    versions: Versions
    unseen: tuple[SuccessRate, ...] = ()
    untrained: tuple[SuccessRate, ...] = ()
    """The agent before training, in the same unseen worlds."""
    shown: tuple[tuple[float, float, float], ...] = ()
    """(environment steps, CPU seconds, value) of a learning curve that does not show success."""

    @property
    def learning(self) -> list[tuple[float, float, float]]:
        """The learning curve: (environment steps, CPU seconds, value)."""
        return list(self.shown) or [(steps, cpu, success) for steps, cpu, success, _ in self.curve]


@dataclass(frozen=True)
class MissingRun:
    """A run that the results do not contain."""

    run: str
    state: str
    why: str


@dataclass(frozen=True)
class Candidate:
    """Settings that the search tried for one method."""

    method: str
    settings: Settings
    area: float
    """Mean area under the curve over worlds and seeds; NaN if no run has finished."""
    runs: int
    failed: bool
    """Whether a run with these settings failed; they cannot be selected then."""
    cpu_seconds: float


# Several runs together.


@dataclass(frozen=True)
class Speed:
    """Medians over seeds; runs that never reach the threshold count as infinite."""

    steps_to: float = field(metadata=stored(null=math.inf))
    """Environment steps to the curve's first point at the world's threshold."""
    cpu_seconds_to: float = field(metadata=stored(null=math.inf))
    cpu_seconds: float
    """CPU seconds of the whole run."""


@dataclass(frozen=True)
class Summary:
    """One method in one world, or in all of them together."""

    world: str
    method: str
    seeds: int
    success: Estimate
    area: Estimate
    greedy: float
    never: float
    """Share of runs whose learning curve never reaches the threshold."""
    speed: Speed | None = field(default=None, metadata=stored(flat=True))
    """None for all worlds together."""


@dataclass(frozen=True)
class Comparison:
    """One score of a method compared with another's, on their common seeds."""

    difference: Estimate
    p: float
    improvement: Estimate
    """Probability that a run of the first method beats a run of the other."""


@dataclass(frozen=True)
class Pair:
    """Two methods in one world, or in all of them together."""

    world: str
    method: str
    other: str
    seeds: int
    success: Comparison
    area: Comparison


@dataclass(frozen=True)
class UnseenComparison:
    """A method compared with another in an unseen world; without common runs, no comparison."""

    other: str
    runs: int
    compared: Comparison | None = field(default=None, metadata=stored(flat=True))


@dataclass(frozen=True)
class UnseenSummary:
    """One method in one unseen world, or in all of them together."""

    world: str
    method: str
    mode: Mode
    runs: int
    success: Estimate
    mean: float
    against: tuple[UnseenComparison, ...]


@dataclass(frozen=True)
class Curve:
    """The learning curve of a method in one world."""

    world: str
    method: str
    points: tuple[tuple[float, float, float, float], ...]
    """(environment steps, interquartile mean over seeds, low, high)."""


@dataclass(frozen=True)
class Profile:
    """The performance profile of a method over all worlds."""

    method: str
    points: tuple[tuple[float, float, float, float], ...]
    """(success rate, share of runs above it, low, high)."""


@dataclass(frozen=True)
class Aggregates:
    """Statistics over several runs."""

    summaries: tuple[Summary, ...]
    pairs: tuple[Pair, ...]
    unseen: tuple[UnseenSummary, ...]
    curves: tuple[Curve, ...]
    profiles: tuple[Profile, ...]


# The study as a whole.


@dataclass(frozen=True)
class Panel:
    """The evaluation episodes, the same for all agents."""

    seed: Annotated[int, AtLeast(0)]
    """Seed of the first episode; a search is evaluated on the episodes after the panel's."""
    episodes: Annotated[int, Above(0)]
    """Episodes of each evaluation: sampled during training, sampled and greedy at its end."""
    points: Annotated[int, Above(0)]
    """Evaluations during training."""


@dataclass(frozen=True)
class UnseenIdentity:
    """The unseen worlds, with a hash of the source of each."""

    episodes: int | None
    worlds: dict[str, str]


@dataclass(frozen=True)
class WorldIdentity:
    """A world that agents are trained in."""

    env: str
    env_args: dict[str, Any] = field(metadata=stored(exact=True))
    steps: int
    threshold: float
    source: str
    """Hash of the world's source."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What decides whether the numbers of two studies can be compared."""

    hash: str
    """Hash of all that follows."""
    format: int
    panel: Panel
    unseen: UnseenIdentity | None = None
    """None in results of format 1."""
    versions: tuple[Versions, ...]
    """The different versions that the runs were made with."""
    worlds: dict[str, WorldIdentity]
    configs: dict[str, str]
    """Hashes of the configurations by ``world.method``."""
    curve: str = SUCCESS
    """What learning curves show."""
    settings: dict[str, Settings] | None = field(default=None, metadata=stored(exact=True))
    """The configurations themselves: ``all`` holds what they share, ``world.method`` the rest.
    None in older results, which have only the hashes."""


@dataclass(frozen=True)
class Scale:
    """A number in which the worlds differ."""

    label: str
    at: dict[str, float]
    """The number by world; empty without a scale."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU minutes of all attempts, with evaluations and failures."""

    cpu_minutes: float
    search_minutes: float | None = None
    """None in results of format 1."""
    budget_minutes: float | None


@dataclass(frozen=True)
class Results:
    """All results of a study: results.json."""

    study: str
    question: str
    toy: bool
    identity: Identity
    methods: tuple[str, ...]
    scale: Scale
    cost: Cost
    chosen: dict[str, Settings]
    """The settings that the search selected, by method."""
    search: tuple[Candidate, ...]
    aggregates: Aggregates = field(metadata=stored(flat=True))
    missing: tuple[MissingRun, ...]
    runs: tuple[RunRow, ...]
    file: str
    """Text of the study file."""

    @property
    def worlds(self) -> list[str]:
        """The worlds that have a summary; the last is ``all`` if there are several."""
        return list(dict.fromkeys(summary.world for summary in self.aggregates.summaries))


def read_results(place: Path) -> Results:
    """Read results.json, or that of a directory.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    file = place / "results.json" if place.is_dir() else place
    try:
        return decode(Results, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError, RunError) as error:
        raise ConfigError(
            f"{file} holds no results of a study; `poad study` writes them. {error}"
        ) from error


def format_results(results: Results) -> str:
    """Format results as JSON with a line for each run, curve or comparison.

    Such a file is small, and changes to it are readable in a diff.
    """
    parts = []
    for name, value in encode(results).items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in value)
            text = f"[\n{lines}\n ]"
        else:
            text = json.dumps(value, allow_nan=False, indent=1).replace("\n", "\n ")
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
