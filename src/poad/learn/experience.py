"""Experience: a rollout as policy terms and value terms, ready to be learned from.

The turns of each stream are laid end to end as the flat token rows that `poad.token_credit` takes.
The critic reads its values there, the method gives credit, and what takes part in a loss is picked
out: S policy terms (choices) and W value terms (readings of the critic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from poad.agent import (
    CreditSettings,
    Critic,
    DecisionBatch,
    FrozenFeatures,
    Policy,
    read_hidden,
)
from poad.config import PPOConfig
from poad.credit import Credit, token_credit
from poad.learn.divergence import refuse_overflow
from poad.learn.losses import explained_variance, masked_moments, normalize_advantages
from poad.turns import Position, Turn

PLACES = ("root", "second", "later", "last")
"""The places of a reading in its action: before any choice, after the first one, later, and before
the last of three or more choices."""

Streams = Sequence[Sequence[Turn]]
"""N streams of turns in time order."""


@dataclass(frozen=True)
class TokenRows:
    """The tokens of N streams, a row each: the tensors of `poad.token_credit`, all [N, L].

    Instead of values, it holds where the critic has to read them: U distinct positions.
    """

    positions: list[Position]
    read: Tensor
    """Int64. The index among the positions of the reading before the token; -1 for none."""
    read_next: Tensor
    """Int64. At an episode's or a stream's last turn, unless it terminated: the index of the
    position of the observation that followed; -1 elsewhere."""
    reward: Tensor
    """Float32. The turn's reward, at its last token."""
    mask: Tensor
    """Bool. True at tokens, False at the padding on the right."""
    choice: Tensor
    """Bool. Tokens that had an alternative."""
    turn_ids: Tensor
    """Int64. Counts all turns up from 0, stream after stream."""
    episode_ids: Tensor
    """Int64. Counts the episodes of a row up from 0."""
    discount: Tensor
    """Float32. γ after the token's turn."""
    ended: Tensor
    """Bool. Whether the token's turn ended its episode."""
    place: Tensor
    """Int64. Where in its action the reading before the token stands; see `PLACES`."""

    def values(self, value: Tensor, at: Tensor) -> Tensor:
        """Look readings [U] up where they belong; 0 where nothing was read. [N, L]."""
        # [U] -> [N, L]. An index of -1 picks the last reading, which the 0 then replaces.
        return torch.where(at >= 0, value[at], 0.0)

    def credit(self, value: Tensor, settings: CreditSettings) -> Credit:
        """Compute the credit of every token, [N, L], from the critic's readings [U]."""
        return token_credit(
            self.reward,
            self.values(value, self.read),
            self.mask,
            self.turn_ids,
            method=settings.method,
            **settings.rates._asdict(),
            choice=self.choice,
            discount=self.discount,
            bootstrap=self.values(value, self.read_next),
            ended=self.ended,
            episode_ids=self.episode_ids,
        )


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
    """W readings that the critic is trained at, in the same order."""

    reading: Tensor
    """[W] int64: the index among the U positions."""
    target: Tensor
    """[W] float32: the value that the critic should have read."""
    old_value: Tensor
    """[W] float32, as read before the update."""
    place: Tensor
    """[W] int64, see `PLACES`."""

    def __len__(self) -> int:
        return len(self.reading)


@dataclass(frozen=True)
class Experience:
    """One rollout, ready to be learned from."""

    batch: DecisionBatch
    """The distinct decisions behind the policy terms."""
    readings: int
    """U, the number of positions that the critic reads."""
    features: Tensor | None
    """[U, H] frozen features of these positions; None when the critic shares the policy's body."""
    policy: PolicyTerms
    value: ValueTerms
    metrics: dict[str, float]
    """Measurements of the rollout before anything is learned from it."""


def lay_out(streams: Streams, settings: CreditSettings) -> TokenRows:
    """Lay the turns of each stream end to end, and find the positions the critic reads.

    It reads before every token that may be a slot, at every turn's root, and at the observation
    after an episode's or a stream's last turn, unless that terminated. Methods that decide per turn
    read roots only.
    """
    per_token = settings.method.decision == "token"
    every = per_token and settings.rates.slots == "tokens"
    index: dict[Position, int] = {}
    turns = [turn for stream in streams for turn in stream]
    # (turn, reward, choice, reading, place) per token
    rows: list[list[tuple[int, float, bool, int, int]]] = []
    facts: list[tuple[int, float, bool]] = []  # (episode, discount, ended) per turn so far
    goes_on: list[bool] = []  # whether a value follows the turn that is not its successor's root
    for stream in streams:
        rows.append([])
        episode = 0
        for t, turn in enumerate(stream):
            prompt, before = turn.prompt_ids, turn.action.beginnings
            places = _places(turn.action.choice)
            for j, choice in enumerate(turn.action.choice):
                reads = j == 0 or every or (per_token and choice)
                read = index.setdefault((prompt, before[j]), len(index)) if reads else -1
                reward = turn.reward if j + 1 == len(before) else 0.0
                rows[-1].append((len(facts), reward, choice, read, places[j]))
            ended = turn.terminated or turn.truncated
            duration = turn.duration if settings.by_duration else 1
            facts.append((episode, settings.rates.gamma**duration, ended))
            goes_on.append(not turn.terminated and (ended or t + 1 == len(stream)))
            episode += ended
    after = [
        index.setdefault((turn.next_prompt_ids, ()), len(index)) if reads else -1
        for turn, reads in zip(turns, goes_on, strict=True)
    ]
    # Rows of tokens -> [N, L] columns. With n turns, padding belongs to an extra turn of number n.
    # Facts about turns, [n + 1], are copied to the tokens by indexing: [n + 1][N, L] -> [N, L].
    length = max(map(len, rows))
    blank = (len(turns), 0.0, False, -1, 0)
    padded = chain.from_iterable(row + [blank] * (length - len(row)) for row in rows)
    turn_ids, reward, choice, read, place = (
        torch.tensor(column).reshape(len(rows), length) for column in zip(*padded, strict=True)
    )
    episode_ids, discount, ended = (
        torch.tensor(column)[turn_ids] for column in zip(*facts, (0, 1.0, False), strict=True)
    )
    return TokenRows(
        positions=list(index),
        read=read,
        read_next=torch.tensor([*after, -1])[turn_ids],
        reward=reward,
        mask=turn_ids < len(turns),
        choice=choice,
        turn_ids=turn_ids,
        episode_ids=episode_ids,
        discount=discount,
        ended=ended,
        place=place,
    )


def _places(choice: Sequence[bool]) -> list[int]:
    """Find the place of the reading before each token of an action, as an index of `PLACES`."""
    total, made, places = sum(choice), 0, []
    for chosen in choice:
        places.append(3 if 2 <= made == total - 1 else min(made, 2))
        made += chosen
    return places


def gather(
    streams: Streams,
    stale: Sequence[int],
    *,
    policy: Policy,
    critic: Critic,
    features: FrozenFeatures | None,
    credit: CreditSettings,
    ppo: PPOConfig,
) -> Experience | None:
    """Turn a rollout into experience.

    Args:
        streams: N streams of turns; not all empty.
        stale: N counts. An older policy acted that many turns at the beginning of each stream.
        policy: the policy that acted.
        critic: the critic that reads the positions.
        features: the frozen features that the critic reads; None if it reads the policy's body.
        credit: the method and its rates.
        ppo: the settings of the update.

    Returns:
        The experience, or None if no turn held a choice.

    Raises:
        DivergenceError: a reward or a value is too large to learn from.
    """
    turns = list(chain.from_iterable(streams))
    if not any(any(turn.action.choice) for turn in turns):
        return None
    rows = lay_out(streams, credit)
    frozen = None if features is None else features(rows.positions)
    # A critic on the policy's own body reads its positions in the same rows as the decisions.
    extra = rows.positions if frozen is None else ()
    batch, decision, option = policy.decisions(turns, extra, divide=ppo.ratio != "turn")
    if frozen is None:
        value = read_values(policy, critic, rows.positions, ppo.micro_batch_tokens)
    else:
        value = critic.observe(frozen).cpu()  # [U, F] -> [U]; credit is computed on the CPU
    judged = rows.credit(value, credit)
    refuse_overflow(streams, value, judged)
    _, std = masked_moments(judged.advantage, judged.mask)
    explained = explained_variance(rows.values(value, rows.read), judged.target, judged.value_mask)
    fresh = [t >= old for row, old in zip(streams, stale, strict=True) for t in range(len(row))]
    decided = decision, option
    terms = _policy_terms(rows, judged, turns, torch.tensor(fresh), decided, ppo.std_floor)
    if ppo.kl_reference:
        frozen_read, at = policy.model.read_frozen, batch.positions
        reference = read_hidden(policy.model, frozen_read, at, ppo.micro_batch_tokens)
        batch = replace(batch, reference=reference)
    learned = _value_terms(rows, judged, value)
    metrics = {"explained_variance": float(explained), "advantage_std": float(std)}
    return Experience(
        batch=batch,
        readings=len(rows.positions),
        features=frozen,
        policy=terms,
        value=learned,
        metrics=metrics | accuracy(learned),
    )


def accuracy(terms: ValueTerms) -> dict[str, float]:
    """Measure the critic by place in the action, on a rollout that it has not learned from.

    Returns:
        For each of `PLACES` that occurs, `explained_variance_PLACE`, the share of the targets'
        variance that the critic explains, and `value_bias_PLACE`, the mean of value - target.
    """
    found: dict[str, float] = {}
    for i, name in enumerate(PLACES):
        here = terms.place == i
        if here.any():
            explained = explained_variance(terms.old_value, terms.target, here)
            bias = (terms.old_value - terms.target)[here].mean()
            found |= {
                f"explained_variance_{name}": float(explained),
                f"value_bias_{name}": float(bias),
            }
    return found


def _policy_terms(
    rows: TokenRows,
    judged: Credit,
    turns: Sequence[Turn],
    fresh: Tensor,
    decided: tuple[Tensor, Tensor],
    std_floor: float,
) -> PolicyTerms:
    """Pick the choices to train the policy at.

    Args:
        rows: the tokens.
        judged: their credit, [N, L].
        turns: the turns, of M tokens together.
        fresh: [number of turns] bool, True where the current policy acted.
        decided: the decision and the option at each token, both [M] int64.
        std_floor: the smallest standard deviation to divide advantages by.
    """
    advantage = normalize_advantages(judged.advantage, judged.mask, std_floor)
    recorded = chain.from_iterable(turn.action.logprob for turn in turns)
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
        fresh=fresh[turn],  # [turns] -> [S]
        advantage=advantage[rows.mask][mask],
    )


def _value_terms(rows: TokenRows, judged: Credit, value: Tensor) -> ValueTerms:
    """Pick the readings to train the critic at; none for methods without a critic."""
    read, target = rows.read[rows.mask], judged.target[rows.mask]  # [M]
    slot, turn = judged.value_mask[rows.mask], rows.turn_ids[rows.mask]
    slots = slot.nonzero().squeeze(1)  # [number of slots], ascending
    if len(slots):
        # A bootstrap reads a root, so a root that is no slot (a forced token) learns the target of
        # its turn's first slot.
        root = torch.ones_like(slot)
        root[1:] = turn[1:] != turn[:-1]  # the first of the M tokens is a root as well
        roots = root.nonzero().squeeze(1)  # [turns], ascending
        # Every turn has a slot, so the first slot at or after a root lies in the root's own turn.
        target[roots] = target[slots[torch.searchsorted(slots, roots)]]
        slot = slot | root
    return ValueTerms(
        reading=read[slot],
        target=target[slot],
        old_value=value[read[slot]],
        place=rows.place[rows.mask][slot],
    )


@torch.no_grad()
def read_values(
    policy: Policy, critic: Critic, positions: Sequence[Position], tokens: int
) -> Tensor:
    """Read the critic on the policy's body, in passes of so many tokens. [U] on the CPU."""
    return critic(read_hidden(policy.model, policy.model.read, positions, tokens)).cpu()
