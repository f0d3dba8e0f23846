"""The critic's own adapter: learned by the critic's loss alone, and nobody else's business."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_worlds import settings
from torch import Tensor

from poad.agent import load_agent
from poad.config import Config
from poad.errors import ConfigError
from poad.learn.experience import Experience, gather
from poad.learn.train import Trainer

TUNINGS = ("full", "lora")


def config_of(tuning: str = "lora", **critic: Any) -> Config:
    model = {"name": "tiny-kitchen", "tuning": tuning, "lora_targets": ["all-linear"]}
    critic = {"body": "adapter", "root": True, "standardize": True} | critic
    return settings("Prefixes", model=model, critic=critic, ppo={"max_grad_norm": 1e9})


def advance(trainer: Trainer) -> dict[str, float]:
    rollout = trainer.collector.collect(trainer.config.horizon, trainer.generator)
    return trainer.learner.update(rollout)


def experience_of(trainer: Trainer) -> Experience:
    """What the agent lived through next, without learning from it."""
    rollout = trainer.collector.collect(trainer.config.horizon, trainer.generator)
    stale = [0] * len(rollout.streams)
    found = gather(rollout.streams, stale, trainer.agent, trainer.learner.returns)
    assert found is not None
    return found


def adapter_of(trainer: Trainer) -> torch.nn.Module:
    features = trainer.agent.features
    assert features is not None
    assert features.adapter is not None
    return features.adapter


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def policy_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in trainer.agent.model.state().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_it_reads_what_a_frozen_body_reads_before_it_has_learned(tuning: str) -> None:
    own, frozen = Trainer(config_of(tuning)), Trainer(config_of(tuning, body="frozen"))
    positions = experience_of(frozen).positions
    assert own.agent.features is not None
    assert frozen.agent.features is not None
    assert torch.equal(own.agent.features(positions), frozen.agent.features(positions))
    advance(own)
    advance(own)
    assert not torch.equal(own.agent.features(positions), frozen.agent.features(positions))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_at_rate_0_training_is_that_with_a_frozen_body_to_the_bit(tuning: str) -> None:
    """Although its gradient is computed, and is not 0."""
    own = Trainer(config_of(tuning, adapter_lr=0.0))
    frozen = Trainer(config_of(tuning, body="frozen"))
    for _ in range(3):
        learned, expected = advance(own), advance(frozen)
        assert learned.pop("critic_body_grad_norm") > 0
        assert learned == expected
    assert same(policy_of(own), policy_of(frozen))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_its_steps_move_nothing_else(tuning: str) -> None:
    trainer = Trainer(config_of(tuning))
    advance(trainer)
    experience, learner = experience_of(trainer), trainer.learner.body
    assert learner is not None
    policy, adapter = policy_of(trainer), weights(adapter_of(trainer))
    critic = {name: weight.clone() for name, weight in trainer.agent.critic.state_dict().items()}
    for weight in trainer.agent.model.parameters():
        weight.grad = None
    learner.fit(experience)
    assert same(policy_of(trainer), policy)
    assert same(dict(trainer.agent.critic.state_dict()), critic)
    assert not torch.equal(weights(adapter_of(trainer)), adapter)
    assert all(weight.grad is None for weight in trainer.agent.model.module.parameters())


def test_the_policy_acts_and_is_saved_without_it() -> None:
    trainer = Trainer(config_of("lora"))
    names = set(trainer.agent.model.module.state_dict())
    advance(trainer)
    assert set(trainer.agent.model.module.state_dict()) == names
    experience = experience_of(trainer)
    before = trainer.agent.policy.logprobs(experience.batch, 4096)
    for weight in adapter_of(trainer).parameters():
        weight.data.add_(1.0)
    assert torch.equal(trainer.agent.policy.logprobs(experience.batch, 4096), before)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_its_gradient_is_that_of_the_loss_it_lowers(tuning: str, checkpointing: bool) -> None:
    """Compared with differences of the loss, along the gradient and along a random direction."""
    trainer = Trainer(config_of(tuning, minibatches=1, adapter_lr=0.0))
    if checkpointing:
        model = replace(trainer.config.model, gradient_checkpointing=True)
        trainer = Trainer(replace(trainer.config, model=model))
    advance(trainer)
    learner, experience = trainer.learner.body, experience_of(trainer)
    assert learner is not None
    parameters = list(learner.adapter.parameters())
    torch.manual_seed(3)  # not next to a kink of the critic
    for weight in parameters:  # the second factors are 0 at first
        weight.data.add_(0.05 * torch.randn(weight.shape, dtype=weight.dtype))
    learner.fit(experience)
    gradient = [weight.grad.clone() for weight in parameters if weight.grad is not None]
    assert len(gradient) == len(parameters)

    def loss() -> float:
        positions = experience.positions
        value = trainer.agent.critic(learner.features(positions)).detach()
        terms = experience.value
        return float(0.5 * (terms.weight * (value[terms.reading] - terms.target) ** 2).sum())

    for along in (gradient, [torch.randn_like(weight) for weight in parameters]):
        step, losses = 1e-6, []
        for sign in (1, -2, 1):
            for weight, way in zip(parameters, along, strict=True):
                weight.data.add_(sign * step * way)
            losses.append(loss())
        slope = (losses[0] - losses[1]) / (2 * step)
        expected = sum(float((a * b).sum()) for a, b in zip(gradient, along, strict=True))
        assert slope == pytest.approx(expected, rel=1e-3, abs=1e-8)


def test_a_body_that_is_divided_among_processes_is_refused() -> None:
    config = config_of("full")
    config = replace(config, model=replace(config.model, shard="full"))
    with pytest.raises(ConfigError, match=r"critic\.body = adapter .*model\.shard = full"):
        load_agent(config)
