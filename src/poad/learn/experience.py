"""Experience: a rollout as policy terms and value terms, ready to be learned from.

The turns are laid out as flat token rows, the critic reads values there, the method gives credit,
and what takes part in a loss is picked: S policy terms (choices) and W value terms (readings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from poad.agent import Agent, DecisionBatch, Standardizer, read_hidden, refuse_free_writing
from poad.config import PPOConfig
from poad.credit import Credit
from poad.learn.accuracy import accuracy, measure
from poad.learn.divergence import refuse_overflow
from poad.learn.losses import normalize_advantages
from poad.learn.regression import Regression
from poad.learn.reliance import Reliance, rely
from poad.learn.rows import Streams, TokenRows, lay_out
from poad.turns import Position


@dataclass(frozen=True)
class PolicyTerms:
    """S choices that the policy learns from, in the order of streams, turns and tokens."""

    decision: Tensor
    """[S] int64: the decision of the batch."""
    option: Tensor
    """[S] int64: the option that was taken."""
    turn: Tensor
    """[S] int64: the turn that the choice belongs to."""
    old_logprob: Tensor
    """[S] float32: the log-probability, as recorded while sampling."""
    fresh: Tensor
    """[S] bool: sampled by the current policy. Turns that waited for their episode are older."""
    advantage: Tensor
    """[S] float32, normalized over all choices of the rollout."""

    def __len__(self) -> int:
        return len(self.decision)


@dataclass(frozen=True)
class ValueTerms:
    """W readings that the critic is trained at, in the same order; none without a critic."""

    reading: Tensor
    """[W] int64: the index among the U positions."""
    target: Tensor
    """[W] float32: the value that the critic should have read."""
    old_value: Tensor
    """[W] float32, as read before the update."""
    place: Tensor
    """[W] int64, see `poad.learn.rows.PLACES`."""
    root: Tensor
    """[W] int64: the reading at the root of the same action."""

    @cached_property
    def weight(self) -> Tensor:
        """[W] float32: what each term weighs in the value loss.

        Roots have a weight of 1 together, and all other readings as well. So the value of a prompt
        is learned as fast under a method that reads inside actions as under one that does not.
        """
        root = self.reading == self.root
        return torch.where(root, 1.0 / max(1, int(root.sum())), 1.0 / max(1, int((~root).sum())))

    def __len__(self) -> int:
        return len(self.reading)


@dataclass(frozen=True)
class Experience:
    """One rollout, ready to be learned from."""

    batch: DecisionBatch
    """The distinct decisions behind the policy terms."""
    positions: Sequence[Position]
    """[U] where the critic reads."""
    features: Tensor | None
    """[U, H] frozen features of these positions; None when the critic shares the policy's body."""
    policy: PolicyTerms
    value: ValueTerms
    metrics: dict[str, float]
    """Measurements of the rollout before anything is learned from it."""


def gather(
    streams: Streams,
    stale: Sequence[int],
    agent: Agent,
    returns: Standardizer,
    reliance: Reliance | None = None,
    regression: Regression | None = None,
) -> Experience | None:
    """Turn a rollout into experience.

    Args:
        streams: N streams of turns; not all empty.
        stale: N counts. An older policy acted that many turns at the beginning of each stream.
        agent: its policy acted the other turns, and its critic reads the positions.
        returns: the moments of all returns so far, to which this rollout's are added.
        reliance: chooses the actor's λ; None takes that of the settings.
        regression: divides advantages of actions among their decisions; None leaves them.

    Returns:
        The experience, or None if no turn held a choice.

    Raises:
        ConfigError: actions were written freely, and the method cannot learn from that.
        DivergenceError: a reward or a value is too large to learn from.
    """
    policy, credit, ppo = agent.policy, agent.settings.credit, agent.config.ppo
    turns = list(chain.from_iterable(streams))
    if any(turn.action.trie is None for turn in turns):
        refuse_free_writing(credit.method)
    if not any(any(turn.action.choice) for turn in turns):
        return None
    # U positions: their frozen features [U, F], or on the policy's own body their hidden states,
    # which are then computed in the same rows as the decisions.
    rows = lay_out(streams, credit)
    features = None if agent.features is None else agent.features(rows.positions)
    extra = rows.positions if features is None else ()
    decided = batch, _, _ = policy.decisions(turns, extra, divide=ppo.ratio != "turn")
    states, value = _read(agent, rows, features)  # [U, F] and [U]
    rows, credit, chosen = rely(reliance, agent, rows, decided, states, value)
    judged = rows.credit(value, credit)
    learned = pick_value_terms(rows, judged, value)
    refuse_overflow(streams, value, judged)
    if regression is not None:
        judged, chosen = regression.divide(rows, judged, decided, states, agent)
    floor = _floor(ppo, returns, learned, judged)
    floor = floor if credit.method.compared == "none" else None  # compared, they are on a scale
    if ppo.kl_reference:
        body = agent.model.read_frozen
        untrained = read_hidden(agent.model, body, batch.positions, ppo.micro_batch_tokens)
        batch = replace(batch, reference=untrained)
    return Experience(
        batch=batch,
        positions=rows.positions,
        features=features,
        policy=pick_policy_terms(rows, judged, streams, stale, decided[1:], floor),
        value=learned,
        metrics=measure(rows, value, judged) | accuracy(learned) | chosen,
    )


@torch.no_grad()
def _read(agent: Agent, rows: TokenRows, features: Tensor | None) -> tuple[Tensor, Tensor]:
    """Read the critic: what it reads at U positions, [U, F], and values [U], on the CPU."""
    if features is not None:
        return features.cpu(), agent.critic.observe(features).cpu()
    model, tokens = agent.model, agent.config.ppo.micro_batch_tokens
    hidden = read_hidden(model, model.read, rows.positions, tokens)
    return hidden.cpu(), agent.critic(hidden).cpu()


def _floor(ppo: PPOConfig, returns: Standardizer, learned: ValueTerms, judged: Credit) -> float:
    """Find the smallest standard deviation to divide advantages by, and note the returns."""
    came = learned.target[learned.reading == learned.root]  # [turns] returns, as seen from roots
    returns.observe((came if len(learned) else judged.advantage[judged.mask])[:, None])
    scale = float((returns.spread / returns.count).sqrt())
    return max(ppo.std_floor, ppo.return_floor * scale)


def pick_policy_terms(
    rows: TokenRows,
    judged: Credit,
    streams: Streams,
    stale: Sequence[int],
    decided: tuple[Tensor, Tensor],
    std_floor: float | None,
) -> PolicyTerms:
    """Pick the choices to train the policy at.

    Args:
        rows: the tokens.
        judged: their credit, [N, L].
        streams: the turns, of M tokens together.
        stale: N counts of turns, at the beginning of each stream, that an older policy acted.
        decided: the decision and the option at each token, both [M] int64.
        std_floor: the smallest standard deviation to divide advantages by; None leaves them alone.
    """
    advantage = judged.advantage
    if std_floor is not None:
        advantage = normalize_advantages(advantage, judged.mask, std_floor)
    recorded = chain.from_iterable(turn.action.logprob for row in streams for turn in row)
    fresh = [t >= old for row, old in zip(streams, stale, strict=True) for t in range(len(row))]
    # Two selections. `rows.mask` picks all tokens, [N, L] -> [M], in the order of streams, turns
    # and tokens, which is that of the decisions and log-probabilities, too. `mask` then picks the
    # choices that have credit, [M] -> [S].
    mask = judged.mask[rows.mask]
    turn = rows.turn_ids[rows.mask][mask]
    return PolicyTerms(
        decision=decided[0][mask],
        option=decided[1][mask],
        turn=turn,
        old_logprob=torch.tensor(list(recorded))[mask],
        fresh=torch.tensor(fresh)[turn],  # [turns] -> [S]
        advantage=advantage[rows.mask][mask],
    )


def pick_value_terms(rows: TokenRows, judged: Credit, value: Tensor) -> ValueTerms:
    """Pick the readings to train the critic at; none for methods without a critic."""
    read, target = rows.read[rows.mask], judged.target[rows.mask]  # [M]
    slot, turn = judged.value_mask[rows.mask], rows.turn_ids[rows.mask]
    slots = slot.nonzero().squeeze(1)  # [number of slots], ascending
    root = torch.ones_like(slot)
    root[1:] = turn[1:] != turn[:-1]  # the first of the M tokens is a root as well
    roots = root.nonzero().squeeze(1)  # [turns], ascending
    if len(slots):
        # A bootstrap reads a root, so a root that is no slot (a forced token) learns the target of
        # its turn's first slot.
        # Every turn has a slot, so the first slot at or after a root lies in the root's own turn.
        target[roots] = target[slots[torch.searchsorted(slots, roots)]]
        slot = slot | root
    # [turns] -> [M] -> [W]; tokens count their turns by the roots up to them
    at_root = read[roots][root.cumsum(0) - 1][slot]
    return ValueTerms(
        reading=read[slot],
        target=target[slot],
        old_value=value[read[slot]],
        place=rows.place[rows.mask][slot],
        root=at_root,
    )
