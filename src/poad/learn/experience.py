"""From turns to what a learner needs of them: where the critic reads, and what happened in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poad.agent import DecisionBatch
from poad.credit import Method, Trajectory
from poad.turns import Position, Turn


@dataclass(frozen=True)
class Readings:
    """Where the critic reads for n turns of at most D tokens: U distinct positions."""

    positions: list[Position]
    at: Tensor
    """[n, D] int64: the position before each token, -1 where nothing is read."""
    beyond: Tensor
    """[n] int64: the position of the next observation at a cut, -1 elsewhere."""


@dataclass(frozen=True)
class Experience:
    """One rollout, ready to be learned from: S policy terms and W value terms."""

    batch: DecisionBatch
    readings: Readings
    features: Tensor | None
    """[U, H] frozen features; none when the critic shares the policy's body."""
    decision: Tensor
    """[S] int64."""
    option: Tensor
    """[S] int64."""
    turn: Tensor
    """[S] int64: the turn each term belongs to."""
    old_logprob: Tensor
    """[S] as recorded while sampling."""
    fresh: Tensor
    """[S] bool: sampled by the policy as it is now (turns that waited for their episode are
    older)."""
    advantage: Tensor
    """[S] normalized."""
    reference: Tensor | None
    """[S] the untrained model's log-probability; none when nothing is asked of it."""
    position: Tensor
    """[W] int64, into U."""
    target: Tensor
    """[W]."""
    old_value: Tensor
    """[W]."""


def read_where(streams: Sequence[Sequence[Turn]], method: Method, slots: str) -> Readings:
    """Find the positions the critic must read.

    They are those before every token that may be a slot, every turn's root, and the observation
    beyond a cut that is no termination.

    Args:
        streams: N streams of turns.
        method: who gets credit; methods that decide per turn read roots only.
        slots: ``choices`` or ``tokens``.
    """
    index: dict[Position, int] = {}
    seen: dict[tuple, list[int]] = {}

    def number(position: Position) -> int:
        return index.setdefault(position, len(index))

    def columns(turn: Turn) -> list[int]:
        tokens = turn.action.token_ids
        key = (turn.prompt_ids, tokens, turn.action.choice)
        if key not in seen:
            every = method.decision == "token" and slots == "tokens"
            some = turn.action.choice if method.decision == "token" else ()
            wanted = [j == 0 or every or (bool(some) and some[j]) for j in range(len(tokens))]
            seen[key] = [
                number((turn.prompt_ids, tokens[:j])) if read else -1
                for j, read in enumerate(wanted)
            ]
        return seen[key]

    turns = [turn for stream in streams for turn in stream]
    at = torch.full((len(turns), max(len(t.action.token_ids) for t in turns)), -1)
    beyond = torch.full((len(turns),), -1)
    for i, turn in enumerate(turns):
        found = columns(turn)
        at[i, : len(found)] = torch.tensor(found)
    last = torch.tensor([len(stream) for stream in streams]).cumsum(0) - 1
    ends = {int(i) for i, stream in zip(last, streams, strict=True) if stream}
    for i, turn in enumerate(turns):
        if not turn.terminated and (turn.truncated or i in ends):
            beyond[i] = number((turn.next_prompt_ids, ()))
    return Readings(list(index), at, beyond)


def lay_out(
    streams: Sequence[Sequence[Turn]],
    readings: Readings,
    value: Tensor,
    gamma: float,
    by_duration: bool,
) -> tuple[Trajectory, Tensor]:
    """Lay turns out in time.

    Args:
        streams: N streams of at most T turns.
        readings: where the critic read.
        value: [U] what it said there.
        gamma: discount after a turn.
        by_duration: raise it to the power of the turn's primitive steps.

    Returns:
        The trajectory [N, T, D], and [n] int64: each turn's place among the N·T.
    """
    n, t = len(streams), max(len(stream) for stream in streams)
    d = readings.at.shape[1]
    turns = [turn for stream in streams for turn in stream]
    place = torch.tensor(
        [s * t + i for s, stream in enumerate(streams) for i in range(len(stream))]
    )

    def column(values: Sequence[float] | Sequence[bool]) -> Tensor:  # one entry a turn -> [n]
        return torch.tensor(values)

    def in_time(tensor: Tensor, absent: float = 0) -> Tensor:  # [n, ...] -> [N, T, ...]
        laid = torch.full((n * t, *tensor.shape[1:]), absent, dtype=tensor.dtype)
        laid[place] = tensor
        return laid.reshape(n, t, *tensor.shape[1:])

    length = column([len(turn.action.token_ids) for turn in turns])
    token = torch.arange(d) < length[:, None]
    choice = torch.zeros_like(token)
    for i, turn in enumerate(turns):
        choice[i, : len(turn.action.choice)] = torch.tensor(turn.action.choice)
    reward = torch.zeros(len(turns), d)
    reward[torch.arange(len(turns)), length - 1] = column([turn.reward for turn in turns])
    discount = column([gamma ** (turn.duration if by_duration else 1) for turn in turns])
    terminated = column([turn.terminated for turn in turns])
    cut = terminated | (readings.beyond >= 0)
    nothing = torch.zeros(())
    trajectory = Trajectory(
        reward=in_time(reward),
        value=in_time(torch.where(readings.at >= 0, value[readings.at], nothing)),
        mask=in_time(token),
        choice=in_time(choice),
        discount=in_time(discount, 1),
        cut=in_time(cut),
        bootstrap=in_time(torch.where(readings.beyond >= 0, value[readings.beyond], nothing)),
        ended=in_time(terminated | column([turn.truncated for turn in turns])),
    )
    return trajectory, place
