"""Token rows: the turns of each stream, laid end to end as the tensors of `poad.token_credit`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from poad.agent import CreditSettings
from poad.credit import Credit, group_credit, token_credit
from poad.turns import Position, TokenIds, Turn

Streams = Sequence[Sequence[Turn]]
"""N streams of turns in time order."""

PLACES = ("root", "second", "later", "last")
"""The places of a reading in its action: before any choice, after the first one, later, and before
the last of three or more choices."""


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
    group_ids: Tensor
    """Int64. Equal for the episodes that are compared."""
    state_ids: Tensor
    """Int64. Equal for turns behind equal prompts."""
    bits: Tensor | None = None
    """Float32. The entropy of the decision at the token, in bits, if credit asks for it."""

    def values(self, value: Tensor, at: Tensor) -> Tensor:
        """Look readings [U] up where they belong; 0 where nothing was read. [N, L]."""
        # [U] -> [N, L]. An index of -1 picks the last reading, which the 0 then replaces.
        return torch.where(at >= 0, value[at], 0.0)

    def credit(self, value: Tensor, settings: CreditSettings) -> Credit:
        """Compute the credit of every token, [N, L], from the critic's readings [U]."""
        if settings.method.compared != "none":
            return group_credit(
                *(self.reward, self.mask, self.turn_ids, self.group_ids, self.state_ids),
                gamma=settings.rates.gamma,
                method=settings.method,
                choice=self.choice,
                discount=self.discount,
                ended=self.ended,
                episode_ids=self.episode_ids,
            )
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

    def with_bits(self, decision: Tensor, entropy: Tensor) -> TokenRows:
        """Add the entropy of the decision at each token, in bits; 0 where there is none.

        Args:
            decision: [M] int64: the decision at each token, -1 for none.
            entropy: [Q] of each decision, in nats.
        """
        # [M]; the entropy of a decision that is all but made may round to below 0
        each = torch.where(decision >= 0, entropy[decision].clamp(min=0) / math.log(2), 0.0)
        return replace(self, bits=torch.zeros(self.mask.shape).masked_scatter(self.mask, each))


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
    compared = zip(_groups(streams, settings.group), _states(turns), strict=True)
    # Rows of tokens -> [N, L] columns. With n turns, padding belongs to an extra turn of number n.
    # Facts about turns, [n + 1], are copied to the tokens by indexing: [n + 1][N, L] -> [N, L].
    blank = (len(turns), 0.0, False, -1, 0)
    turn_ids, reward, choice, read, place = _columns(rows, blank)
    episode_ids, discount, ended, group_ids, state_ids = (
        torch.tensor(column)[turn_ids]
        for some, of_padding in ((facts, (0, 1.0, False)), (compared, (0, 0)))
        for column in zip(*some, of_padding, strict=True)
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
        group_ids=group_ids,
        state_ids=state_ids,
    )


def _columns(rows: Sequence[list[tuple[Any, ...]]], blank: tuple[Any, ...]) -> Iterator[Tensor]:
    """Pad rows of tuples on the right, and yield what stands at each place of a tuple: [N, L]."""
    length = max(map(len, rows))
    padded = chain.from_iterable(row + [blank] * (length - len(row)) for row in rows)
    for column in zip(*padded, strict=True):
        yield torch.tensor(column).reshape(len(rows), length)


def _groups(streams: Streams, size: int) -> Iterator[int]:
    """Number the group of each turn's episode: the n-th episodes of some streams are a group."""
    numbers: dict[tuple[int, int], int] = {}
    for stream, turns in enumerate(streams):
        episode = 0
        for turn in turns:
            yield numbers.setdefault((stream // size, episode), len(numbers))
            episode += turn.terminated or turn.truncated


def _states(turns: Sequence[Turn]) -> Iterator[int]:
    """Number the prompts of turns."""
    numbers: dict[TokenIds, int] = {}
    for turn in turns:
        yield numbers.setdefault(turn.prompt_ids, len(numbers))


def _places(choice: Sequence[bool]) -> list[int]:
    """Find the place of the reading before each token of an action, as an index of `PLACES`."""
    total, made, places = sum(choice), 0, []
    for chosen in choice:
        places.append(3 if 2 <= made == total - 1 else min(made, 2))
        made += chosen
    return places
