"""Compare our own critic with exact values in order forms, to see what a perfect one would bring.

Trains in `poad/Order-v0` with noisy pay, from the same seeds, by turn-level PPO, by POAD with our
critic, and by POAD with exact values in its place. Prints the share of right fields over the run,
and the paired differences from the first variant with their 95 % bootstrap intervals. With at most
eight choices values are exact. With more they are sampled, without bias: one continuation of each
beginning errs little, since every field on the way counts by its probability.

python benchmarks/order_oracle.py --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poad.agent import Critic, FrozenFeatures
from poad.config import Config, from_dict
from poad.learn import PPO, Trainer
from poad.stats import bootstrap_interval
from poad.theory import OrderOracle
from poad.turns import Position

CRITIC = {"standardize": True, "root": True, "codes": 64, "hidden": [64], "lr": 2e-3}
CRITIC |= {"replay": 8, "epochs": 16, "minibatches": 1}
RELIED = {"lam_actor": "auto", "trace": "bit"}
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "turn_ppo": ({"method": "turn_ppo"}, False),
    "poad, own critic": (RELIED, False),
    "poad, exact values, λ = 1": ({"lam_actor": 1.0}, True),
    "poad, exact values, λ = .5 a bit": ({"lam_actor": 0.5, "trace": "bit"}, True),
}


class Exact(Critic):
    """A critic that passes on the value it is given, and learns nothing."""

    def __init__(self) -> None:
        super().__init__(1, (), seed=0)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the values [...] from themselves, [..., 1]."""
        return hidden.squeeze(-1) + 0.0 * self.layers(hidden).squeeze(-1)


class ExactFeatures(FrozenFeatures):
    """Exact values in place of hidden states."""

    def __init__(self, trainer: Trainer, samples: int) -> None:
        agent = trainer.agent
        super().__init__(agent.model, agent.config.ppo.micro_batch_tokens)
        world = agent.config.env_args
        self._oracle = OrderOracle(
            agent.policy, agent.config.credit.gamma, samples=samples, **world
        )

    def __call__(self, positions: Sequence[Position]) -> Tensor:
        """Value Q positions. [Q, 1]."""
        return torch.tensor(self._oracle(positions), dtype=torch.float32)[:, None]


def run(
    credit: dict[str, Any],
    exact: bool,
    seed: int,
    steps: int,
    world: dict[str, Any],
    rate: float,
    samples: int,
) -> float:
    """Train once; return the mean over the run of the share of right fields."""
    settings = {"env": "poad/Order-v0", "env_args": world, "streams": 16, "horizon": 8}
    settings |= {"steps": steps, "seed": seed, "credit": credit, "critic": CRITIC, "threads": 1}
    settings |= {"ppo": {"lr": rate}}
    config: Config = from_dict(settings)
    trainer = Trainer(config)
    if exact:
        features = ExactFeatures(trainer, samples)
        trainer.learner = PPO(replace(trainer.agent, critic=Exact(), features=features))
    return float(np.mean([metrics["world/right"] for metrics in trainer.train()]))


def main() -> None:
    """Train all variants, seed by seed, and print what each ended with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=3072)
    parser.add_argument("--choices", type=int, default=8)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--samples", type=int, default=1, help="of the rest of a longer form")
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=[*VARIANTS])
    options = parser.parse_args()
    world = {"choices": options.choices, "words": 16, "noise": options.noise}
    found: dict[str, list[float]] = {name: [] for name in options.variants}
    for seed in options.seeds:
        for name in options.variants:
            credit, exact = VARIANTS[name]
            share = run(credit, exact, seed, options.steps, world, options.lr, options.samples)
            found[name].append(share)
            print(f"seed {seed}, {name}: {found[name][-1]:.3f}", flush=True)
    base = np.array(found[options.variants[0]])
    for name, each in found.items():
        gain = np.array(each) - base
        low, high = bootstrap_interval([gain], lambda some: some.mean(-1))
        print(f"{name}: {np.mean(each):.3f}, {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
