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


def experienced(streams: int = 1, **credit: object) -> Experience:
    """The experience of one rollout, with values that are not alike."""
    config = settings("Novel", credit=credit, streams=streams, horizon=12)
    agent: Agent = load_agent(config)
    generator = torch.Generator().manual_seed(0)
    for weight in agent.critic.parameters():
        weight.data += torch.randn(weight.shape, generator=generator) * 0.1
    worlds = Collector(lambda: make(config.env), agent.policy, streams, 0)
    rollout = worlds.collect(config.horizon, np.random.default_rng(0))
    found = gather(rollout.streams, [0] * streams, agent, Standardizer(1))
    assert found is not None
    return found


def test_advantages_follow_fitted_rates_and_targets_do_not() -> None:
    """Of a single stream nothing can be fitted, so λ inside actions is 1."""
    fitted = experienced(beta=0.5, lam_actor="auto")
    assert fitted.metrics["beta"] == 0
    fixed, plain = experienced(beta=0.5, lam_actor=1.0), experienced()
    assert "beta" not in fixed.metrics
    assert torch.equal(fitted.policy.advantage, fixed.policy.advantage)
    assert (fitted.policy.advantage - plain.policy.advantage).abs().max() > 1e-3
    for other in (fixed, plain):
        assert torch.equal(fitted.value.target, other.value.target)
        assert torch.equal(fitted.value.weight, other.value.weight)


def test_what_was_compared_is_not_normalized_again() -> None:
    """Of two episodes that differ, each is as far from their mean as the other, and stays there."""
    advantage = experienced(streams=2, method="grpo", group=2).policy.advantage
    differ = advantage[advantage != 0].abs()
    assert len(differ) > 0
    assert torch.allclose(differ, torch.tensor(0.5).sqrt().expand_as(differ), atol=1e-3)
