"""Compare tiny models as starting points: one from `poad pretrain`, and those that poad ships.

    nice python benchmarks/pretrained.py                                  # about ten minutes
    python benchmarks/pretrained.py --worlds doors --seeds 0 --steps 2048

`doors` is the world of examples/my_world.py, whose words no embedded model knows. `tomato` is
tomato salad, whose words tiny-kitchen knows. Of the models from nothing, one learns to continue
random play and to recall what it read, as `poad pretrain` does it, one only to continue, and one
has its tokenizer alone and random weights. Training has the default settings. A line says, for each
model, how often it succeeds after a quarter, a half and all of the steps (mean over the last 100
episodes), averaged over the seeds with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from poad.config import Config, ModelConfig
from poad.learn import train
from poad.workflows import TinyModel, pretrain_model

ROOT = Path(__file__).parent.parent
WORLDS = {
    "doors": ("my_world:Doors-v0", ("tiny-kitchen", "tiny-household"), 8192),
    "tomato": ("poad/TomatoSalad-v0", ("tiny-kitchen", "tiny-household"), 8192),
}
"""The world, the embedded models to compare with, and the environment steps."""
MARKS = (0.25, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare tiny models as starting points.")
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--seeds", nargs="*", type=int, default=range(3))
    parser.add_argument("--steps", type=int, help="environment steps, instead of the world's")
    parser.add_argument("--turns", type=int, default=10_000, help="random turns to pretrain on")
    parser.add_argument("--fits", type=int, default=400, help="steps to pretrain for")
    parser.add_argument("--model-seed", type=int, default=1, help="seed of these models")
    arguments = parser.parse_args()
    sys.path.append(str(ROOT / "examples"))
    for name in arguments.worlds:
        env, embedded, steps = WORLDS[name]
        with tempfile.TemporaryDirectory() as folder:
            made = TinyModel(
                env, turns=arguments.turns, steps=arguments.fits, seed=arguments.model_seed
            )
            nothing = {
                "pretrained": made,
                "continues": replace(made, recalls=False),
                "random": replace(made, recalls=False, steps=1),
            }
            models = {model: model for model in embedded}
            for label, recipe in nothing.items():
                models[label] = f"{folder}/{label}"
                pretrain_model(recipe, Path(models[label]), quiet=True)
            for label, model in models.items():
                steps = arguments.steps or steps
                rows = [success(env, model, steps, seed) for seed in arguments.seeds]
                cells = (
                    f"{mark * steps:7,.0f}: {fmean(values):.2f} [{min(values):.2f}, "
                    f"{max(values):.2f}]"
                    for mark, values in zip(MARKS, zip(*rows, strict=True), strict=True)
                )
                print(f"{name:8} {label:15}", *cells, flush=True)


def success(env: str, model: str, steps: int, seed: int) -> Sequence[float]:
    """Train a model, and return its rate of success at each of the marks."""
    config = Config(env=env, steps=steps, seed=seed, model=ModelConfig(name=model, device="cpu"))
    rows = list(train(config))
    return [
        next(row["success"] for row in rows if row["env_steps"] >= mark * steps) for mark in MARKS
    ]


if __name__ == "__main__":
    main()
