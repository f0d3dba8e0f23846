"""The trust region: an update never ends far from the policy that sampled its rollout.

Stopping early (`ppo.kl_stop`) cannot undo the step that went too far, and where a rollout holds few
prompts a single step may be such a one. So an update that ends outside the region is shortened:
its way back is halved until the policy is inside. The updates behind it take smaller steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poad.agent import Policy
from poad.config import PPOConfig
from poad.learn.experience import Experience
from poad.learn.losses import approx_kl, by_turn
from poad.lm import own_part, renew

_HALVINGS = 20
"""More do not happen unless the policy was outside before its first step; then it goes back."""
_LEAST = 1 / 8
"""Factor by which an update lowers the learning rate at most, even one that was taken back."""
_BACK = 1.2
"""Factor by which a lowered learning rate grows again with each update that stays near."""


class Kept(NamedTuple):
    """What the trust region left of an update."""

    share: float
    """Of the way that the update's steps went; 1 if they stayed inside."""
    kl: float
    """The approximate KL divergence from the policy that sampled, over the whole rollout."""


class TrustRegion:
    """The policies near the one that is trained now; make it before the first step.

    Args:
        policy: its trained weights are copied, to the CPU's memory.
        limit: the largest approximate KL divergence.
        micro_batch_tokens: tokens per forward pass.
        per_turn: whether the divergence is that of whole actions, as with one ratio per action.
    """

    def __init__(
        self, policy: Policy, limit: float, micro_batch_tokens: int, per_turn: bool = False
    ) -> None:
        self._policy, self._limit, self._tokens = policy, limit, micro_batch_tokens
        self._per_turn = per_turn
        self._start: Sequence[Tensor] = [
            own_part(weight).to("cpu", copy=True) for weight in policy.model.parameters()
        ]

    @classmethod
    def of(cls, policy: Policy, ppo: PPOConfig) -> TrustRegion | None:
        """Make the region that some settings ask for; None if they ask for none."""
        if ppo.kl_limit is None:
            return None
        return cls(policy, ppo.kl_limit, ppo.micro_batch_tokens, ppo.ratio == "turn")

    @torch.no_grad()
    def keep(self, experience: Experience) -> Kept:
        """Shorten the update that was made since, unless it stayed inside.

        The moments of the optimizer stay: they describe gradients, not the way that was gone.
        """
        share, kl = 1.0, self._kl(experience)
        while not kl <= self._limit and share:  # a KL that is not finite is too large as well
            share = share / 2 if share > 0.5**_HALVINGS else 0.0
            parts = map(own_part, self._policy.model.parameters())
            for weight, start in zip(parts, self._start, strict=True):
                # Weights that overflowed cannot be halved, only replaced.
                origin = start.to(weight.device)
                weight.copy_(torch.lerp(origin, weight, 0.5) if share else origin)
            renew(self._policy.model)
            kl = self._kl(experience)
        return Kept(share, kl)

    def scale_after(self, kept: Kept, scale: float) -> float:
        """Return the share of the learning rate for the next update, after one with this share.

        An update that had to be shortened says that the rate is too high for this model, by about
        as much as was cut. The rate comes back while updates end deep inside the region.
        """
        if kept.share < 1:
            return scale * max(kept.share, _LEAST)
        return min(1.0, scale * _BACK) if kept.kl < self._limit / 4 else scale

    def _kl(self, experience: Experience) -> float:
        """Measure it where the current policy sampled; terms of older policies are left out."""
        terms = experience.policy
        each = self._policy.logprobs(experience.batch, self._tokens)  # [Q, K]
        fresh = terms.fresh
        logprob = each[terms.decision, terms.option][fresh]  # [S'] of the fresh terms
        old = terms.old_logprob[fresh]
        if self._per_turn:
            logprob, old, _ = by_turn(logprob, old, terms.advantage[fresh], terms.turn[fresh])
        apart = approx_kl(logprob, old)
        return float(apart.mean()) if len(apart) else 0.0
