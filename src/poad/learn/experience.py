"""Experience: a rollout as policy terms and value terms, ready to be learned from.

The turns of each stream are laid end to end as the flat token rows that `poad.token_credit` takes.
The critic reads its values there, the method gives credit, and what takes part in a loss is picked
out: S policy terms (choices) and W value terms (readings of the critic).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from poad.agent import (
    CreditSettings,
    Critic,
    DecisionBatch,
    FrozenFeatures,
    Policy,
    Standardizer,
    read_hidden,
)
from poad.config import PPOConfig
from poad.credit import Credit, token_credit
from poad.learn.divergence import refuse_overflow
from poad.learn.losses import explained_variance, masked_moments, normalize_advantages
from poad.lm import LanguageModel
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
    bits: Tensor | None = None
    """Float32. The entropy of the decision at the token, in bits, if credit asks for it."""

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
            bits=self.bits,
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
    root: Tensor
    """[W] int64: the reading at the root of the same action."""
    stream: Tensor
    """[W] int64: the stream that the reading belongs to."""

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
    returns: Standardizer,
) -> Experience | None:
    """Turn a rollout into experience.

    Args:
        streams: N streams of turns; not all empty.
        stale: N counts. An older policy acted that many turns at the beginning of each stream.
        policy: the policy that acted.
        critic: the critic that reads the positions.
        features: the frozen features that it reads; None if it reads the policy's body.
        credit: the method and its rates.
        ppo: the settings of the update.
        returns: the moments of all returns so far, to which this rollout's are added.

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
    if credit.rates.trace == "bit":
        entropy = policy.entropies(batch, ppo.micro_batch_tokens)
        rows = replace(rows, bits=_bits(rows, decision, entropy))
    judged, reliance = rely(rows, value, credit)
    refuse_overflow(streams, value, judged)
    learned = _value_terms(rows, judged, value)
    floor = _floor(ppo, returns, learned, judged)
    terms = _policy_terms(rows, judged, streams, stale, (decision, option), floor)
    if ppo.kl_reference:
        batch = _with_reference(policy.model, batch, ppo.micro_batch_tokens)
    return Experience(
        batch=batch,
        readings=len(rows.positions),
        features=frozen,
        policy=terms,
        value=learned,
        metrics=_measure(rows, value, judged) | accuracy(learned) | reliance,
    )


def _with_reference(model: LanguageModel, batch: DecisionBatch, pass_tokens: int) -> DecisionBatch:
    """Add what the untrained model reads at the positions of a batch."""
    reference = read_hidden(model, model.read_frozen, batch.positions, pass_tokens)
    return replace(batch, reference=reference)


def _floor(ppo: PPOConfig, returns: Standardizer, learned: ValueTerms, judged: Credit) -> float:
    """Find the smallest standard deviation to divide advantages by, and note the returns."""
    came = learned.target[learned.reading == learned.root]  # [turns] returns, as seen from roots
    returns.observe((came if len(learned) else judged.advantage[judged.mask])[:, None])
    scale = float((returns.spread / returns.count).sqrt())
    return max(ppo.std_floor, ppo.return_floor * scale)


def _bits(rows: TokenRows, decision: Tensor, entropy: Tensor) -> Tensor:
    """Write the entropy of the decision at each token, in bits; 0 where there is none. [N, L].

    Args:
        rows: M tokens.
        decision: [M] int64: the decision at each token, -1 for none.
        entropy: [Q] of each decision, in nats.
    """
    # [M]; the entropy of a decision that is all but made may round to below 0
    each = torch.where(decision >= 0, entropy[decision].clamp(min=0) / math.log(2), 0.0)
    return torch.zeros(rows.mask.shape).masked_scatter(rows.mask, each)


def rely(rows: TokenRows, value: Tensor, credit: CreditSettings) -> tuple[Credit, dict[str, float]]:
    """Compute credit, with β and λ as far as the critic has earned them.

    β is the slope of a regression, through the origin, of what a turn brought beyond V(o) on what
    the critic said inside the action beyond V(o). It is 1 for exact values. Independent errors of
    the critic lower it: it is the share of the inner values' variance that is not error. The critic
    has not learned from these turns yet, and the fit for one half of the streams uses the other
    half alone, so that no advantage depends on its own outcome.

    Args:
        rows: N streams.
        value: [U] the critic's readings.
        credit: the method and its rates, and which of them are fitted.

    Returns:
        The credit, and the mean β as a metric, unless nothing is fitted.
    """
    judged = rows.credit(value, credit)
    if not credit.fitted or credit.method.decision == "turn":
        return judged, {}
    terms = _value_terms(rows, judged, value)
    root = value[terms.root]  # [W] V(o) at each reading; at roots themselves nothing is said beyond
    said, came = terms.old_value - root, terms.target - root
    beta = torch.zeros(len(rows.mask))  # [N]
    for half in (0, 1):
        other = (terms.place > 0) & (terms.stream % 2 != half)  # [W]
        power = (said[other] ** 2).sum()
        if power > 0:
            beta[half::2] = ((said * came)[other].sum() / power).clamp(0, 1)
    fitted = {name: beta if name == "beta" else 1 - beta for name in credit.fitted}
    credit = replace(credit, rates=credit.rates._replace(**fitted))
    return rows.credit(value, credit), {"beta": float(beta.mean())}


def _measure(rows: TokenRows, value: Tensor, judged: Credit) -> dict[str, float]:
    """Measure credit, and the critic as a whole, before anything is learned from either."""
    _, std = masked_moments(judged.advantage, judged.mask)
    explained = explained_variance(rows.values(value, rows.read), judged.target, judged.value_mask)
    return {"explained_variance": float(explained), "advantage_std": float(std)}


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
    streams: Streams,
    stale: Sequence[int],
    decided: tuple[Tensor, Tensor],
    std_floor: float,
) -> PolicyTerms:
    """Pick the choices to train the policy at.

    Args:
        rows: the tokens.
        judged: their credit, [N, L].
        streams: the turns, of M tokens together.
        stale: N counts of turns, at the beginning of each stream, that an older policy acted.
        decided: the decision and the option at each token, both [M] int64.
        std_floor: the smallest standard deviation to divide advantages by.
    """
    advantage = normalize_advantages(judged.advantage, judged.mask, std_floor)
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


def _value_terms(rows: TokenRows, judged: Credit, value: Tensor) -> ValueTerms:
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
        stream=rows.mask.nonzero()[:, 0][slot],
    )


@torch.no_grad()
def read_values(
    policy: Policy, critic: Critic, positions: Sequence[Position], tokens: int
) -> Tensor:
    """Read the critic on the policy's body, in passes of so many tokens. [U] on the CPU."""
    return critic(read_hidden(policy.model, policy.model.read, positions, tokens)).cpu()
