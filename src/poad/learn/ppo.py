"""The learner: gradient steps on the policy and the critic, from one rollout at a time.

Clipped PPO (arXiv 1707.06347) over decision slots. Identical decisions of a rollout are computed
once: a minibatch is a share of the distinct prompts, and every turn that reached one of its
decisions adds its own term to the loss.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from poad.agent import Agent, Standardizer
from poad.learn.body import BodyLearner, joint_value_loss
from poad.learn.divergence import Skips
from poad.learn.drift import Drift, recompute
from poad.learn.experience import Experience, gather
from poad.learn.losses import approx_kl, by_turn, clipped_surrogate
from poad.learn.regression import Regression
from poad.learn.reliance import Reliance
from poad.learn.steps import Step, backward, clip_gradients, divided, mean_of, noise_of, stepping
from poad.learn.trust import TrustRegion
from poad.learn.value import ValueLearner
from poad.learn.waiting import Waiting
from poad.lm import renumber
from poad.ranks import ALONE, Ranks
from poad.turns import Rollout


class PPO:
    """Trains an agent's policy and critic on rollouts, as its settings say.

    Args:
        agent: trained in place.
        ranks: the processes that divide the passes among themselves. All have the same rollouts.
    """

    def __init__(self, agent: Agent, ranks: Ranks = ALONE) -> None:
        config, policy = agent.config, agent.policy
        self.agent, self.policy, self.ppo, self.ranks = agent, policy, config.ppo, ranks
        self._groups, self._rates = [policy.model.parameters()], [config.ppo.lr]
        self.skips = Skips()
        self.values: ValueLearner | None = None
        """Trains a critic on frozen features. One on the policy's body learns with the policy."""
        self.body: BodyLearner | None = None  # trains the adapter of such a critic
        if agent.features is None:
            self._groups.append(list(agent.critic.parameters()))
            self._rates.append(config.critic.lr)
        else:
            limit = config.ppo.max_grad_norm
            self.values = ValueLearner(
                agent.critic, config.critic, limit, config.seed, self.skips, ranks
            )
            if agent.features.adapter is not None:
                self.body = BodyLearner(agent, self.skips, ranks)
        groups = zip(self._groups, self._rates, strict=True)
        groups = [{"params": group, "lr": lr} for group, lr in groups]
        self.optimizer = torch.optim.Adam(groups, eps=1e-5, fused=True)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.waiting = Waiting(config.streams, agent.settings.credit)
        self.returns = Standardizer(1)
        """Moments of all returns so far, which tell how small a spread of advantages is."""
        self.reliance, self.regression = Reliance.of(agent), Regression.of(agent)
        self.lr_scale = 1.0  # what is left of the rate after updates that went too far
        self.updates = 0
        """Rollouts learned from, in which the critic alone warms up at first."""
        self._drift: Drift | None = None

    def update(self, rollout: Rollout, progress: float = 0.0) -> dict[str, float]:
        """Learn from a rollout; each measurement is taken before the step it belongs to.

        Args:
            rollout: turns that the policy acted with its present weights.
            progress: the share of the run that is over, in [0, 1], for annealed learning rates.

        Returns:
            Metrics of the rollout and the update. Empty if no turn can be learned from yet.

        Raises:
            DivergenceError: too many gradients were not finite, or sampler and learner disagree.
        """
        self._anneal(progress)
        self.skips.begin()
        self.waiting.break_off(stream for stream, turn in rollout.broken if turn < 0)
        streams, stale = self.waiting.join(rollout.streams)
        if not any(streams):
            return {}
        metrics = {"passes": 0.0}
        with divided(self.policy.model, self.ranks):
            inside = self.reliance, self.regression
            experience = gather(streams, stale, self.agent, self.returns, *inside)
            if experience is None:
                return metrics
            self.updates += 1
            if self.updates > self.agent.config.critic.warmup:
                metrics = self._improve(experience)
        if self.values is not None:
            metrics |= self.values.fit(experience)._asdict()
        if self.body is not None:
            metrics |= self.body.fit(experience)
        return experience.metrics | metrics | {"skipped": float(self.skips.here)}

    def _anneal(self, progress: float) -> None:
        rate = 1.0 - progress if self.ppo.anneal else 1.0
        for group, lr in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate * self.lr_scale

    def _improve(self, experience: Experience) -> dict[str, float]:
        """Improve the policy, and a critic that shares its body, and keep it within bounds."""
        self._drift = None
        if self.ppo.recompute_logprob or self.policy.model.has_dropout:
            experience, self._drift = recompute(self.policy, experience, self.ppo)
        region = TrustRegion.of(self.policy, self.ppo)
        with stepping(self.policy.model):
            passes = [self._one_pass(experience)]
            while len(passes) < self.ppo.epochs and not self._too_far(passes[-1][-1]):
                passes.append(self._one_pass(experience))
        metrics = mean_of([step for steps in passes for step in steps])
        if region is not None:
            kept = region.keep(experience)
            metrics |= {"kept": kept.share, "kl_after": kept.kl, "lr_scale": self.lr_scale}
            self.lr_scale = region.scale_after(kept, self.lr_scale)
        if self._drift is not None:
            metrics["logprob_drift"], metrics["logprob_drift_mean"] = self._drift
        return metrics | {"passes": float(len(passes))}

    def _too_far(self, step: Step) -> bool:
        """Return True if the policy has moved so far that the update must stop."""
        return self.ppo.kl_stop is not None and step.kl > self.ppo.kl_stop

    def _one_pass(self, experience: Experience) -> list[Step]:
        """Use every term once, in minibatches of bundles; stop early on the approximate KL."""
        bundles = len(experience.batch.bundles.cost)
        parts = min(self.ppo.minibatches, bundles)
        steps: list[Step] = []
        for some in torch.randperm(bundles, generator=self.generator).tensor_split(parts):
            steps.append(self._step(experience, some, share=1.0 / parts))
            if self._too_far(steps[-1]):
                break
        return steps

    def _step(self, experience: Experience, bundles: Tensor, share: float) -> Step:
        """Make one gradient step on some bundles.

        Sums are divided by the minibatch's expected number of terms, not by its own, so that a turn
        weighs the same whichever minibatch its row falls into.

        Args:
            experience: the whole rollout.
            bundles: [B] int64: the bundles of this minibatch.
            share: of the rollout's terms that a minibatch holds on average.
        """
        mine = bundles[self.ranks.share(experience.batch.bundles.cost[bundles])]
        noise = noise_of(self.generator, self.policy.model, self.ranks)
        before = noise.get_state()

        def add_up(tokens: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
            self.optimizer.zero_grad(set_to_none=True)
            noise.set_state(before)  # the same dropout, however often this is repeated
            totals = torch.zeros(len(Step._fields) - 1)  # all fields but the last, grad_norm
            compared = [(torch.zeros(0), torch.zeros(0))]
            micro_batches = experience.batch.bundles.micro_batches(tokens, mine)
            loss = partial(self._loss, experience, share=share, tokens=tokens)
            for _, sums, pair in backward(self.policy.model, micro_batches, loss, noise):
                totals += sums
                if self._drift is None:
                    compared.append((pair[0].cpu(), pair[1].cpu()))
            return totals, compared

        fitting = self.policy.model.passes
        totals, compared = fitting.within(add_up, self.ppo.micro_batch_tokens, self.ranks)
        self.ranks.add_up([totals])
        for group in self._groups:
            self.ranks.add_up_gradients(group)
        if self._drift is None:  # before the first step the policy is still the one that sampled
            learner, sampler = map(torch.cat, zip(*compared, strict=True))
            drift = Drift.between(learner, sampler).among(self.ranks, len(learner))
            self._drift = drift.check(self.ppo.drift_stop)
        norms = [clip_gradients(group, self.ppo.max_grad_norm) for group in self._groups]
        step = Step._make([*totals.tolist(), float(norms[0])])
        if not all(norm.isfinite() for norm in norms):
            shared = {"critic.lr": self.agent.critic} if self.values is None else {}
            self.skips.skip(step._asdict(), {"ppo.lr": self.policy.model.module} | shared)
            step = step._replace(grad_norm=math.nan)  # so that the means leave it out
        elif not self._too_far(step):
            self.optimizer.step()
        return step

    def _loss(
        self, experience: Experience, bundles: Tensor, share: float, tokens: int
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Compute the loss of some bundles.

        Returns:
            The loss; the parts of a `Step`, summed over terms and divided by their expected
            number, on the CPU; and the fresh terms' log-probabilities, now and as sampled.
        """
        ppo, terms = self.ppo, experience.policy
        batch, kept, kept_extra = experience.batch.select(bundles)
        # [Q] -> [S]: the number in the smaller batch of each term's decision, -1 if left out. The
        # terms of this micro-batch are those that have one.
        place = renumber(kept, len(experience.batch.read))[terms.decision]
        mine = place >= 0  # [S] bool
        new = self.policy.evaluate(batch, tokens)
        device = new.logprob.device
        decision, option = place[mine].to(device), terms.option[mine].to(device)
        old, advantage = terms.old_logprob[mine].to(device), terms.advantage[mine].to(device)
        # [Q', K] -> [S'] and [Q'] -> [S']: a decision counts once for each term that reached it.
        logprob, entropy = new.logprob[decision, option], new.entropy[decision]

        # The unit of the loss is a choice, or an action with the probability of all its choices.
        joined, count = (logprob, old, advantage), max(1.0, len(terms) * share)
        if ppo.ratio == "turn":
            joined = by_turn(*joined, terms.turn[mine].to(device))
            count = max(1.0, len(terms.turn.unique()) * share)
        surrogate = clipped_surrogate(*joined, ppo.clip).sum() / count
        weight = torch.where(batch.renormalize, ppo.entropy, ppo.entropy_free).to(device)
        loss = surrogate - (weight[decision] * entropy).sum() / count
        penalty = value_total = logprob.new_zeros(())
        if new.kl_reference is not None:
            penalty = new.kl_reference[decision].sum() / count
            loss = loss + ppo.kl_reference * penalty
        if experience.features is None:
            config = self.agent.config.critic
            value = self.agent.critic(new.extra_hidden)  # [U', H] -> [U']
            value_total = joint_value_loss(experience, kept_extra, value, config.clip) / share
            loss = loss + config.coefficient * value_total
        with torch.no_grad():
            kl = approx_kl(*joined[:2]).sum() / count
            clipped = (((joined[0] - joined[1]).exp() - 1).abs() > ppo.clip).sum() / count
            parts = (surrogate, value_total, entropy.sum() / count, kl, clipped, penalty)
            fresh = terms.fresh[mine].to(device)
            sums = torch.stack(parts).cpu()  # one transfer from a GPU, not one for each part
        return loss, sums, (logprob.detach()[fresh], old[fresh])
