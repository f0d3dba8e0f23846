"""Measure how well the critic predicts returns from inside a freely written action.

    poad study studies/length_free.yaml --only poad turn_ppo
    python benchmarks/critic_probe.py runs/studies/length_free/runs/tokens_32.turn_ppo.0

A trained agent plays episodes. The table shows, for several places in the action, the share of the
variance of the discounted return that is explained by the run's critic, and by a ridge regression
from the hidden state that the critic reads. One third of the turns fits the regression, one third
chooses its strength, and one third tests it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poad.agent import Agent
from poad.envs import make
from poad.learn import Collector
from poad.turns import Position, Rollout
from poad.workflows import Weights, load_weights

STREAMS, HORIZON, SEED = 64, 24, 50_000_000
STRENGTHS = tuple(10.0**k for k in range(-2, 6))
PLACES = {"first": 0.0, "second": 0.0, "1/4": 0.25, "1/2": 0.5, "3/4": 0.75, "last": 1.0}
Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    for path in parser.parse_args().runs:
        _, agent, _ = load_weights(Weights(path))
        hidden = agent.features
        if hidden is None:
            raise SystemExit(
                f"{path}: the critic shares the policy's body, so there is nothing to do."
            )
        print(f"\n{path.name}\n{'before token':14}{'turns':>7}{'critic':>8}{'regression':>12}")
        for place, (positions, returns) in places(agent, played(agent)).items():
            critic = explained(np.array(agent.values(positions)), returns)
            read = regression(hidden(positions).double().numpy(), returns)
            print(f"{place:14}{len(returns):>7}{critic:>8.2f}{read:>12.2f}")


def played(agent: Agent) -> Rollout:
    """Play with the agent, without learning."""
    config = agent.config
    collector = Collector(lambda: make(config.env, **config.env_args), agent.policy, STREAMS, SEED)
    rollout = collector.collect(HORIZON, np.random.default_rng(0))
    collector.close()
    return rollout


def places(agent: Agent, rollout: Rollout) -> dict[str, tuple[list[Position], Floats]]:
    """Collect, by place in the action, positions and returns from finished episodes."""
    found: dict[str, tuple[list[Position], list[float]]] = {name: ([], []) for name in PLACES}
    for stream in rollout.streams:
        after: float | None = None
        for turn in reversed(stream):
            if turn.terminated or turn.truncated:
                after = 0.0
            if after is None:
                continue
            after = turn.reward + agent.config.credit.gamma * after
            tokens = turn.action.token_ids
            for name, share in PLACES.items():
                j = min(1, len(tokens) - 1) if name == "second" else int(share * (len(tokens) - 1))
                found[name][0].append((turn.prompt_ids, tokens[:j]))
                found[name][1].append(after)
    return {name: (at, np.array(returns)) for name, (at, returns) in found.items()}


def explained(value: Floats, truth: Floats) -> float:
    """Compute the share of explained variance; it is negative if the mean would do better."""
    return float(1 - ((truth - value) ** 2).mean() / truth.var())


def regression(features: Floats, returns: Floats) -> float:
    """Compute the share that a ridge regression explains of the third of turns for the test."""
    fit, choose, test = np.array_split(np.random.default_rng(0).permutation(len(returns)), 3)
    x, y = features - features[fit].mean(0), returns - returns[fit].mean()
    square, product = x[fit].T @ x[fit], x[fit].T @ y[fit]
    weights = [np.linalg.solve(square + s * np.eye(x.shape[1]), product) for s in STRENGTHS]
    best = max(weights, key=lambda w: explained(x[choose] @ w, y[choose]))
    return explained(x[test] @ best, y[test])


if __name__ == "__main__":
    main()
