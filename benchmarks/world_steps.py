"""Measure actions per second of poad's worlds on one core, including prompts and offered actions.

The actions are drawn uniformly from those offered. A world of calls plays calls of its solutions.
"""

import argparse
import random
import time
from typing import Any, cast

from poad.envs import known_worlds, make


def measure(env_id: str, steps: int) -> float:
    env, rng = make(env_id), random.Random(0)
    _, info = env.reset(seed=0)
    start = time.perf_counter()
    for _ in range(steps):
        actions = info.get("admissible_actions") or cast(Any, env.unwrapped).solution()
        _, _, terminated, truncated, info = env.step(rng.choice(actions))
        if terminated or truncated:
            _, info = env.reset()
    return steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="number of actions per world")
    steps = parser.parse_args().steps
    for env_id, _ in known_worlds():
        if env_id == "poad/DataScience-v0":  # its actions are programs; see sandbox.py
            continue
        print(f"{env_id}: {measure(env_id, steps):,.0f} actions/s over {steps:,}")


if __name__ == "__main__":
    main()
