"""Measure turns per second of worlds that take their time, one after the other and with workers.

The worlds are copies of tomato salad that sleep at each step: always 50 ms, or mostly 10 ms and
seldom 300. The policy is the untrained embedded model. The last rows are worlds that do not sleep.
"""

import argparse
import random
import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from poad.config import Config
from poad.envs import Workers, make

WORLD = "poad/TomatoSalad-v0"
PAUSES = {
    "50 ms": (0.05,),
    "10 ms, seldom 300 ms": (0.01,) * 15 + (0.3,),
    "no pause": (),
}


class Sleeping(gymnasium.Wrapper[str, str, str, str]):
    """Sleeps at each step, as long as its seed decides."""

    def __init__(self, env: gymnasium.Env[str, str], pauses: tuple[float, ...]) -> None:
        super().__init__(env)
        self._pauses = pauses

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begin an episode."""
        self._random = random.Random(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: str) -> Any:
        """Sleep, then act."""
        if self._pauses:
            time.sleep(self._random.choice(self._pauses))
        return self.env.step(action)


def open_world(pauses: tuple[float, ...]) -> gymnasium.Env[str, str]:
    return Sleeping(make(WORLD), pauses)


def measure(pauses: tuple[float, ...], kind: str, own: bool, streams: int, turns: int) -> float:
    """Collect a rollout; return turns per second."""
    # Processes of worlds import this file, too. They need no torch.
    from poad.agent import load_agent, torch_threads
    from poad.learn import Collector

    agent = load_agent(Config(env=WORLD))
    numbers = range(streams) if own else None
    collector = Collector(
        partial(open_world, pauses), agent.policy, streams, 10, numbers, Workers(kind)
    )
    generator = np.random.default_rng(0)
    with torch_threads(1):
        collector.collect(2, generator)
        start = time.perf_counter()
        collector.collect(turns, generator)
        rate = streams * turns / (time.perf_counter() - start)
    collector.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--turns", type=int, default=32, help="turns of each stream with workers")
    parser.add_argument("--serial", type=int, default=4, help="turns of each stream without")
    parser.add_argument("--ray", action="store_true", help="actors of a Ray cluster, too")
    options = parser.parse_args()
    streams = options.streams
    kinds = [("threads", True), ("threads", False), ("processes", True)]
    kinds += [("ray", True)] if options.ray else []
    print("| world | workers | randomness | turns/s | of the serial rate |")
    print("|---|---|---|---|---|")
    for name, pauses in PAUSES.items():
        turns = options.serial if pauses else 20 * options.turns
        serial = measure(pauses, "serial", True, streams, turns)
        print(f"| {name} | serial | stream | {serial:,.0f} | 1 |", flush=True)
        for kind, own in kinds:
            rate = measure(pauses, f"{kind}:{streams}", own, streams, options.turns)
            source = "stream" if own else "shared"
            ratio = f"{rate / serial:.2g}" if pauses == () else f"{rate / serial:.1f}"
            print(f"| {name} | {kind}:{streams} | {source} | {rate:,.0f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
