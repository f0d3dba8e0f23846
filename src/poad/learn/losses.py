"""Losses and moments: pure functions of tensors.

Losses are per element, unless their name says mean. Statistics are taken over everything they are
given, so give them the whole batch, not a minibatch. Masks are True where the data is real.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, clip: float
) -> Tensor:
    """Compute the PPO policy loss of each decision; a ratio outside 1 ± clip gains nothing more.

        ρ = π(w) / π_old(w)          loss = −min(ρ·A, clamp(ρ, 1 − clip, 1 + clip)·A)

    All tensors share one shape, which the loss has too. Source: arXiv 1707.06347, eq. 7, with the
    sign turned for descent.
    """
    ratio = torch.exp(logprob - old_logprob)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def clipped_value_loss(
    value: Tensor, old_value: Tensor, target: Tensor, clip: float | None
) -> Tensor:
    """Compute half the squared error of each reading; moving past old_value ± clip gains nothing.

        loss = ½·max((v − target)², (v_old + clamp(v − v_old, −clip, clip) − target)²)

    All tensors share one shape, which the loss has too. None as clip gives the plain squared error.
    Source: arXiv 2005.12729 ("value function clipping"), halved.
    """
    if clip is None:
        return 0.5 * (value - target) ** 2
    near = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2)


def approx_kl(logprob: Tensor, old_logprob: Tensor) -> Tensor:
    """Estimate KL(old ‖ new) per token, in nats, from tokens that the old policy sampled.

        k₃ = ρ − 1 − log ρ           ρ = π(w) / π_old(w)

    Unbiased, never negative, and of lower variance than −log ρ. Source: J. Schulman,
    "Approximating KL Divergence" (2020), estimator k3.
    """
    log_ratio = logprob - old_logprob
    return torch.expm1(log_ratio) - log_ratio


def by_turn(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Join the choices of each turn, so that the ratio is that of whole actions.

    Args:
        logprob: [S] of each choice.
        old_logprob: [S].
        advantage: [S]; all choices of a turn carry the turn's advantage.
        turn: [S] int64, any numbers.

    Returns:
        The three, each [number of distinct turns], in ascending order of turns.
    """
    each, place = turn.unique(return_inverse=True)  # place [S]: which of the distinct turns
    new, old = (one.new_zeros(len(each)).index_add(0, place, one) for one in (logprob, old_logprob))
    return new, old, advantage.new_zeros(len(each)).index_copy(0, place, advantage)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean over real elements, a scalar of at least float32; 0 if there are none.

    Masked elements may hold anything and get no gradient from here, but they should be finite if
    `values` was computed from parameters: a NaN further down would still poison the backward pass.

    Raises:
        ValueError: values and mask differ in shape.
        TypeError: the mask is not bool.
    """
    if values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} must agree.")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; expected bool, True where data is real.")
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.masked_fill(~mask, 0).to(dtype).sum() / mask.sum().clamp(min=1)


def masked_moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation over real elements; both 0 if there are none.

    The standard deviation is the population's: divided by n, not by n − 1.
    """
    mean = masked_mean(values, mask)
    return mean, masked_mean((values - mean) ** 2, mask).sqrt()


def normalize_advantages(advantage: Tensor, mask: Tensor, std_floor: float) -> Tensor:
    """Scale advantages to mean 0 and, unless they hardly differ, standard deviation 1.

        (A − mean) / max(std, std_floor)       over the real choices of the whole batch; 0 elsewhere

    The floor matters: when returns are nearly constant, dividing by their tiny spread would blow a
    step penalty up into full-size noise. Raises ValueError unless `std_floor` is positive.
    """
    if not std_floor > 0:
        raise ValueError(f"std_floor is {std_floor}; it must be positive, for example 0.1.")
    mean, std = masked_moments(advantage, mask)
    scaled = (advantage - mean) / std.clamp(min=std_floor)
    return scaled.masked_fill(~mask, 0).to(advantage.dtype)


def explained_variance(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compute the share of the targets' variance that the critic explains, a scalar of at most 1.

        1 − Var(target − value) / Var(target)

    1 is a perfect critic, 0 one no better than a constant. Also 0 where the targets do not vary,
    since there is nothing to explain.
    """
    _, residual = masked_moments(target - value, mask)
    _, spread = masked_moments(target, mask)
    explained = 1 - (residual / spread.clamp(min=torch.finfo(spread.dtype).tiny)) ** 2
    return torch.where(spread > 0, explained, 0.0)
