from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import EXACT, rounding

from poad.learn.losses import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    masked_mean,
    masked_moments,
    normalize_advantages,
)

seeds = st.integers(0, 2**32)


def normal(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "learns"),
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # the gain is capped at 1.2·2
        (0.5, 2.0, -1.0, True),  # too unlikely a good choice may always recover
        (0.5, -2.0, 1.6, False),  # a bad choice is pushed down no further than .8·(−2)
        (1.5, -2.0, 3.0, True),
    ],
)
def test_the_surrogate_caps_gains_and_never_losses(ratio, advantage, loss, learns):
    logprob = torch.tensor(math.log(0.3 * ratio), dtype=torch.float64, requires_grad=True)
    old, gain = torch.tensor([math.log(0.3), advantage], dtype=torch.float64)
    found = clipped_surrogate(logprob, old, gain, clip=0.2)
    assert found.item() == pytest.approx(loss, rel=EXACT)
    (gradient,) = torch.autograd.grad(found, logprob)
    assert (gradient != 0).item() is learns
    if learns:
        assert gradient.item() == pytest.approx(-ratio * advantage, rel=EXACT)


def test_at_the_old_policy_the_surrogates_gradient_is_the_policy_gradient():
    logprob, advantage = normal(0, 5).requires_grad_(), normal(1, 5)
    clipped_surrogate(logprob, logprob.detach(), advantage, clip=0.2).sum().backward()
    assert logprob.grad is not None
    torch.testing.assert_close(logprob.grad, -advantage)


@pytest.mark.parametrize(
    ("value", "loss", "learns"),
    [
        (1.1, 0.5 * 0.9**2, True),
        (1.5, 0.5 * 0.8**2, False),  # moved towards the target by more than the clip: .5·(1.2 − 2)²
        (0.5, 0.5 * 1.5**2, True),  # moved away: the full error counts
    ],
)
def test_the_value_loss_caps_gains_and_never_losses(value: float, loss: float, learns: bool):
    reading, old, target = torch.tensor([value, 1.0, 2.0], dtype=torch.float64)
    reading.requires_grad_()
    found = clipped_value_loss(reading, old, target, clip=0.2)
    assert found.item() == pytest.approx(loss, rel=EXACT)
    (gradient,) = torch.autograd.grad(found, reading)
    assert (gradient != 0).item() is learns


def test_without_a_clip_the_value_loss_is_half_the_squared_error():
    value, old, target = normal(2, 3, 7)
    found = clipped_value_loss(value, old, target, clip=None)
    torch.testing.assert_close(found, (value - target) ** 2 / 2)
    torch.testing.assert_close(found, clipped_value_loss(value, old, target, clip=math.inf))


@settings(deadline=None)
@given(seeds)
def test_k3_is_never_negative_and_its_expectation_is_the_divergence(seed: int):
    old, new = normal(seed, 2, 6).log_softmax(-1)
    estimates = approx_kl(new, old)
    assert (estimates >= 0).all()
    divergence = (old.exp() * (old - new)).sum()
    torch.testing.assert_close((old.exp() * estimates).sum(), divergence)


def test_k3_resolves_small_differences_in_single_precision():
    found = approx_kl(torch.tensor([-1.0 + 2.0**-12]), torch.tensor([-1.0]))
    assert found.item() == pytest.approx(0.5 * 2.0**-24, rel=1e-2)


@settings(deadline=None)
@given(
    seed=seeds,
    junk=st.sampled_from([math.nan, math.inf, 1e30, 0.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_moments_are_those_of_the_real_elements(seed, junk, dtype):
    values = normal(seed, 4, 5).to(dtype)
    mask = normal(seed + 1, 4, 5) > 0
    mask[0, 0] = True
    written_out = values[mask]
    mean, std = masked_moments(values.masked_fill(~mask, junk), mask)
    assert mean.dtype == std.dtype == dtype
    room = rounding(depth=3, magnitude=float(written_out.abs().max()), dtype=dtype)
    torch.testing.assert_close(mean, written_out.mean(), atol=room, rtol=0)
    torch.testing.assert_close(std, written_out.std(correction=0), atol=room, rtol=0)


def test_a_mean_over_nothing_is_zero():
    nothing = torch.full((3,), math.nan), torch.zeros(3, dtype=torch.bool)
    assert masked_mean(*nothing).item() == 0
    assert [x.item() for x in masked_moments(*nothing)] == [0, 0]


def test_the_mean_gives_no_gradient_to_masked_elements():
    values = torch.tensor([1.0, 2.0, math.nan], requires_grad=True)
    masked_mean(values, torch.tensor([True, True, False])).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 0.0]


def test_the_mean_of_many_half_precision_values_is_counted_exactly():
    values = torch.zeros(257, dtype=torch.bfloat16)
    values[0] = 1
    mean = masked_mean(values, torch.ones_like(values).bool())
    assert mean.item() == pytest.approx(1 / 257, rel=1e-6)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"values \(3,\) and mask \(2,\)"):
        masked_mean(torch.zeros(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="expected bool"):
        masked_mean(torch.zeros(3), torch.ones(3))


@settings(deadline=None)
@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 1e3]), junk=st.sampled_from([math.nan, 7.0]))
def test_normalized_advantages_have_mean_zero_and_spread_one_unless_they_hardly_differ(
    seed, scale, junk
):
    mask = normal(seed + 1, 4, 5) > 0
    mask[0, :2] = True
    advantage = (normal(seed, 4, 5) * scale + 3).masked_fill(~mask, junk)
    found = normalize_advantages(advantage, mask, std_floor=0.1)
    mean, std = masked_moments(found, mask)
    _, spread = masked_moments(advantage, mask)
    assert mean.abs() < 1e-9
    torch.testing.assert_close(std, (spread / 0.1).clamp(max=1))
    assert not found[~mask].any()


def test_normalizing_nothing_or_one_choice_or_equal_advantages_gives_zeros():
    for advantage, mask in (
        ([math.nan, math.nan], [False, False]),
        ([5.0, math.nan], [True, False]),
        ([5.0, 5.0], [True, True]),
    ):
        found = normalize_advantages(torch.tensor(advantage), torch.tensor(mask), std_floor=1e-3)
        assert found.tolist() == [0, 0]


def test_normalization_keeps_the_dtype():
    advantage = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    found = normalize_advantages(advantage, torch.tensor([True, True]), std_floor=0.1)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [-1, 1]


@pytest.mark.parametrize("floor", [0.0, -1.0, math.nan])
def test_a_floor_that_is_none_is_refused(floor: float):
    with pytest.raises(ValueError, match="std_floor is"):
        normalize_advantages(torch.zeros(2), torch.ones(2, dtype=torch.bool), floor)


def test_explained_variance_of_perfect_constant_opposite_and_idle_critics():
    target = torch.tensor([1.0, 2.0, 3.0, math.nan])
    mask = torch.tensor([True, True, True, False])
    assert explained_variance(target, target, mask).item() == 1
    assert explained_variance(torch.zeros(4), target, mask).item() == pytest.approx(0)
    assert explained_variance(target + 5, target, mask).item() == pytest.approx(1)
    assert explained_variance(-target, target, mask).item() == pytest.approx(-3)
    assert explained_variance(target, torch.ones(4), mask).item() == 0
