"""Reliance on the critic inside actions: the λ whose gradient points best, found on past rollouts.

A rollout improves the policy by as much as its gradient points along the true one. With a λ below 1
it holds less of the luck of later decisions, but lacks what the critic leaves unsaid. Both can be
measured, although nobody knows the true gradient: that of λ = 1 is unbiased, so the inner product
with *other* turns' gradient of λ = 1 is right on average. Noise that two turns do not share drops
out of it, and so do the errors of a critic that has not learned from the other turn.

The gradient meant here is that of a linear policy, whose logits are linear in what the critic
reads. It needs no backward pass. `docs/theory.md` has the derivation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from poad.agent import Agent, CreditSettings, DecisionBatch, Standardizer
from poad.learn.rows import TokenRows

LAMBDAS = (0.0, 0.4, 0.7, 0.9, 0.97, 0.99, 1.0)
"""The λs to choose from. They lie closer near 1, where they make a difference in long actions."""
KEPT = 0.85
"""What a rollout's evidence counts beside that of the next one."""
JUDGED = 0.7
"""What a rollout's gradients count beside those of the next one, when they are judged. An older
critic knew less."""
CONSTANT = 0.3
"""The constant beside states whose length is about 1."""
CODES = 64
"""Dimensions R of the random codes that stand for tokens."""


def token_codes(vocabulary: int) -> Tensor:
    """Draw a fixed random vector of length about 1 for each token, [V, R] float32."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(vocabulary, CODES, generator=generator, dtype=torch.float32) / CODES**0.5


class Reliance(nn.Module):
    """Chooses λ inside actions for the advantages of the next rollout.

    The state are buffers, so a checkpoint holds them.

    Args:
        width: size F of what the critic reads.
        vocabulary: number V of tokens.
    """

    gradient: Tensor
    """[Λ, R, F + 1] the gradients of all rollouts so far, of which older ones count less, by λ."""
    along: Tensor
    """[Λ] how far gradients point along those of λ = 1 of other turns."""
    power: Tensor
    """[Λ] squared lengths of the rollouts' gradients."""
    doubt: Tensor
    """Variance of the last of ``along``, as far as streams tell."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.standardizer = Standardizer(width)
        count = len(LAMBDAS)
        shapes = {"gradient": (count, CODES, width + 1), "along": (count,), "power": (count,)}
        for name, shape in (shapes | {"doubt": ()}).items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))
        self.codes = token_codes(vocabulary)
        """[V, R] of all tokens."""

    @classmethod
    def of(cls, agent: Agent) -> Reliance | None:
        """Begin for an agent; None if its settings leave nothing to choose."""
        credit = agent.settings.credit
        if not credit.fitted or credit.method.decision == "turn" or not credit.method.uses_critic:
            return None
        width = agent.model.width if agent.features is None else agent.features.width
        return cls(width, agent.model.vocabulary)

    @property
    def lam(self) -> float:
        """λ for the next rollout: 1 until rollouts agree by more than chance.

        A rollout's step is about equally long whatever its gradient's length is, since advantages
        are normalized. So what counts is the cosine with the true gradient, whose own length is the
        same for every λ.
        """
        if self.along[-1] <= 2 * self.doubt.sqrt():  # standard errors
            return 1.0
        cosine = self.along / self.power.sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        return LAMBDAS[int(cosine.argmax())]

    def applied(self, credit: CreditSettings) -> tuple[CreditSettings, dict[str, float]]:
        """Return the settings with the λ for the next rollout, and the metric that names it."""
        lam = self.lam
        return replace(credit, rates=credit.rates._replace(lam_actor=lam)), {"lam_actor": lam}

    def judge(
        self, rows: TokenRows, value: Tensor, credit: CreditSettings, states: Tensor, score: Tensor
    ) -> None:
        """Learn from a rollout of M tokens, from which the critic has not learned.

        Args:
            rows: the tokens.
            value: [U] the critic's readings.
            credit: the method and its rates, but for λ.
            states: [U, F] what the critic read.
            score: [M, R], see `observe`.
        """
        advantage = [
            rows.credit(value, replace(credit, rates=credit.rates._replace(lam_actor=lam)))
            for lam in LAMBDAS
        ]
        choice = rows.choice  # [N, L], of which S are True
        self.observe(
            torch.stack([each.advantage[choice] for each in advantage], dim=1).float(),
            score[choice[rows.mask]].float(),
            states[rows.read[choice]].float(),
            choice.nonzero()[:, 0],
        )

    def features(self, states: Tensor) -> Tensor:
        """Turn what the critic reads, [S, F], into what the logits are linear in, [S, F + 1].

        Standardized states tell decisions apart. The constant stands for what is right everywhere.
        It is small, since agreement between different states is mostly noise.
        """
        scaled = self.standardizer(states) / states.shape[1] ** 0.5
        return torch.cat([scaled, scaled.new_full((len(scaled), 1), CONSTANT)], dim=1)

    @torch.no_grad()
    def observe(self, advantage: Tensor, score: Tensor, states: Tensor, stream: Tensor) -> None:
        """Learn from the S choices of a rollout from which the critic has not learned.

        The critic knows all earlier rollouts, so what they were paid may not judge its present
        values. A rollout's λ = 1 judges the gradients of earlier ones and its own, and there only
        those of other streams.

        Args:
            advantage: [S, Λ] of each choice, for each of `LAMBDAS`.
            score: [S, R] the code of the token that was taken, minus its mean under the policy.
            states: [S, F] what the critic read before the choice.
            stream: [S] the stream of each choice.
        """
        self.standardizer.observe(states)
        states = self.features(states)
        found, own = torch.zeros_like(self.gradient), torch.zeros_like(self.along)
        unbiased = []  # the gradient of each stream with λ = 1
        for n in stream.unique():
            a, s, x = (each[stream == n] for each in (advantage, score, states))
            # the stream's gradient, [S', Λ], [S', R], [S', F + 1] -> [Λ, R, F + 1]
            mine = torch.stack([(each[:, None] * s).T @ x for each in a.unbind(1)])
            own += (mine * mine[-1]).sum((1, 2))
            found += mine
            unbiased.append(mine[-1])
        self.gradient.mul_(JUDGED).add_(found)
        self.along.mul_(KEPT**2).add_((self.gradient * found[-1]).sum((1, 2)) - own)
        agreed = torch.stack([((self.gradient[-1] - each) * each).sum() for each in unbiased])
        self.doubt.mul_(KEPT**4).add_((agreed**2).sum())
        self.power.mul_(KEPT**2).add_((found**2).sum((1, 2)))


def rely(
    reliance: Reliance | None,
    agent: Agent,
    rows: TokenRows,
    decided: tuple[DecisionBatch, Tensor, Tensor],
    states: Tensor,
    value: Tensor,
) -> tuple[TokenRows, CreditSettings, dict[str, float]]:
    """Choose λ for a rollout from earlier ones, and learn from this one for the next.

    Args:
        reliance: None takes the λ of the settings.
        agent: acted the rollout.
        rows: its M tokens.
        decided: its decisions, and the decision and the option at each token, both [M].
        states: [U, F] what the critic read.
        value: [U] its readings.

    Returns:
        The rows, with the entropy of decisions where it is needed; credit's settings; and the λ
        that was chosen, as a metric, if one was.
    """
    credit = agent.settings.credit
    if reliance is None and credit.rates.trace == "token":
        return rows, credit, {}
    batch, decision, option = decided
    codes = torch.zeros(agent.model.vocabulary, 0) if reliance is None else reliance.codes
    tokens = agent.config.ppo.micro_batch_tokens
    entropy, mean_code = agent.policy.outlook(batch, tokens, codes)
    rows = rows.with_bits(decision, entropy)
    if reliance is None:
        return rows, credit, {}
    credit, chosen = reliance.applied(credit)
    # Where a token was no decision, these are of any; none of them is judged.
    score = codes[batch.token[decision, option, 0]] - mean_code[decision]  # [M, R]
    reliance.judge(rows, value, credit, states, score)
    return rows, credit, chosen
