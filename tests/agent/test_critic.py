"""The critic says nothing until it has learned something, and reads what never changes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIGURATIONS, Zoo, assert_same

from poad.agent.critic import Critic, FrozenFeatures, Standardizer, written
from poad.config import CriticConfig
from poad.lm.packing import pack
from poad.turns import Beginning, Position

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


# --- what else it reads ---


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_statistics_are_those_of_all_rows_however_they_came(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1e-2, 1.0, 30.0])
    parts = [torch.randn(n, 3, generator=generator) * scale + 5 for n in (*sizes, 2)]
    standardizer, whole = Standardizer(3), torch.cat(parts).double()
    for part in parts:
        standardizer.observe(part)
    torch.testing.assert_close(standardizer.mean, whole.mean(0))
    torch.testing.assert_close(standardizer.spread, ((whole - whole.mean(0)) ** 2).sum(0))
    found, std = standardizer(whole.float()), whole.std(0, unbiased=False)
    wide = std > 0.1 * std.max()  # narrower dimensions may be held down
    expected = (whole - whole.mean(0)) / std
    torch.testing.assert_close(found[:, wide], expected[:, wide].float(), rtol=1e-4, atol=1e-4)


def test_a_dimension_of_rounding_errors_is_not_blown_up() -> None:
    rows = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e-7])
    standardizer = Standardizer(2)
    assert torch.equal(standardizer(rows), rows)  # nothing is known yet
    standardizer.observe(rows)
    assert standardizer(rows)[:, 0].std() == pytest.approx(1, rel=0.05)
    assert standardizer(rows)[:, 1].abs().max() < 1e-2


def test_what_was_observed_is_part_of_the_critics_state() -> None:
    one, other = (Critic(32, (16,), 0, standardize=True) for _ in range(2))
    have_opinions(one)
    assert one.standardizer is not None
    rows = torch.randn(9, 32, generator=torch.Generator().manual_seed(0)) * 40 + 7
    one.standardizer.observe(rows)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(rows), one(rows))
    assert "standardizer.mean" not in Critic(32, (16,), 0).state_dict()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("codes", [0, 5])
def test_the_root_and_the_codes_stand_beside_the_hidden_state(zoo: Zoo, codes: int) -> None:
    model = zoo.load()
    config = CriticConfig(root=True, codes=codes)
    features = FrozenFeatures(model, 16_384, config)
    found = features(SOME)
    assert found.shape == (len(SOME), features.width) == (len(SOME), 2 * model.width + 2 * codes)
    plain = FrozenFeatures(model, 16_384)
    roots: list[Position] = [(prompt, ()) for prompt, _ in SOME]
    both = torch.cat([plain(SOME), plain(roots), written(SOME, codes).to(found)], dim=1)
    assert_same(found, both)


tokens = st.lists(st.integers(0, 200_000), max_size=12).map(tuple)


@given(tokens, st.integers(0, 12))
def test_codes_add_up_and_are_the_same_for_every_prompt(all_: tuple[int, ...], cut: int) -> None:
    cut = min(cut, len(all_))
    rows: list[Position] = [((1, 2), Beginning(all_, j)) for j in range(len(all_) + 1)]
    codes = written(rows, 8)
    assert torch.equal(codes[0], torch.zeros(16))  # nothing is written at the root
    total, last = codes[:, :8], codes[:, 8:]
    torch.testing.assert_close(total[1:] - total[:-1], last[1:], rtol=1e-4, atol=1e-4)
    assert torch.equal(written([((9,), all_[:cut])], 8)[0], codes[cut])


def test_codes_tell_words_and_their_order_apart() -> None:
    behind: list[Position] = [((1,), a) for a in ((3, 4, 5), (4, 3, 5), (3, 6, 5), (3, 4, 6))]
    codes = written(behind, 32)
    assert torch.cdist(codes, codes)[~torch.eye(4).bool()].min() > 1
    assert written([], 32).shape == (0, 64)
