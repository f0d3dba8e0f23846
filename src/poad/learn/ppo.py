"""The learner: a rollout becomes credit, and credit becomes gradient steps.

Clipped PPO (arXiv 1707.06347) over decision slots. Identical decisions of a rollout are computed
once: a minibatch is a share of the distinct prompts, and every turn that fell on one of its
decisions adds its own term to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from poad.agent import Critic, DecisionBatch, FrozenFeatures, Policy
from poad.config import Config
from poad.credit import Credit, Method, Slots, Trajectory
from poad.errors import ConfigError, DivergenceError
from poad.learn.experience import Experience, lay_out, read_where
from poad.learn.losses import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    masked_moments,
    normalize_advantages,
)
from poad.learn.rollout import split_finished
from poad.lm import renumber
from poad.turns import Rollout, Turn


class _Step(NamedTuple):
    """What one minibatch said."""

    policy_loss: float
    value_loss: float
    entropy: float
    kl: float
    clip_fraction: float
    kl_reference: float
    grad_norm: float


class Drift(NamedTuple):
    """How far the learner's log-probabilities are from the sampler's before it has learned."""

    largest: float
    mean: float

    @classmethod
    def between(cls, learner: Tensor, sampler: Tensor) -> Drift:
        """Of S terms that the policy sampled as it is."""
        distance = (learner - sampler).abs()
        if not len(distance):
            return cls(math.nan, math.nan)
        return cls(float(distance.max()), float(distance.mean()))


class PPO:
    """Learns a policy and its critic from rollouts.

    Args:
        policy: trained in place.
        critic: trained in place.
        features: the frozen features the critic reads; none makes it read the policy's own body.
        method: who gets credit.
        config: rates, discounts and seeds.
    """

    def __init__(
        self,
        policy: Policy,
        critic: Critic,
        features: FrozenFeatures | None,
        method: Method,
        config: Config,
    ) -> None:
        self.policy, self.critic, self.method = policy, critic, method
        self._features = features
        self._config = config
        slots = config.credit.slots
        self._slots: Slots = method.slots if slots == "auto" else slots
        self._groups = [policy.model.parameters(), list(critic.parameters())]
        self.optimizer = torch.optim.Adam(
            [
                {"params": self._groups[0], "lr": config.ppo.lr},
                {"params": self._groups[1], "lr": config.critic.lr},
            ],
            eps=1e-5,
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.waiting: list[tuple[Turn, ...]] = [() for _ in range(config.streams)]
        self._drift: Drift | None = None

    def update(self, rollout: Rollout, progress: float = 0.0) -> dict[str, float]:
        """Learn from a rollout; what is learned is measured before each step.

        Args:
            rollout: what the policy did, as it is now.
            progress: share of the run that is over, for annealed learning rates.
        """
        rate = 1.0 - progress if self._config.ppo.anneal else 1.0
        for group, lr in zip(
            self.optimizer.param_groups, (self._config.ppo.lr, self._config.critic.lr), strict=True
        ):
            group["lr"] = lr * rate
        streams, stale = self._streams(rollout)
        if not any(stream for stream in streams):
            return {}
        lesson, metrics = self._prepare(streams, stale)
        ppo, steps, passes = self._config.ppo, [], 0
        self._drift = None
        if lesson and (ppo.recompute_logprob or self.policy.model.has_dropout):
            lesson = self._recomputed(lesson)
        while lesson and passes < ppo.epochs:
            passes += 1
            for step in self._one_pass(lesson):
                steps.append(step)
            if ppo.kl_stop is not None and steps[-1].kl > ppo.kl_stop:
                break
        if steps:
            metrics |= _means(steps)
        if self._drift is not None:
            metrics |= {
                "logprob_drift": self._drift.largest,
                "logprob_drift_mean": self._drift.mean,
            }
        return metrics | {"passes": float(passes)}

    def refuse_free_writing(self) -> None:
        """Say so when the method cannot judge freely written actions.

        Raises:
            ConfigError: it judges whole offered actions.
        """
        if self.method.whole_action:
            raise ConfigError(
                f"credit.method = {self.method.name} chooses between offered actions, but the "
                f"world {self._config.env} lets the agent write freely; use a method that judges "
                "tokens, such as poad, or turn_ppo."
            )

    # --- from turns to terms ------------------------------------------------------------------

    def _streams(self, rollout: Rollout) -> tuple[list[tuple[Turn, ...]], list[int]]:
        """The turns to learn from, and how many of each stream an older policy acted."""
        if self.method.uses_critic:
            return list(rollout.streams), [0] * len(rollout.streams)
        stale = [len(turns) for turns in self.waiting]
        joined = [a + b for a, b in zip(self.waiting, rollout.streams, strict=True)]
        finished, self.waiting = split_finished(joined)
        return finished, stale

    def _prepare(
        self, streams: Sequence[Sequence[Turn]], stale: Sequence[int]
    ) -> tuple[Experience | None, dict[str, float]]:
        turns = [turn for stream in streams for turn in stream]
        if any(turn.action.trie is None for turn in turns):
            self.refuse_free_writing()
        readings = read_where(streams, self.method, self._slots)
        features = self._features(readings.positions) if self._features else None
        extra = () if self._features else readings.positions
        if not any(any(turn.action.choice) for turn in turns):
            return None, {}
        whole = self._config.ppo.ratio == "turn"
        batch, decision, option = self.policy.decisions(turns, extra, divide=not whole)
        value = self._values(batch, features).cpu()
        credit_config = self._config.credit
        by_duration = credit_config.discount == "duration"
        trajectory, place = lay_out(streams, readings, value, credit_config.gamma, by_duration)
        credit = self._credit(trajectory)
        advantage = normalize_advantages(credit.advantage, credit.mask, self._config.ppo.std_floor)

        def of_turns(tensor: Tensor) -> Tensor:  # [N, T, D] -> [n, D]
            return tensor.flatten(0, 1)[place]

        mask, value_mask = of_turns(credit.mask), of_turns(credit.value_mask)
        target = of_turns(credit.target)
        if self.method.uses_critic:
            # A bootstrap reads a root, so a forced root learns what its turn's first slot learns.
            first = value_mask.int().argmax(1, keepdim=True)
            target[:, :1] = target.gather(1, first)
            value_mask[:, 0] = True
        logprob = torch.zeros(decision.shape)
        for i, turn in enumerate(turns):
            logprob[i, : len(turn.action.logprob)] = torch.tensor(turn.action.logprob)
        fresh = torch.tensor(
            [
                t >= old
                for stream, old in zip(streams, stale, strict=True)
                for t in range(len(stream))
            ]
        )
        position = readings.at[value_mask]
        lesson = Experience(
            batch=batch,
            readings=readings,
            features=features,
            decision=decision[mask],
            option=option[mask],
            turn=torch.arange(len(turns))[:, None].expand_as(mask)[mask],
            old_logprob=logprob[mask],
            fresh=fresh[:, None].expand_as(mask)[mask],
            advantage=of_turns(advantage)[mask],
            reference=self._reference(batch, decision[mask], option[mask]),
            position=position,
            target=target[value_mask],
            old_value=value[position],
        )
        _, std = masked_moments(credit.advantage, credit.mask)
        explained = explained_variance(trajectory.value, credit.target, credit.value_mask)
        return lesson, {"explained_variance": float(explained), "advantage_std": float(std)}

    def _credit(self, trajectory: Trajectory) -> Credit:
        credit = self._config.credit
        return self.method.credit(
            trajectory,
            credit.gamma,
            credit.lam,
            lam_token=credit.lam_token,
            gamma_token=credit.gamma_token,
            slots=self._slots,
        )

    @torch.no_grad()
    def _values(self, batch: DecisionBatch, features: Tensor | None) -> Tensor:
        """[U] the critic as it stands."""
        if features is not None:
            return self.critic(features)
        value = torch.zeros(len(batch.extra_readings))
        for run in batch.bundles.micro_batches(self._config.ppo.micro_batch_tokens):
            part, _, kept = batch.select(run)
            value[kept] = self.critic(
                self.policy.model.read(part.packed)[part.extra_readings]
            ).cpu()
        return value

    @torch.no_grad()
    def _logprob(
        self, batch: DecisionBatch, decision: Tensor, option: Tensor, reference: bool = False
    ) -> Tensor:
        """[S] log-probabilities of terms as the policy, or the untrained model, sees them now."""
        q, k, _ = batch.read.shape
        logprob = torch.zeros(q, k)
        for run in batch.bundles.micro_batches(self._config.ppo.micro_batch_tokens):
            part, kept, _ = batch.select(run)
            logprob[kept] = self.policy.evaluate(part, reference=reference).logprob.cpu()
        return logprob[decision, option]

    def _reference(self, batch: DecisionBatch, decision: Tensor, option: Tensor) -> Tensor | None:
        if not self._config.ppo.kl_reference:
            return None
        return self._logprob(batch, decision, option, reference=True)

    def _recomputed(self, lesson: Experience) -> Experience:
        """The lesson, compared with a fresh pass; if so configured, learned from what that says.

        Where the sampler computes otherwise, its samples are another policy's, and the ratio of
        both, cut off, puts their weight right (truncated importance sampling).
        """
        ppo = self._config.ppo
        fresh = self._logprob(lesson.batch, lesson.decision, lesson.option)
        self._check_drift(Drift.between(fresh[lesson.fresh], lesson.old_logprob[lesson.fresh]))
        if not ppo.recompute_logprob:
            return lesson
        advantage = lesson.advantage
        if ppo.importance_cap is not None:
            weight = (fresh - lesson.old_logprob).exp().clamp(max=ppo.importance_cap)
            advantage = advantage * weight
        return replace(lesson, old_logprob=fresh, advantage=advantage)

    def _check_drift(self, drift: Drift) -> None:
        """Keep how far sampler and learner are apart; refuse to learn when it is too far."""
        self._drift, limit = drift, self._config.ppo.drift_stop
        if limit is not None and drift.mean > limit:
            raise DivergenceError(
                f"Sampler and learner differ by {drift.mean:.3g} in log-probability on average "
                f"({drift.largest:.3g} at most) before any step, so what was sampled is another "
                f"policy's; ppo.drift_stop allows {limit:g}. Try model.dtype = float32; or "
                "learn all the same with ppo.recompute_logprob and "
                "ppo.importance_cap = 2, and a higher ppo.drift_stop."
            )

    # --- gradient steps -----------------------------------------------------------------------

    def _one_pass(self, lesson: Experience) -> list[_Step]:
        """Every term once, in minibatches of bundles; stops early on the approximate KL."""
        ppo = self._config.ppo
        count = len(lesson.batch.bundles.cost)
        parts = min(ppo.minibatches, count)
        bundles = torch.randperm(count, generator=self.generator).tensor_split(parts)
        readings = torch.randperm(len(lesson.readings.positions), generator=self.generator)
        steps: list[_Step] = []
        for chosen, read in zip(bundles, readings.tensor_split(len(bundles)), strict=True):
            steps.append(self._step(lesson, chosen, read, 1.0 / len(bundles)))
            if ppo.kl_stop is not None and steps[-1].kl > ppo.kl_stop:
                break
        return steps

    def _step(self, lesson: Experience, bundles: Tensor, read: Tensor, share: float) -> _Step:
        """One gradient step on some bundles (and, with a frozen body, on some readings).

        Sums are divided by this minibatch's expected number of terms, not by its own, so that a
        turn weighs the same whichever minibatch its row falls into.
        """
        ppo = self._config.ppo
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(6)
        compared: list[tuple[Tensor, Tensor]] = []
        value_loss = torch.zeros(())
        if lesson.features is not None:
            value = self.critic(lesson.features[read])
            value_loss, totals[1] = self._value_loss(lesson, read, value, share)
        for i, run in enumerate(
            lesson.batch.bundles.micro_batches(ppo.micro_batch_tokens, bundles)
        ):
            with self.policy.model.dropout(self.generator):
                loss, sums, pair = self._loss(lesson, run, share)
                (loss + value_loss if i == 0 else loss).backward()
            totals += sums
            compared.append(pair)
        if self._drift is None:
            learner, sampler = map(torch.cat, zip(*compared, strict=True))
            self._check_drift(Drift.between(learner, sampler))
        norms = [torch.nn.utils.clip_grad_norm_(group, ppo.max_grad_norm) for group in self._groups]
        if not all(norm.isfinite() for norm in norms):
            raise DivergenceError(
                "A gradient is not finite, so training cannot go on; the last checkpoint is "
                "intact. Try a smaller ppo.lr or critic.lr, or model.dtype = float32."
            )
        if ppo.kl_stop is None or totals[3] <= ppo.kl_stop:
            self.optimizer.step()
        return _Step._make([*totals.tolist(), float(norms[0])])

    def _loss(
        self, lesson: Experience, bundles: Tensor, share: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The loss of some bundles; its parts as sums over terms; log-probabilities to compare."""
        ppo = self._config.ppo
        batch, kept, kept_extra = lesson.batch.select(bundles)
        place = renumber(kept, len(lesson.batch.read))
        mine = place[lesson.decision] >= 0
        new = self.policy.evaluate(batch)
        device = new.logprob.device
        decision, option = place[lesson.decision[mine]].to(device), lesson.option[mine].to(device)
        old, advantage = lesson.old_logprob[mine].to(device), lesson.advantage[mine].to(device)
        logprob, entropy = new.logprob[decision, option], new.entropy[decision]
        terms = max(1.0, len(lesson.decision) * share)
        if ppo.ratio == "turn":
            each, turn = lesson.turn[mine].unique(return_inverse=True)
            turn = turn.to(device)
            new_sum, old_sum = (
                one.new_zeros(len(each)).index_add(0, turn, one) for one in (logprob, old)
            )
            # A turn's terms all carry its advantage.
            judged = advantage.new_zeros(len(each)).index_copy(0, turn, advantage)
            count = max(1.0, len(lesson.turn.unique()) * share)
            surrogate = clipped_surrogate(new_sum, old_sum, judged, ppo.clip).sum() / count
        else:
            surrogate = clipped_surrogate(logprob, old, advantage, ppo.clip).sum() / terms
        among = torch.where(batch.renormalize, ppo.entropy, ppo.entropy_free).to(device)
        loss = surrogate - (among[decision] * entropy).sum() / terms
        away = 0.0
        if lesson.reference is not None:
            # KL(policy, reference) from samples: r - 1 - log r, never negative (Schulman's k3).
            ratio = lesson.reference[mine].to(device) - logprob
            penalty = (ratio.exp() - 1 - ratio).sum() / terms
            loss, away = loss + ppo.kl_reference * penalty, penalty.item()
        value_total = 0.0
        if lesson.features is None:
            value = self.critic(new.hidden[batch.extra_readings.to(device)])
            value_loss, value_total = self._value_loss(lesson, kept_extra, value, share)
            loss = loss + value_loss
        with torch.no_grad():
            log_ratio = logprob - old
            clipped = ((log_ratio.exp() - 1).abs() > ppo.clip).sum() / terms
            kl = approx_kl(logprob, old).sum() / terms
            fresh = lesson.fresh[mine].to(device)
            spread = (entropy.sum() / terms).item()
            parts = [surrogate.item(), value_total, spread, kl, clipped, away]
        sums = torch.tensor([float(part) for part in parts])
        return loss, sums, (logprob.detach()[fresh], old[fresh])

    def _value_loss(
        self, lesson: Experience, read: Tensor, value: Tensor, share: float
    ) -> tuple[Tensor, float]:
        """The weighted value loss at some readings, and its unweighted mean."""
        place = renumber(read, len(lesson.readings.positions))
        mine = place[lesson.position] >= 0
        new = value[place[lesson.position[mine]].to(value.device)]
        old, target = lesson.old_value[mine].to(new), lesson.target[mine].to(new)
        config = self._config.critic
        terms = max(1.0, len(lesson.position) * share)
        loss = clipped_value_loss(new, old, target, config.clip).sum() / terms
        return config.coefficient * loss, float(loss.detach())


def _means(steps: Sequence[_Step]) -> dict[str, float]:
    """Averages over an update's steps; the KL and the clipped share of its last."""
    names = ("policy_loss", "value_loss", "entropy", "kl_reference", "grad_norm")
    means = {name: sum(getattr(s, name) for s in steps) / len(steps) for name in names}
    return means | {"kl": steps[-1].kl, "clip_fraction": steps[-1].clip_fraction}
