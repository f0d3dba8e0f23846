"""What a rollout becomes: the terms of the two losses. `test_ppo` holds them to a textbook."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_worlds import settings

from poad.agent import Agent, Standardizer, load_agent
from poad.envs import make
from poad.learn.experience import Experience, gather
from poad.learn.regression import Regression
from poad.learn.reliance import LAMBDAS, Reliance
from poad.learn.rollout import Collector

pytestmark = pytest.mark.usefixtures("float64")


def experienced(streams: int = 1, lam: float | None = None, **credit: object) -> Experience:
    """The experience of one rollout, with values that are not alike, if λ was found before it."""
    config = settings("Novel", credit=credit, streams=streams, horizon=12)
    agent: Agent = load_agent(config)
    generator = torch.Generator().manual_seed(0)
    for weight in agent.critic.parameters():
        weight.data += torch.randn(weight.shape, generator=generator) * 0.1
    worlds = Collector(lambda: make(config.env), agent.policy, streams, 0)
    rollout = worlds.collect(config.horizon, np.random.default_rng(0))
    reliance = Reliance.of(agent)
    if reliance is not None and lam is not None:
        # evidence that speaks for this λ
        reliance.along += torch.tensor([float(each == lam) for each in LAMBDAS])
        reliance.along[-1] += 0.1
        reliance.power += 1
    regression = Regression.of(agent)
    found = gather(rollout.streams, [0] * streams, agent, Standardizer(1), reliance, regression)
    assert found is not None
    return found


@pytest.mark.parametrize("lam", [None, 0.4])
def test_advantages_follow_the_chosen_lambda_and_targets_do_not(lam: float | None) -> None:
    """λ is chosen before the rollout, so that no advantage depends on its own outcome."""
    chosen = experienced(lam=lam, beta=0.5, lam_actor="auto")
    expected = 1.0 if lam is None else lam
    assert chosen.metrics["lam_actor"] == expected
    fixed, plain = experienced(beta=0.5, lam_actor=expected), experienced()
    assert "lam_actor" not in fixed.metrics
    assert torch.equal(chosen.policy.advantage, fixed.policy.advantage)
    assert (chosen.policy.advantage - plain.policy.advantage).abs().max() > 1e-3
    for other in (fixed, plain):
        assert torch.equal(chosen.value.target, other.value.target)
        assert torch.equal(chosen.value.weight, other.value.weight)


@pytest.mark.parametrize("method", ["poad", "turn_ppo", "grpo", "reinforce"])
def test_a_regression_divides_advantages_and_changes_nothing_else(method: str) -> None:
    plain = experienced(streams=2, method=method, group=2)
    divided = experienced(streams=2, method=method, group=2, regress=64)
    assert plain.policy.advantage.shape == divided.policy.advantage.shape
    assert (plain.policy.advantage - divided.policy.advantage).abs().max() > 1e-3
    assert torch.equal(plain.value.target, divided.value.target)
    assert torch.equal(plain.policy.decision, divided.policy.decision)
    spread = [each.policy.advantage.std() for each in (plain, divided)]
    assert torch.allclose(*spread, rtol=1e-3)
    assert 0 < divided.metrics["decided"] < 1
    assert "decided" not in plain.metrics


def test_what_was_compared_is_not_normalized_again() -> None:
    """Of two episodes that differ, each is as far from their mean as the other, and stays there."""
    advantage = experienced(streams=2, method="grpo", group=2).policy.advantage
    differ = advantage[advantage != 0].abs()
    assert len(differ) > 0
    assert torch.allclose(differ, torch.tensor(0.5).sqrt().expand_as(differ), atol=1e-3)
