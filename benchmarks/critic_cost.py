"""Measure the critic's share of an iteration: its frozen features, and its own passes over them.

The default critic, the wide one with a memory that `studies/decompose.yaml` uses, and the default
one with a regression inside actions, on embedded models. Prints CPU seconds of an iteration and
shares of it, as medians over iterations.

python benchmarks/critic_cost.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from poad.config import from_dict, load
from poad.learn import Trainer

T = TypeVar("T")
CONFIGS = Path(__file__).parents[1] / "configs"
WORLDS = ("tomato_salad", "food_preparation", "order", "order_free")
WIDE = {"standardize": True, "root": True, "codes": 64, "hidden": [64], "lr": 2e-3}
WIDE |= {"replay": 8, "epochs": 16, "minibatches": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "wide, remembers": {"critic": WIDE},
    "regression, 512 turns": {"credit": {"regress": 512}},
    "regression, 1,024 turns": {"credit": {"regress": 1024}},
}


def timed(function: Callable[..., T], spent: list[float]) -> Callable[..., T]:
    """Add the CPU seconds of each call to the last of some sums."""

    def call(*args: Any) -> T:
        start = time.process_time()
        try:
            return function(*args)
        finally:
            spent[-1] += time.process_time() - start

    return call


def measure(world: str, settings: dict[str, Any], iterations: int) -> list[float]:
    """Return the CPU seconds of an iteration, and the shares of features, passes and regression."""
    config = from_dict({"seed": 1, **settings}, load(CONFIGS / f"{world}.yaml"))
    trainer = Trainer(config)
    learner = trainer.learner
    features, passes, regression, whole = [0.0], [0.0], [0.0], [0.0]
    if learner.regression is not None:
        divide: Any = timed(learner.regression.divide, regression)
        learner.regression.divide = divide
    assert learner.values is not None
    learner.values.fit = timed(learner.values.fit, passes)  # type: ignore[method-assign]
    assert trainer.agent.features is not None
    read: Any = timed(trainer.agent.features, features)
    learner.agent = replace(trainer.agent, features=read)
    iterate = timed(trainer.iterate, whole)
    for _ in range(iterations):
        iterate()
        for sums in (features, passes, regression, whole):
            sums.append(0.0)
    # The first iterations find cold caches and an empty memory.
    late = slice(iterations // 2, iterations)
    shares = [
        median(part / all_ for part, all_ in zip(parts[late], whole[late], strict=True))
        for parts in (features, passes, regression)
    ]
    return [median(whole[late]), *shares]


def main() -> None:
    """Print a row for each world and critic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=WORLDS)
    parser.add_argument("--iterations", type=int, default=16)
    options = parser.parse_args()
    print("| world | critic | CPU-s an iteration | features | passes | regression |")
    print("|---|---|---|---|---|---|")
    for world in options.worlds:
        for name, settings in VARIANTS.items():
            seconds, *shares = measure(world, settings, options.iterations)
            listed = " | ".join(f"{share:.0%}" for share in shares)
            print(f"| {world} | {name} | {seconds:.2f} | {listed} |", flush=True)


if __name__ == "__main__":
    main()
