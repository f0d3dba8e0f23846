"""The one recursion behind every method, and the credit that comes out of it.

A *turn* is one action: some tokens, one reward, and one discount γₜ after it. A *slot* is a place
where a decision was made. Over the slots of a stream in time order, with A′ the next slot's,

    δ = r + γ′·v′ − v          A = δ + γ′·λ′·A′          target = A + v

Methods differ only in which tokens are slots and in the five sequences r, v, v′, γ′ and λ′.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Credit:
    """An advantage per decision and a target per reading of the critic, all [N, L].

    Advantage and target have the dtype of the values. They are exactly 0 outside `mask` and outside
    `value_mask`.
    """

    advantage: Tensor
    """Float. How much better the decision turned out than the critic expected."""
    target: Tensor
    """Float. The value that the critic should have predicted."""
    mask: Tensor
    """Bool. Real choices: they take part in policy loss, entropy and normalization."""
    value_mask: Tensor
    """Bool. The slots, where the critic is trained."""


@torch.no_grad()
def recursion(
    reward: Tensor, value: Tensor, next_value: Tensor, discount: Tensor, trace: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute advantages and targets over the slots of a stream.

        δₜ = rₜ + γₜ·v′ₜ − vₜ
        Aₜ = δₜ + γₜ·λₜ·Aₜ₊₁          (the last slot has no successor: its A is δ)
        targetₜ = Aₜ + vₜ

    All arguments are [..., L] of one float dtype, with the slots in time order along the last axis.
    Returns the advantage and the target, each [..., L]. A trace of 0 separates what follows from
    what came before. A position with r = v = v′ = 0 and γ = λ = 1 is transparent. With constant γ
    and λ this is generalized advantage estimation (arXiv 1506.02438, eq. 16). No gradient flows
    through it.
    """
    # The step Aₜ = δₜ + cₜ·Aₜ₊₁ composes: two steps make one of the same form, with
    # δₜ + cₜ·δₜ₊₁ and cₜ·cₜ₊₁. Each pass over the whole tensor therefore doubles how far every
    # position has looked ahead, and log₂ L passes replace the loop over time. They only add and
    # multiply, so they are as stable as the loop.
    advantage = reward + discount * next_value - value
    carry = discount * trace
    length, reach = advantage.shape[-1], 1
    while reach < length:
        advantage[..., :-reach].add_(carry[..., : length - reach] * advantage[..., reach:])
        carry = carry[..., :-reach] * carry[..., reach:]
        reach *= 2
    return advantage, advantage + value
