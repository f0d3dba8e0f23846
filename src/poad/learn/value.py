"""The critic's learner: regression of frozen features on targets.

Hidden states of a frozen body are computed once per rollout, so the critic can afford passes of its
own, and can go on learning from rollouts that the policy has left behind. Its passes are neither
annealed nor ended with the policy's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from poad.agent import Critic
from poad.config import CriticConfig
from poad.learn.divergence import Skips
from poad.learn.experience import Experience, ValueTerms
from poad.learn.steps import draws
from poad.ranks import ALONE, Ranks


class Readings(NamedTuple):
    """U distinct readings of a rollout, which the critic learns from."""

    features: Tensor
    """[U, F] float32."""
    target: Tensor
    """[U] float32: the mean over all terms at the reading."""
    weight: Tensor
    """[U] float32: of all terms at the reading; see `ValueTerms.weight`."""

    @classmethod
    def of(cls, experience: Experience) -> Readings:
        """Merge the value terms at each reading; their squared errors have the same gradient."""
        assert experience.features is not None
        target, weight = merged(experience.value, len(experience.positions))
        return cls(experience.features, target, weight).select(weight > 0)

    def select(self, index: Tensor) -> Readings:
        """Pick some of them, by number or by mask."""
        return Readings(*(each[index.to(each.device)].to(self.features.device) for each in self))


def merged(terms: ValueTerms, readings: int) -> tuple[Tensor, Tensor]:
    """Compute the mean target [U] and the weight [U] of all terms at each of U readings.

    What is only read after the last turn has no target, and the weight 0.
    """
    zero = torch.zeros(readings)
    weight = zero.index_add(0, terms.reading, terms.weight)  # [W] -> [U]
    return zero.index_add(0, terms.reading, terms.weight * terms.target) / weight, weight


class Fitted(NamedTuple):
    """Measurements of the passes over one rollout, as means over their steps."""

    value_loss: float
    critic_grad_norm: float


class ValueLearner:
    """Trains a critic on the frozen features of rollouts.

    It remembers the newest rollouts, since one of them says little about the inside of an action.
    Their targets belong to earlier policies, so values lag behind while the policy improves. The
    metrics `value_bias_PLACE` tell by how much, and credit relies on inner values only as far as
    they foretell new turns.

    Args:
        critic: trained in place.
        config: memory, passes, minibatches and learning rate.
        max_grad_norm: clips the gradient's norm.
        seed: of the order of readings.
        skips: counts steps whose gradient is not finite.
        ranks: the processes that divide each minibatch among themselves.
    """

    def __init__(
        self,
        critic: Critic,
        config: CriticConfig,
        max_grad_norm: float,
        seed: int,
        skips: Skips | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self.critic, self.config, self._max_grad_norm = critic, config, max_grad_norm
        self._skips = Skips() if skips is None else skips
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=config.lr, eps=1e-5, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.memory: list[Readings] = []
        """The newest rollouts, in time order."""

    def fit(self, experience: Experience) -> Fitted:
        """Remember a rollout, and learn from all that are remembered.

        An epoch draws as many readings as the new rollout has, so the cost does not grow with the
        memory. No reading is drawn again before all others were.

        Args:
            experience: with the frozen features of its readings.

        Raises:
            DivergenceError: too many gradients were not finite.
        """
        if not len(experience.value):  # the method has no critic
            return Fitted(0.0, 0.0)
        self.memory = [*self.memory, Readings.of(experience)][-self.config.replay :]
        known = Readings(*(torch.cat(column) for column in zip(*self.memory, strict=True)))
        return self._learn(known, len(self.memory), len(self.memory[-1].target), 1.0)

    def pretrain(self, known: Readings, rollouts: float) -> Fitted:
        """Learn from readings of other agents' turns, which are not remembered.

        Args:
            known: their weights are those of a single rollout.
            rollouts: how many rollouts of this run have as many turns.
        """
        return self._learn(known, 1, math.ceil(len(known.target) / max(1.0, rollouts)), rollouts)

    def _learn(self, known: Readings, joined: int, size: int, rounds: float) -> Fitted:
        """Make the passes over readings.

        Args:
            known: readings of rollouts whose weights do not depend on their size.
            joined: the number of these rollouts.
            size: readings that an epoch draws in each round.
            rounds: how many there are.
        """
        parts = self.config.minibatches
        some = draws(len(known.target), -(-size // parts), self.generator)
        # A minibatch is a share of all.
        known = known._replace(weight=known.weight * (len(known.target) / joined))
        count = max(1, round(rounds * self.config.epochs * parts))
        steps = [self._step(known.select(next(some))) for _ in range(count)]
        made = [step for step in steps if math.isfinite(step.critic_grad_norm)]
        if not made:
            return Fitted(math.nan, math.nan)
        return Fitted(*(sum(column) / len(made) for column in zip(*made, strict=True)))

    def _step(self, some: Readings) -> Fitted:
        """Make one gradient step on some readings."""
        mine = some.select(self._ranks.share(torch.ones(len(some.target), dtype=torch.int64)))
        error = (self.critic(mine.features) - mine.target) ** 2
        loss = 0.5 * (mine.weight * error).sum() / len(some.target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._ranks.add_up_gradients(list(self.critic.parameters()))
        loss = loss.detach()
        self._ranks.add_up([loss])
        norm = torch.nn.utils.clip_grad_norm_(self.critic.parameters(), self._max_grad_norm)
        step = Fitted(float(loss), float(norm))
        if norm.isfinite():
            self.optimizer.step()
        else:
            self._skips.skip({"value_loss": step.value_loss}, {"critic.lr": self.critic})
        return step
