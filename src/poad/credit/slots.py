"""Streams: tokens in time order, the one layout in which credit is computed.

Positions that hold no token of an action (padding, observations, turns that did not happen) are
never looked at, whatever they hold: they are replaced, not multiplied by zero, so not even a NaN
gets through.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Stream:
    """N rows of L positions in time order; every field is [N, L].

    The facts about a turn (`discount`, `cut`, `bootstrap`, `ended`) stand at each of its tokens.
    Outside `mask` only `turn` must be sane, everything else may hold anything.
    """

    reward: Tensor
    """Float. The sum over a turn's tokens is its reward."""
    value: Tensor
    """Float. The critic read before the token."""
    mask: Tensor
    """Bool. Tokens of an action."""
    choice: Tensor
    """Bool, within `mask`. Tokens that had an alternative."""
    turn: Tensor
    """Int. Counts the turns of a row up from 0; lies in [0, L) everywhere."""
    discount: Tensor
    """Float. γ_t, the discount after the turn."""
    cut: Tensor
    """Bool. The turn is the last of an episode or of the row."""
    bootstrap: Tensor
    """Float. The value beyond a cut."""
    ended: Tensor
    """Bool. At a cut: the episode is over."""

    def in_working_precision(self) -> Stream:
        """The same stream in one dtype: that of the values, but no less than float32."""
        dtype = torch.promote_types(self.value.dtype, torch.float32)
        return replace(
            self,
            reward=self.reward.to(dtype),
            value=self.value.to(dtype),
            discount=self.discount.to(dtype),
            bootstrap=self.bootstrap.to(dtype),
        )

    def without_critic(self) -> Stream:
        """The same stream with every value 0, also those beyond a cut."""
        zero = torch.zeros_like(self.value)
        return replace(self, value=zero, bootstrap=zero)

    def roots(self) -> Tensor:
        """[N, L] bool. Each turn's first token, where the critic reads V(o_t)."""
        return last_of_turn(self.mask.flip(-1), self.turn.flip(-1)).flip(-1)

    def has_choice(self) -> Tensor:
        """[N, L] bool. Positions of turns that hold a real choice."""
        return turn_sum(self.choice.long(), self.turn) > 0

    def finished(self) -> Tensor:
        """[N, L] bool. Tokens of episodes whose end lies in the stream."""
        ahead = pick(self.ended, following(self.mask & self.cut), fill=False)
        return self.mask & torch.where(self.cut, self.ended, ahead)


def token_stream(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    turn_ids: Tensor,
    *,
    choice: Tensor,
    discount: Tensor,
    bootstrap: Tensor,
    ended: Tensor,
    episode_ids: Tensor,
) -> Stream:
    """Lay out rows of conversation, [B, L], as a stream; see `poad.credit.token_credit`.

    All arguments are [B, L], except that `bootstrap` and `ended` may be [B].
    """
    if reward.dim() != 2:
        raise ValueError(f"reward has shape {tuple(reward.shape)}; give [B, L]: rows of tokens.")
    rows, shape = reward.shape[:1], reward.shape
    expect("reward", reward, shape, "float")
    expect("value", value, shape, "float")
    expect("mask", mask, shape, "bool")
    expect("turn_ids", turn_ids, shape, "int")
    expect("choice", choice, shape, "bool")
    expect("discount", discount, shape, "float")
    expect("bootstrap", bootstrap, rows if bootstrap.dim() == 1 else shape, "float")
    expect("ended", ended, rows if ended.dim() == 1 else shape, "bool")
    expect("episode_ids", episode_ids, shape, "int")
    expect_within("choice", choice, "mask", mask)

    ahead = following(mask)
    more = mask & (ahead < shape[1])
    next_turn, next_episode = pick(turn_ids, ahead, fill=0), pick(episode_ids, ahead, fill=0)
    same_episode = more & (next_episode == episode_ids)
    expect_rising("episode_ids", more & (next_episode < episode_ids))
    expect_rising("turn_ids", same_episode & (next_turn < turn_ids))

    # A turn ends where the next action token is another's. Its number is the count of earlier ends.
    ends = mask & ~(same_episode & (next_turn == turn_ids))
    turn = ends.cumsum(-1) - ends.long()

    def at_end(facts: Tensor) -> Tensor:
        """What the turn's last token says, at every token of the turn."""
        facts = facts[:, None].expand(shape) if facts.dim() == 1 else facts
        return turn_sum(facts.masked_fill(~ends, 0), turn)

    return Stream(
        reward=reward,
        value=value,
        mask=mask,
        choice=choice,
        turn=turn,
        discount=at_end(discount),
        cut=at_end((~same_episode).long()) > 0,
        bootstrap=at_end(bootstrap),
        ended=at_end(ended.long()) > 0,
    )


def following(flags: Tensor) -> Tensor:
    """The index of the first True strictly after each position of [N, L]; L where there is none."""
    length = flags.shape[-1]
    index = torch.arange(length, device=flags.device).expand(flags.shape)
    index = pad(index.masked_fill(~flags, length), (0, 1), value=length)[:, 1:]
    return index.flip(-1).cummin(-1).values.flip(-1)


def pick(values: Tensor, index: Tensor, fill: float) -> Tensor:
    """The values [N, L] at an index from `following`, and `fill` where it found none."""
    return pad(values, (0, 1), value=fill).gather(-1, index)


def last_of_turn(flags: Tensor, turn: Tensor) -> Tensor:
    """The last True of each turn, [N, L] bool."""
    return flags & (pick(turn, following(flags), fill=-1) != turn)


def turn_sum(values: Tensor, turn: Tensor) -> Tensor:
    """The sum of the values [N, L] over a position's turn, at every position of the turn."""
    return torch.zeros_like(values).scatter_add(-1, turn, values).gather(-1, turn)


def expect(
    name: str, tensor: Tensor, shape: torch.Size, kind: Literal["bool", "float", "int"]
) -> None:
    """Refuse a tensor of another shape (ValueError) or kind of dtype (TypeError) than expected."""
    if tensor.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}, to match the reward."
        )
    if tensor.dtype == torch.bool:
        found = "bool"
    else:
        found = "float" if tensor.is_floating_point() else "int"
    if found != kind:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {kind}.")


def expect_within(name: str, flags: Tensor, outer_name: str, outer: Tensor) -> None:
    """Refuse flags set where the outer flags are not (ValueError naming the first place)."""
    stray = (flags & ~outer).nonzero()
    if len(stray):
        raise ValueError(
            f"{name} is True at {tuple(stray[0].tolist())}, where {outer_name} is False."
        )


def expect_rising(name: str, falls: Tensor) -> None:
    """Refuse ids that fall from one action token to the next (ValueError naming the first)."""
    places = falls.nonzero()
    if len(places):
        raise ValueError(
            f"{name} decrease after the action token at {tuple(places[0].tolist())}; "
            "tokens must be in time order (turn_ids may start over only with a new episode id)."
        )
