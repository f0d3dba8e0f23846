"""Compare the recursion of credit by a doubling scan with the plain loop over time, on one thread.

python benchmarks/credit_speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from poad.credit import recursion

SHAPES = [(16, 32 * 4), (64, 8192)]


def loop(
    reward: Tensor, value: Tensor, next_value: Tensor, discount: Tensor, trace: Tensor
) -> tuple[Tensor, Tensor]:
    """The recursion as a loop over time."""
    delta, carry = reward + discount * next_value - value, discount * trace
    advantage, after = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        after = delta[:, t] + carry[:, t] * after
        advantage[:, t] = after
    return advantage, advantage + value


def fastest(run: Callable[[], object], seconds: float = 1.0) -> float:
    """Measure the fastest of as many runs as fit into the given seconds."""
    run()
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - before)
    return best


def main() -> None:
    torch.set_num_threads(1)
    for shape in SHAPES:
        reward, value, ahead = torch.randn(3, *shape)
        rates = torch.full((2, *shape), 0.95)
        slow = fastest(lambda five=(reward, value, ahead, *rates): loop(*five))
        fast = fastest(lambda five=(reward, value, ahead, *rates): recursion(*five))
        print(
            f"[{shape[0]}, {shape[1]}]  loop {slow * 1e3:8.3f} ms   scan {fast * 1e3:8.3f} ms   "
            f"loop / scan = {slow / fast:5.1f}"
        )


if __name__ == "__main__":
    main()
