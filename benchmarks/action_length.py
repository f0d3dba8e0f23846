"""Measure how the layout of long actions grows with their length, in time and in memory.

Freely written actions of random tokens are laid out as an update does it, without a model: credit
rows, decisions, bundles and packed rows. Prints CPU milliseconds and megabytes per turn for each
length, and the exponent of growth between the first and the last. 1 is linear, 2 quadratic.

python benchmarks/action_length.py
"""

from __future__ import annotations

import argparse
import gc
import math
import time
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np

from poad.agent import Policy, resolve
from poad.config import Config
from poad.learn import lay_out
from poad.lm import Bundles, pack
from poad.turns import Action, Turn

PROMPT_TOKENS = 200


def turns(length: int, count: int) -> list[Turn]:
    draw = np.random.default_rng(length)

    def tokens(size: int) -> tuple[int, ...]:
        return tuple(map(int, draw.integers(300, 30_000, size)))

    return [
        Turn(
            tokens(PROMPT_TOKENS),
            Action("", tokens(length), (True,) * length, (-1.0,) * length),
            reward=0.0,
            terminated=True,
        )
        for _ in range(count)
    ]


def lay_everything_out(some: list[Turn]) -> Any:
    """Return all that an update keeps of some turns before any forward pass."""
    rows = lay_out([some], resolve(Config()).credit)
    model: Any = SimpleNamespace(codec=SimpleNamespace(pad_id=0), branching=True)
    batch, *_ = Policy(model).decisions(some)
    packed = pack(batch.positions, 0), pack(rows.positions, 0)
    return rows, batch, Bundles.divide(rows.positions), packed


def measure(length: int, count: int) -> tuple[float, float]:
    """Return CPU seconds and bytes per turn."""
    some = turns(length, count)
    lay_everything_out(turns(8, 2))
    start = time.process_time()
    lay_everything_out(some)
    seconds = time.process_time() - start
    some = turns(length, count)
    gc.collect()
    tracemalloc.start()
    kept = lay_everything_out(some)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return seconds / count, size / count


def main() -> None:
    parser = argparse.ArgumentParser(description="Lay out actions of growing length.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--turns", type=int, default=4, help="turns of each length")
    options = parser.parse_args()
    found = {length: measure(length, options.turns) for length in options.lengths}
    print("| tokens | CPU ms | MB |\n|---|---|---|")
    for length, (seconds, size) in found.items():
        print(f"| {length} | {1000 * seconds:.1f} | {size / 1e6:.2f} |")
    first, last = options.lengths[0], options.lengths[-1]
    growth = [
        math.log(b / a) / math.log(last / first)
        for a, b in zip(found[first], found[last], strict=True)
    ]
    print("exponent: CPU {:.2f}, memory {:.2f}".format(*growth))


if __name__ == "__main__":
    main()
