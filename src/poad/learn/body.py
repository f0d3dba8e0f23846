"""Critics that train what they read: an adapter of their own, or the policy's body.

With an adapter (`critic.body = adapter`) the critic itself learns from features that are computed
once per rollout. Only after that the adapter learns, through what the critic has made of them, in
passes over the newest rollout. So a rate of 0 leaves everything as it is with a frozen body.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poad.agent import Agent, FrozenFeatures
from poad.learn.divergence import Skips
from poad.learn.experience import Experience
from poad.learn.losses import clipped_value_loss
from poad.learn.value import merged
from poad.lm import Bundles, SideAdapter, renumber
from poad.ranks import ALONE, Ranks


class BodyLearner:
    """Trains the adapter of an agent's critic, and nothing else.

    Args:
        agent: whose critic has an adapter.
        skips: counts steps whose gradient is not finite.
        ranks: the processes that divide the passes of each step among themselves.
    """

    def __init__(self, agent: Agent, skips: Skips | None = None, ranks: Ranks = ALONE) -> None:
        assert agent.features is not None
        assert agent.features.adapter is not None
        self._agent, self._ranks = agent, ranks
        self.features: FrozenFeatures = agent.features
        self.adapter: SideAdapter = agent.features.adapter
        self._skips = Skips() if skips is None else skips
        rate = agent.config.critic.adapter_lr
        self.optimizer = torch.optim.Adam(self.adapter.parameters(), lr=rate, eps=1e-5, fused=True)
        self.generator = torch.Generator().manual_seed(agent.config.seed)
        """The source of the order of prompts. The critic draws from another one."""

    def fit(self, experience: Experience) -> dict[str, float]:
        """Learn from a rollout.

        Args:
            experience: its features were read before the critic learned from it.

        Returns:
            The mean norm of the gradient; empty if the method has no critic.

        Raises:
            DivergenceError: too many gradients were not finite.
        """
        if not len(experience.value):
            return {}
        target, weight = merged(experience.value, len(experience.positions))  # [U], [U]
        kept = weight > 0
        positions = [experience.positions[u] for u in kept.nonzero().squeeze(1).tolist()]
        bundles = Bundles.divide(positions, branching=self._agent.model.branching)
        config, norms = self._agent.config.critic, list[float]()
        parts = min(config.minibatches, len(bundles.cost))
        for _ in range(config.adapter_epochs):
            order = torch.randperm(len(bundles.cost), generator=self.generator)
            for some in order.tensor_split(parts):
                norms.append(self._step(bundles, some, target[kept], parts * weight[kept]))
        made = [norm for norm in norms if math.isfinite(norm)]
        return {"critic_body_grad_norm": sum(made) / len(made) if made else math.nan}

    def _step(self, bundles: Bundles, some: Tensor, target: Tensor, weight: Tensor) -> float:
        """Make one gradient step on some bundles, and return the norm of its gradient.

        Args:
            bundles: of U readings.
            some: [B] int64, the bundles of this minibatch.
            target: [U].
            weight: [U] that of each reading in a minibatch's sum.
        """
        mine, ppo = some[self._ranks.share(bundles.cost[some])], self._agent.config.ppo
        weights = list(self.adapter.parameters())

        def add_up(tokens: int) -> float:
            self.optimizer.zero_grad(set_to_none=True)
            total = 0.0
            with self.adapter.applied() as read:
                for run in bundles.micro_batches(tokens, mine):
                    part, at = bundles.select(run)  # [U'] the readings of this pass
                    value = self._agent.critic(self.features.with_gradient(part.positions, read))
                    error = (value - target[at].to(value)) ** 2
                    loss = 0.5 * (weight[at].to(value) * error).sum()
                    # Inside the context: with checkpointing, it reads the layers once more.
                    loss.backward(inputs=weights)
                    total += float(loss.detach())
            return total

        fitting = self._agent.model.passes
        loss = torch.tensor(fitting.within(add_up, ppo.micro_batch_tokens, self._ranks))
        self._ranks.add_up([loss])
        self._ranks.add_up_gradients(weights)
        norm = torch.nn.utils.clip_grad_norm_(weights, ppo.max_grad_norm)
        if norm.isfinite():
            self.optimizer.step()
        else:
            self._skips.skip({"value_loss": float(loss)}, {"critic.adapter_lr": self.adapter})
        return float(norm)


def joint_value_loss(
    experience: Experience, read: Tensor, value: Tensor, clip: float | None
) -> Tensor:
    """Compute the part of the value loss that some readings of a shared body have, with gradient.

    Args:
        experience: the whole rollout.
        read: [U'] int64: the readings.
        value: [U'] the critic's values there, now.
        clip: how far a value may move; see `clipped_value_loss`.
    """
    terms = experience.value
    # [U] -> [W]: the place of each term's reading among the U', -1 if it is not among them
    place = renumber(read, len(experience.positions))[terms.reading]
    mine = place >= 0  # [W] bool
    new = value[place[mine].to(value.device)]
    old, target, weight = (
        each[mine].to(new) for each in (terms.old_value, terms.target, terms.weight)
    )
    return (weight * clipped_value_loss(new, old, target, clip)).sum()
