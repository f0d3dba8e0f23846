"""Drift: the distance between the sampler's log-probabilities and the learner's.

The ratio of PPO divides by the probability that was recorded while sampling. If the learner
computes another one before it has learned anything, the ratio is wrong from the start.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from poad.agent import Policy
from poad.config import PPOConfig
from poad.errors import DivergenceError
from poad.learn.experience import Experience
from poad.ranks import Ranks


class Drift(NamedTuple):
    """Distance of the learner's log-probabilities from the sampler's, before any learning."""

    largest: float
    mean: float

    @classmethod
    def between(cls, learner: Tensor, sampler: Tensor) -> Drift:
        """Compare S terms that the current policy sampled; NaN if there are none."""
        distance = (learner - sampler).abs()
        if not len(distance):
            return cls(math.nan, math.nan)
        return cls(float(distance.max()), float(distance.mean()))

    def among(self, ranks: Ranks, count: int) -> Drift:
        """Join what the ranks measured, each on its own terms.

        Args:
            ranks: all of them.
            count: the number S of this rank's terms.
        """
        if ranks.size == 1:
            return self
        heard = [each for each in ranks.exchange("drift", [*self, count]) if each[2]]
        total = sum(each[2] for each in heard)
        if not total:
            return Drift(math.nan, math.nan)
        mean = sum(each[1] * each[2] for each in heard) / total
        return Drift(max(each[0] for each in heard), mean)

    def check(self, limit: float | None) -> Drift:
        """Return the drift itself, unless its mean exceeds a limit.

        Raises:
            DivergenceError: sampler and learner are too far apart; says what to do.
        """
        if limit is not None and self.mean > limit:
            raise DivergenceError(
                f"Sampler and learner differ by {self.mean:.3g} in log-probability on average "
                f"({self.largest:.3g} at most) before any step, so the sampler is another policy; "
                f"ppo.drift_stop allows {limit:g}. Try model.dtype = float32, or learn all the "
                "same with ppo.recompute_logprob and ppo.importance_cap = 2 and a higher "
                "ppo.drift_stop. If another acting.engine writes, see that it has the run's model, "
                "precision and temperature (docs/scaling.md)."
            )
        return self


def recompute(policy: Policy, experience: Experience, ppo: PPOConfig) -> tuple[Experience, Drift]:
    """Compute the log-probabilities again before learning, and use them if configured.

    Where the sampler computes otherwise, it is another policy. Truncated importance sampling then
    weighs each term by the ratio of the fresh probability over the recorded one, cut off at a cap.

    Returns:
        The experience to learn from, and the drift of its fresh terms.

    Raises:
        DivergenceError: the drift exceeds `ppo.drift_stop`.
    """
    terms = experience.policy
    each = policy.logprobs(experience.batch, ppo.micro_batch_tokens)  # [Q, K]
    logprob = each[terms.decision, terms.option]  # [S]
    drift = Drift.between(logprob[terms.fresh], terms.old_logprob[terms.fresh])
    drift.check(ppo.drift_stop)
    if not ppo.recompute_logprob:
        return experience, drift
    advantage = terms.advantage
    if ppo.importance_cap is not None:
        weight = (logprob - terms.old_logprob).exp().clamp(max=ppo.importance_cap)
        advantage = advantage * weight
    terms = replace(terms, old_logprob=logprob, advantage=advantage)
    return replace(experience, policy=terms), drift
