"""Compare the rate of an update with that of its own matrix products, alone and in bfloat16.

Ours is the update of an iteration by the model's preset: every pass, forward and backward, with all
that is no product. The rival computes plain bfloat16 products of the same shapes, as often. Both
rates count the same operations: two for each multiplication of a matrix product, attention
included. CPU seconds of one thread; the two alternate.

python benchmarks/update_rate.py
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from real_iteration import settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from poad.agent import torch_threads
from poad.learn import Trainer

Shape = tuple[int, int, int]
"""(M, K, N) of a product [M, K] @ [K, N]."""
_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}
"""By operator, the place of its first factor."""


class Products(TorchDispatchMode):
    """Counts the matrix products of a block by their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the shapes of a product, and compute it."""
        if (first := _PRODUCTS.get(func)) is not None:
            a, b = args[first : first + 2]
            self.shapes[a.shape[0], a.shape[1], b.shape[1]] += 1
        return func(*args, **(kwargs or {}))


def seconds_of_products(shapes: Counter[Shape]) -> float:
    """Time plain bfloat16 products of some shapes, each as often as it was counted."""
    total = 0.0
    for (m, k, n), count in shapes.items():
        a = torch.randn(m, k, dtype=torch.bfloat16)
        b = torch.randn(n, k, dtype=torch.bfloat16).T  # as a weight [N, K] lies in memory
        torch.mm(a, b)
        begin, times = time.process_time(), min(count, 5)
        for _ in range(times):
            torch.mm(a, b)
        total += (time.process_time() - begin) * count / times
    return total


def main() -> None:
    """Measure both, and print their rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="poad/TomatoSalad-v0")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--times", type=int, default=5, help="number of rounds")
    options = parser.parse_args()
    ours, _ = settings(options.env, options.model, 32)
    # The same rollout is learned from again and again, by a policy that goes on changing.
    ours = replace(ours, ppo=replace(ours.ppo, drift_stop=1e9, lr=1e-6))
    trainer = Trainer(ours)
    print(f"precision {trainer.config.model.precision}", flush=True)
    ratios = []
    with torch_threads(1), trainer.agent.model.lower.remembered():
        rollout = trainer.collector.collect(32, trainer.generator)
        with Products() as products, FlopCounterMode(display=False) as counted:
            trainer.learner.update(rollout)
        flops = counted.get_total_flops()
        of_products = sum(2 * m * k * n * count for (m, k, n), count in products.shapes.items())
        for _ in range(options.times):
            begin = time.process_time()
            trainer.learner.update(rollout)
            ours_rate = flops / (time.process_time() - begin)
            plain_rate = of_products / seconds_of_products(products.shapes)
            ratios.append(ours_rate / plain_rate)
            print(
                f"update {flops / 1e9:.0f} GFLOP at {ours_rate / 1e9:.0f} GFLOP/s, its products "
                f"alone in bfloat16 {plain_rate / 1e9:.0f} GFLOP/s, ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"median ratio {median(ratios):.2f}")


if __name__ == "__main__":
    main()
