"""Check that the same configuration and seed give the same metrics twice.

Each training runs in a process of its own with a different hash seed. So the two share no state,
and a dependence on the order of a set would show.

python benchmarks/determinism.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

from poad.config import load

CONFIGS = ("tomato_salad", "tomato_lettuce_salad")
TIMES = ("seconds", "per_second")
"""Metrics with these strings in their names measure time, and may differ."""


def train_once(config_path: str, seed: int, steps: int) -> None:
    """Print the exact metrics of every iteration, as hexadecimal floats."""
    from poad.learn import train

    config = replace(load(config_path), seed=seed, steps=steps)
    for metrics in train(config):
        print(json.dumps({name: float(value).hex() for name, value in metrics.items()}))


def train_elsewhere(config_path: str, seed: int, steps: int, hash_seed: int) -> list[dict]:
    """Train in another process. Returns a dict per iteration."""
    command = [sys.executable, __file__, "--once", config_path]
    command += ["--seed", str(seed), "--steps", str(steps)]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train twice and compare the metrics.")
    configs = os.path.join(os.path.dirname(__file__), "..", "configs")
    parser.add_argument("--configs", nargs="+", help="YAML files; default: both kitchens")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4096, help="environment steps to train")
    parser.add_argument("--once", metavar="CONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        train_once(options.once, options.seed, options.steps)
        return
    for path in options.configs or [os.path.join(configs, f"{name}.yaml") for name in CONFIGS]:
        one, other = (train_elsewhere(path, options.seed, options.steps, h) for h in (1, 2))
        names = [name for name in one[0] if not any(time in name for time in TIMES)]
        differing = [n for n in names if [m[n] for m in one] != [m.get(n) for m in other]]
        verdict = "no: " + ", ".join(differing) if differing else "yes"
        print(
            f"{os.path.basename(path)}, seed {options.seed}: {len(names)} metrics of {len(one)} "
            f"iterations identical: {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
