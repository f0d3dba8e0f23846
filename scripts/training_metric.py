"""Average a metric of the training itself over the runs of a study, and compare methods by it.

Prints, for each method, the mean over the run and over its last three iterations, and the paired
differences from the method that is named, with 95 % bootstrap intervals over common seeds.

python scripts/training_metric.py runs/studies/decompose k8 world/right turn_ppo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from poad.runs import Run
from poad.stats import Floats, bootstrap_interval

LAST = 3
"""Iterations at the end of a run."""


def read(study: Path, world: str, metric: str) -> dict[str, dict[int, tuple[float, float]]]:
    """Read the means over each finished run and over its end, by method and seed."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for place in sorted((study / "runs").glob(f"{world}.*/summary.json")):
        _, method, seed = place.parent.name.split(".")
        values = [line[metric] for line in Run.open(place.parent).metrics() if metric in line]
        means = float(np.mean(values)), float(np.mean(values[-LAST:]))
        found.setdefault(method, {})[int(seed)] = means
    return found


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="the directory of a study, with its runs")
    parser.add_argument("world")
    parser.add_argument("metric")
    parser.add_argument("base", help="the method that the others are compared with")
    options = parser.parse_args()
    found = read(options.study, options.world, options.metric)
    seeds = sorted(set.intersection(*map(set, found.values())))
    # [seeds, 2] by method
    scores = {method: np.array([each[seed] for seed in seeds]) for method, each in found.items()}
    columns = ("over the run", f"last {LAST}", f"minus {options.base}", "minus, last")
    print(f"| {len(seeds)} seeds | {' | '.join(columns)} |")
    print("|---|---|---|---|---|")
    for method, each in scores.items():
        means = " | ".join(f"{mean:.3f}" for mean in each.mean(0))
        gains = (difference(column) for column in (each - scores[options.base]).T)
        print(f"| {method} | {means} | {' | '.join(gains)} |")


def difference(gains: Floats) -> str:
    """Format the mean of paired differences, [seeds], with its interval."""
    low, high = bootstrap_interval([gains], lambda some: some.mean(-1))
    return f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
