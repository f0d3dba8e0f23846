"""The critic says nothing until it has learned something, and reads what never changes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import CONFIGURATIONS, Zoo, assert_same

from poad.agent.critic import Critic, FrozenFeatures
from poad.lm.packing import pack
from poad.turns import Position

SOME: list[Position] = [
    ((5, 6, 7), ()),
    ((5, 6, 7), (70,)),
    ((5, 6, 7), (71, 70)),
    ((8,), (70,)),
    ((5, 6, 7), ()),
    ((9, 8, 7, 6, 5, 4), (70, 70)),
]


@contextmanager
def counting(model: Any):
    """The sizes of all forward passes of the frozen body."""
    sizes: list[int] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        sizes.append(given["input_ids"].numel())

    handle = model._frozen.register_forward_pre_hook(note, with_kwargs=True)
    yield sizes
    handle.remove()


def have_opinions(critic: Critic) -> None:
    *_, last_weight, _ = critic.parameters()
    torch.nn.init.normal_(last_weight)


@pytest.mark.parametrize("hidden", [(), (7,), (16, 8)])
def test_an_untrained_critic_says_nothing(hidden):
    critic = Critic(32, hidden, seed=0)
    assert torch.equal(critic(torch.randn(3, 4, 32)), torch.zeros(3, 4))
    assert sum(isinstance(layer, torch.nn.Linear) for layer in critic.layers) == len(hidden) + 1


@pytest.mark.usefixtures("float64")
def test_a_critic_is_the_perceptron_it_says():
    critic = Critic(32, (16, 8), seed=0)
    have_opinions(critic)
    hidden = torch.randn(5, 32)
    w1, b1, w2, b2, w3, b3 = critic.parameters()
    inner = ((hidden @ w1.T + b1).tanh() @ w2.T + b2).tanh()
    torch.testing.assert_close(critic(hidden), (inner @ w3.T + b3).squeeze(1))


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_an_untrained_critic_can_learn(hidden):
    critic = Critic(32, hidden, seed=0)
    features = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    target = features[:, 0].sin()
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        losses.append((critic(features) - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_the_seed_decides_the_weights():
    one, again, other = (Critic(32, (16,), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_values_are_float32_whatever_the_model(zoo: Zoo):
    model = zoo.load(dtype="bfloat16")
    critic = Critic(model.width, (16,), seed=0)
    assert {weight.dtype for weight in critic.parameters()} == {torch.float32}
    assert FrozenFeatures(model, 16_384)(SOME).dtype == torch.float32
    hidden = model.read(pack(SOME, model.codec.pad_id))
    assert hidden.dtype == torch.bfloat16
    have_opinions(critic)
    values = critic(hidden)
    assert values.dtype == torch.float32
    values.sum().backward()  # also through the shared body


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("architecture", CONFIGURATIONS)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_features_are_the_untrained_hidden_states_of_positions_alone(zoo, architecture, tuning):
    model, untouched = zoo.load(architecture, tuning=tuning), zoo.load(architecture)
    features = FrozenFeatures(model, 16_384)(SOME)
    alone = [untouched.read(pack([position], 0))[0].detach() for position in SOME]
    assert not features.requires_grad
    assert_same(features, torch.stack(alone))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch_tokens", [1, 6, 16_384])
def test_features_do_not_depend_on_how_the_work_is_divided(zoo: Zoo, batch_tokens):
    model = zoo.load()
    whole = FrozenFeatures(model, 16_384)(SOME)
    with counting(model) as sizes:
        features = FrozenFeatures(model, batch_tokens)(SOME)
    assert_same(features, whole)
    # Three prompts, in one pass or as many as there are, and each only once.
    assert len(sizes) == {1: 3, 6: 3, 16_384: 1}[batch_tokens]
    if len(sizes) == 3:
        assert sizes == [3 + 3, 1 + 1, 6 + 2]


@pytest.mark.usefixtures("float64")
def test_values_do_not_depend_on_neighbours(zoo: Zoo):
    model = zoo.load()
    critic = Critic(model.width, (16,), seed=0)
    have_opinions(critic)
    features = FrozenFeatures(model, 16_384)
    together = critic(features(SOME))
    alone = torch.cat([critic(features([position])) for position in SOME])
    assert_same(together, alone)
    assert together.std() > 0.1


def test_asking_again_gives_the_same_bits(zoo: Zoo):
    model = zoo.load()
    features = FrozenFeatures(model, 16_384)
    first = features(SOME)
    features(SOME[::-1])
    assert torch.equal(features(SOME), first)


def test_no_positions_no_features(zoo: Zoo):
    assert FrozenFeatures(zoo.load(), 16_384)([]).shape == (0, 32)
