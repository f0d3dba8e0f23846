"""Regression inside actions: what each decision added to the advantage of its action.

An action's advantage A is one number, and its decisions made it together. Over many turns, how A
varies with what was decided tells the decisions apart. We regress it on their scores,

    A = Σᵢ dᵢ + rest,        dᵢ = sᵢᵀ W xᵢ,        sᵢ = e(wᵢ) − E[e(w)]

where e(w) is the code of a token, its mean is taken under the policy, and xᵢ describes the state.
The dᵢ are the compatible features of a policy whose logits are linear in x (Sutton et al. 2000),
and summing them over an action is the regression of episodic natural actor-critic (Peters and
Schaal 2008). Since E[sᵢ] = 0, a decision that was certain adds nothing, and forced tokens are
transparent.

W is the mean of its posterior under a Gaussian prior. The variances of the prior, and of the rest,
are those under which the remembered turns are likeliest. So decisions get as much credit as turns
have shown, and where these have shown nothing, the action's advantage decides alone.
`docs/theory.md` says when this helps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from poad.agent import Agent, DecisionBatch, Standardizer
from poad.credit import Credit
from poad.learn.reliance import CODES, token_codes
from poad.learn.rows import TokenRows

PARTS = ("constant", "root", "place")
"""The parts of x, each with a variance of its own: what is right everywhere, what depends on the
prompt, and what depends on the position."""
DIMENSIONS = (32, 16)
"""The dimensions that are kept of what the critic reads at the root, and at the position."""
RIDGE = 0.1
"""Directions of a state that vary less than this share of the mean are not blown up to the same
length as the others."""
FIRST = (0.005, 0.005, 0.005, 0.985)
"""Shares of the variance, of the parts and of the rest, before anything was seen."""
LEAST = 1e-3
"""The smallest share, from which it can grow again."""
DOUBT = 1.0
"""Standard errors by which the turns must speak for a part before it counts."""
EQUAL = 1e-7
"""Advantages that differ by less than this share of their size differ by rounding."""
AT_A_TIME = 8192
"""Decisions whose outer products are in memory together."""
ROUNDS = 4
"""Steps toward the likeliest shares in each rollout; they go on from those of the last one."""


class Remembered(NamedTuple):
    """The turns of one rollout that the regression learns from: n turns of s decisions."""

    score: Tensor
    """[s, R] float."""
    place: Tensor
    """[s, H] float: what the critic read at each decision."""
    turn: Tensor
    """[s] int64: the turn of each decision, counted from 0."""
    root: Tensor
    """[n, H] float: what the critic read at the root."""
    advantage: Tensor
    """[n] float, around its mean."""


class Regression:
    """Divides the advantage of each action among its decisions.

    Args:
        turns: how many of the newest turns to learn from, in whole rollouts. Of a single rollout
            with more turns, every second or third is taken.
        rest: share of what the regression leaves unexplained that each decision gets.
        vocabulary: number V of tokens.
    """

    def __init__(self, turns: int, rest: float, vocabulary: int) -> None:
        self.turns, self.rest = turns, rest
        self.shares = torch.tensor(FIRST, dtype=torch.float64)
        """[4] shares of the variance of advantages: of each of `PARTS`, and of the rest."""
        self.memory: list[Remembered] = []
        """The newest rollouts, in time order."""
        self.codes = token_codes(vocabulary)
        """[V, R] of all tokens."""

    @classmethod
    def of(cls, agent: Agent) -> Regression | None:
        """Begin for an agent; None if its settings do not ask for it."""
        credit = agent.config.credit
        if not credit.regress:
            return None
        return cls(credit.regress, credit.rest, agent.model.vocabulary)

    def divide(
        self,
        rows: TokenRows,
        judged: Credit,
        decided: tuple[DecisionBatch, Tensor, Tensor],
        states: Tensor,
        agent: Agent,
    ) -> tuple[Credit, dict[str, float]]:
        """Divide the advantages of a rollout, and learn from it.

        Args:
            rows: its M tokens.
            judged: their credit, with the advantage of the action at each of its choices.
            decided: its decisions, and the decision and the option at each token, both [M].
            states: [U, F] what the critic read; the first H numbers are the hidden state.
            agent: acted the rollout.

        Returns:
            The credit with the advantages of decisions. Their spread is that of the advantages of
            actions, so that the entropy bonus weighs what it did. And a metric: the share of the
            variance of actions' advantages that decisions explain.
        """
        if not judged.mask.any():  # no episode has finished, and the method waits for it
            return judged, {}
        batch, decision, option = decided
        tokens = agent.config.ppo.micro_batch_tokens
        _, mean_code = agent.policy.outlook(batch, tokens, self.codes)
        choice, read, turn = (each[rows.mask] for each in (judged.mask, rows.read, rows.turn_ids))
        decision, option = decision[choice], option[choice]  # [M] -> [s]
        score = self.codes[batch.token[decision, option, 0]] - mean_code[decision]
        hidden = states[:, : agent.model.width]
        first = torch.ones_like(choice)
        first[1:] = turn[1:] != turn[:-1]
        roots = read[first][turn - turn[0]][choice]  # [s] the reading at the root of each decision
        # Turns without a choice take no part, so the others are counted anew, from 0.
        _, turn = turn[choice].unique_consecutive(return_inverse=True)
        begins = torch.ones_like(turn, dtype=torch.bool)
        begins[1:] = turn[1:] != turn[:-1]
        whole = judged.advantage[judged.mask][begins].to(score)  # [n]
        read = torch.where(read[choice] >= 0, read[choice], roots)
        news = Remembered(score, hidden[read], turn, hidden[roots[begins]], whole)
        advantage = torch.zeros_like(judged.advantage)
        advantage[judged.mask] = self.learn(news).to(advantage)
        explained = 1.0 - float(self.shares[-1] / self.shares.sum())
        return replace(judged, advantage=advantage), {"decided": explained}

    def learn(self, news: Remembered) -> Tensor:
        """Learn from a rollout of n turns and s decisions, and return their advantages, [s]."""
        whole = news.advantage
        self._remember(news._replace(advantage=whole - whole.mean()))
        counts = torch.tensor([0, *(len(each.advantage) for each in self.memory)]).cumsum(0)
        joined = Remembered(*(torch.cat(column) for column in zip(*self.memory, strict=True)))
        turn = joined.turn + torch.cat(
            [c.expand(len(m.turn)) for c, m in zip(counts, self.memory, strict=False)]
        )
        basis = [
            Basis(states, size)
            for states, size in zip((joined.root, joined.place), DIMENSIONS, strict=True)
        ]
        fit = _Fit(joined._replace(turn=turn), basis, self.shares)
        self.shares = fit.shares
        added = fit.added(news)
        total = torch.zeros(len(whole), dtype=added.dtype).index_add(0, news.turn, added)
        credit = added + self.rest * (whole - total)[news.turn]
        spread, before = credit.std(correction=0), whole[news.turn].std(correction=0)
        if min(spread, before) <= EQUAL * whole.abs().max():
            return whole[news.turn]  # all actions were equally good
        return credit * (before / spread)

    def _remember(self, news: Remembered) -> None:
        """Keep the newest turns. Of a rollout with more than fit, every second or third is kept."""
        stride = -(-len(news.advantage) // self.turns)
        if stride > 1:
            kept = news.turn % stride == 0
            news = Remembered(
                *(news.score[kept], news.place[kept], news.turn[kept] // stride),
                *(news.root[::stride], news.advantage[::stride]),
            )
        self.memory = [*self.memory, news]
        while sum(len(each.advantage) for each in self.memory[1:]) >= self.turns:
            del self.memory[0]

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint has to hold."""
        named = {
            f"{i}.{name}": tensor
            for i, each in enumerate(self.memory)
            for name, tensor in each._asdict().items()
        }
        return {"shares": self.shares, **named}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.shares = tensors["shares"]
        count = sum(name.endswith(".advantage") for name in tensors)
        self.memory = [
            Remembered(*(tensors[f"{i}.{name}"] for name in Remembered._fields))
            for i in range(count)
        ]


class Basis:
    """The main directions of some states, scaled to equal length where they vary enough.

    The traits that matter are often small beside others, such as the last word of a prompt.

    Args:
        states: [n, H].
        size: number of directions P.
    """

    def __init__(self, states: Tensor, size: int) -> None:
        some = states[:: -(-len(states) // 1024)]
        self.standardizer = Standardizer(states.shape[1])
        self.standardizer.observe(some)
        some = self.standardizer(some).double()
        # The eigenvectors of the smaller of the two products lead to those of the other.
        if len(some) < some.shape[1]:
            length, vectors = torch.linalg.eigh(some @ some.T / len(some))
            vectors = some.T @ vectors / (length.clamp(min=1e-9) * len(some)).sqrt()
        else:
            length, vectors = torch.linalg.eigh(some.T @ some / len(some))
        length, vectors = length[-size:].clamp(min=0), vectors[:, -size:]
        turned = vectors * (length + RIDGE * length.mean() + 1e-12).rsqrt()
        self.scale = float((some @ turned).square().sum(1).mean().sqrt()) + 1e-9
        self.turned = turned.float()

    def __call__(self, states: Tensor) -> Tensor:
        """Describe states [..., H] by [..., P] float32, with a mean squared length of 1."""
        return self.standardizer(states) @ self.turned / self.scale


class _Fit:
    """The regression of n advantages on s scores, in the space of turns.

    Args:
        known: n turns of s decisions.
        basis: of the states at roots, and of those at positions.
        shares: of the variance, [4], as they were found so far.
    """

    def __init__(self, known: Remembered, basis: list[Basis], shares: Tensor) -> None:
        n, self.basis = len(known.advantage), basis
        total = known.score.new_zeros(n, CODES).index_add(0, known.turn, known.score)
        root, place = (
            each(states).to(known.score)
            for each, states in zip(basis, (known.root, known.place), strict=True)
        )
        # What a turn's decisions add is linear in Σ s xᵀ: [n, R] for x = 1 and [n, R·P] otherwise.
        # The sum over s ⊗ root is (Σ s) ⊗ root.
        each = known.score.new_zeros(n, CODES * place.shape[1])
        for some in torch.arange(len(place)).split(AT_A_TIME):  # long texts have many decisions
            outer = known.score[some, :, None] * place[some, None, :]  # [some, R, P]
            each.index_add_(0, known.turn[some], outer.flatten(1))
        self._parts = [total, (total[:, :, None] * root[:, None, :]).flatten(1), each]
        same = total @ total.T
        kernels = [same, same * (root @ root.T), each @ each.T]  # [n, n]
        scales = [float(kernel.diagonal().mean()) + 1e-12 for kernel in kernels]
        self._kernels = [k.double() / scale for k, scale in zip(kernels, scales, strict=True)]
        advantage = known.advantage.double()
        variance = float(advantage.square().mean())
        self.shares, weight = shares, torch.zeros(len(PARTS), dtype=torch.float64)
        self._alpha = known.score.new_zeros(n)
        if variance > 0:
            for _ in range(ROUNDS):
                weight = self.shares[:-1]
                alpha = self._toward_the_likeliest(advantage / variance**0.5)
                self._alpha = (alpha * variance**0.5).to(known.score)
        self._weight = weight / torch.tensor(scales)

    def _toward_the_likeliest(self, advantage: Tensor) -> Tensor:
        """Make a step toward the likeliest shares, and return α = C⁻¹A under the old ones, [n].

        C is the covariance of the advantages. Multiplied by αᵀKα / tr(C⁻¹K), a share would go to
        where the likelihood is stationary (MacKay 1992, "Bayesian interpolation"). Under C, αᵀKα
        has the mean tr(C⁻¹K) and the variance 2·tr((C⁻¹K)²). Here it must exceed the mean by a
        standard error, for which C⁻¹ is taken to be a multiple of the identity. So shares err on
        the low side: a part that holds nothing but noise would else be followed, again and again.
        """
        covariance = torch.zeros_like(self._kernels[0])
        for share, kernel in zip(self.shares, self._kernels, strict=False):
            covariance.add_(kernel, alpha=float(share))
        covariance.diagonal().add_(float(self.shares[-1]))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        alpha = inverse @ advantage
        level = DOUBT * 2**0.5 * float(inverse.diagonal().mean())
        ratios = [
            (alpha @ kernel @ alpha) / ((inverse * kernel).sum() + level * kernel.norm() + 1e-300)
            for kernel in self._kernels
        ]
        ratios.append((alpha @ alpha) / inverse.trace())
        self.shares = (self.shares * torch.stack(ratios)).clamp(LEAST, 2.0)
        return alpha

    def added(self, news: Remembered) -> Tensor:
        """Compute what each of s decisions added to the advantage of its action, [s]."""
        constant, root, place = (
            (self._alpha @ part) * float(weight)
            for part, weight in zip(self._parts, self._weight, strict=True)
        )
        added = news.score @ constant
        states = (self.basis[0](news.root)[news.turn], root), (self.basis[1](news.place), place)
        for x, w in states:
            added += ((news.score @ w.reshape(CODES, -1)) * x.to(added)).sum(1)  # sᵀ W x
        return added
