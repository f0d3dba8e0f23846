"""What the critic could know inside a freely written action, and what it does know.

    poad study studies/length_free.yaml --only poad turn_ppo
    python benchmarks/critic_probe.py runs/studies/length_free/runs/tokens_32.turn_ppo.0

Lets a trained agent act, and asks of the discounted return that follows how much of its variance is
explained before a token: by the run's own critic, and by a ridge regression from the frozen hidden
state that the critic reads. A third of the turns fits the regression, a third chooses its
strength, a third is explained.
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
from poad.workflows import load_run

STREAMS, HORIZON, SEED = 64, 24, 50_000_000
STRENGTHS = tuple(10.0**k for k in range(-2, 6))
PLACES = {"first": 0.0, "second": 0.0, "1/4": 0.25, "1/2": 0.5, "3/4": 0.75, "last": 1.0}
Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    for path in parser.parse_args().runs:
        _, agent, _ = load_run(path, None, untrained=False)
        hidden = agent.features
        if hidden is None:
            raise SystemExit(f"{path}: its critic shares the policy's body; nothing to compare.")
        print(f"\n{path.name}\n{'before token':14}{'turns':>7}{'critic':>8}{'regression':>12}")
        for place, (positions, returns) in places(agent, played(agent)).items():
            critic = explained(np.array(agent.values(positions)), returns)
            read = regression(hidden(positions).double().numpy(), returns)
            print(f"{place:14}{len(returns):>7}{critic:>8.2f}{read:>12.2f}")


def played(agent: Agent) -> Rollout:
    """Turns of the agent as it is now."""
    config = agent.config
    collector = Collector(lambda: make(config.env, **config.env_args), agent.policy, STREAMS, SEED)
    rollout = collector.collect(HORIZON, np.random.default_rng(0))
    collector.close()
    return rollout


def places(agent: Agent, rollout: Rollout) -> dict[str, tuple[list[Position], Floats]]:
    """By place in the action: where the critic reads, and what followed, of finished episodes."""
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
    return {name: (where, np.array(what)) for name, (where, what) in found.items()}


def explained(value: Floats, truth: Floats) -> float:
    """The share of the variance that is explained; below 0 where the mean would do better."""
    return float(1 - ((truth - value) ** 2).mean() / truth.var())


def regression(features: Floats, returns: Floats) -> float:
    """What a ridge regression explains of turns that neither fitted it nor chose its strength."""
    fit, choose, test = np.array_split(np.random.default_rng(0).permutation(len(returns)), 3)
    x, y = features - features[fit].mean(0), returns - returns[fit].mean()
    square, product = x[fit].T @ x[fit], x[fit].T @ y[fit]
    weights = [np.linalg.solve(square + s * np.eye(x.shape[1]), product) for s in STRENGTHS]
    best = max(weights, key=lambda w: explained(x[choose] @ w, y[choose]))
    return explained(x[test] @ best, y[test])


if __name__ == "__main__":
    main()
