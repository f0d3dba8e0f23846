"""What a rollout becomes: the terms of the two losses. `test_ppo` holds them to a textbook."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_worlds import settings

from poad.agent import Agent, Standardizer, load_agent
from poad.envs import make
from poad.learn.experience import Experience, gather
from poad.learn.rollout import Collector

pytestmark = pytest.mark.usefixtures("float64")


def experienced(**credit: object) -> Experience:
    """The experience of one rollout in a single stream, with values that are not alike."""
    config = settings("Novel", credit=credit, streams=1, horizon=12)
    agent: Agent = load_agent(config)
    generator = torch.Generator().manual_seed(0)
    for weight in agent.critic.parameters():
        weight.data += torch.randn(weight.shape, generator=generator) * 0.1
    worlds = Collector(lambda: make(config.env), agent.policy, 1, 0)
    rollout = worlds.collect(config.horizon, np.random.default_rng(0))
    found = gather(rollout.streams, [0], agent, Standardizer(1))
    assert found is not None
    return found


def test_advantages_follow_fitted_rates_and_targets_do_not() -> None:
    """Of a single stream nothing can be fitted, so β is 0 and λ inside actions is 1."""
    fitted = experienced(beta="auto", lam_actor="auto")
    assert fitted.metrics["beta"] == 0
    fixed, plain = experienced(beta=0.0, lam_actor=1.0), experienced()
    assert "beta" not in fixed.metrics
    assert torch.equal(fitted.policy.advantage, fixed.policy.advantage)
    assert (fitted.policy.advantage - plain.policy.advantage).abs().max() > 1e-3
    for other in (fixed, plain):
        assert torch.equal(fitted.value.target, other.value.target)
        assert torch.equal(fitted.value.weight, other.value.weight)
