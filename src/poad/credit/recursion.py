"""Credit: how much each decision was worth, from one recursion over decision slots.

A *turn* is one action: some tokens, one reward, one discount γ_t after it. A *slot* is a place
where a decision was made. Over the slots of a stream in time order, with A′ the next slot's,

    δ = r + γ′·v′ − v          A = δ + γ′·λ′·A′          target = A + v

Methods differ only in which tokens are slots and in the five sequences r, v, v′, γ′ and λ′; the
table is in `poad.credit.methods`. Everything here is a pure function, and every mask is True
where the data is real.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poad.credit.slots import Stream, expect, expect_within, following, last_of_turn, pick, turn_sum

Slots = Literal["choices", "tokens"]
"""Which tokens of an action are decisions: its real choices, or all of its tokens."""


@dataclass(frozen=True)
class Trajectory:
    """What N streams did in T turns of at most D tokens, and what the critic read there.

    The turns of a stream are in time order. A turn whose `mask` is all False did not happen
    (streams may be ragged) and is passed over. What lies outside `mask` is never looked at. Raises
    ValueError for shapes that disagree, a choice outside the mask, an ending without a cut, or a
    stream whose last turn is not cut; TypeError for a wrong kind of dtype.
    """

    reward: Tensor
    """[N, T, D] float. The sum over a turn's tokens is its reward, wherever in the turn it sits."""
    value: Tensor
    """[N, T, D] float. The critic read *before* token j, so a turn's first is V(o_t), its root."""
    mask: Tensor
    """[N, T, D] bool. Real tokens."""
    choice: Tensor
    """[N, T, D] bool. Real tokens that had an alternative; the others were forced."""
    discount: Tensor
    """[N, T] float. γ_t, the discount after the turn: γ, or γ to the power of its duration."""
    cut: Tensor
    """[N, T] bool. The turn is the last of an episode or of the rollout."""
    bootstrap: Tensor
    """[N, T] float. At a cut, the value of the observation beyond it; 0 if terminated."""
    ended: Tensor
    """[N, T] bool. The episode is over, terminated or truncated; a rollout's end is no such end."""

    def __post_init__(self) -> None:
        if self.reward.dim() != 3:
            raise ValueError(
                f"Trajectory.reward has shape {tuple(self.reward.shape)}; give [N, T, D]: "
                "streams, turns, tokens of the longest action."
            )
        tokens, turns = self.reward.shape, self.reward.shape[:2]
        expect("Trajectory.reward", self.reward, tokens, "float")
        expect("Trajectory.value", self.value, tokens, "float")
        expect("Trajectory.mask", self.mask, tokens, "bool")
        expect("Trajectory.choice", self.choice, tokens, "bool")
        expect("Trajectory.discount", self.discount, turns, "float")
        expect("Trajectory.cut", self.cut, turns, "bool")
        expect("Trajectory.bootstrap", self.bootstrap, turns, "float")
        expect("Trajectory.ended", self.ended, turns, "bool")
        present = self.mask.any(-1)
        last = present & (following(present) == turns[1])
        expect_within("Trajectory.choice", self.choice, "Trajectory.mask", self.mask)
        expect_within("Trajectory.ended", self.ended & present, "Trajectory.cut", self.cut)
        expect_within("The last turn of a stream", last, "Trajectory.cut", self.cut)

    def stream(self) -> Stream:
        """The turns laid end to end: L = T·D positions."""
        n, t, d = self.reward.shape

        def each_token(facts: Tensor) -> Tensor:
            return facts[..., None].expand(n, t, d).reshape(n, t * d)

        return Stream(
            reward=self.reward.reshape(n, t * d),
            value=self.value.reshape(n, t * d),
            mask=self.mask.reshape(n, t * d),
            choice=self.choice.reshape(n, t * d),
            turn=each_token(torch.arange(t, device=self.reward.device).expand(n, t)),
            discount=each_token(self.discount),
            cut=each_token(self.cut),
            bootstrap=each_token(self.bootstrap),
            ended=each_token(self.ended),
        )


@dataclass(frozen=True)
class Credit:
    """What the learner needs: an advantage per decision, a target per reading of the critic.

    All four have the shape of the tokens they judge, [N, T, D] or [B, L]. Advantage and target have
    the dtype of the values, and are exactly 0 outside `mask` and outside `value_mask`.
    """

    advantage: Tensor
    """Float. How much better the decision turned out than the critic expected."""
    target: Tensor
    """Float. What the critic should have read."""
    mask: Tensor
    """Bool. Real choices: they take part in policy loss, entropy and normalization."""
    value_mask: Tensor
    """Bool. Where the critic is trained."""

    def reshape(self, shape: torch.Size) -> Credit:
        """The same credit, laid out in another shape."""
        return Credit(
            advantage=self.advantage.reshape(shape),
            target=self.target.reshape(shape),
            mask=self.mask.reshape(shape),
            value_mask=self.value_mask.reshape(shape),
        )


@torch.no_grad()
def recursion(
    reward: Tensor, value: Tensor, next_value: Tensor, discount: Tensor, trace: Tensor
) -> tuple[Tensor, Tensor]:
    """Judge every slot by what followed it; all methods come down to this.

        δₜ = rₜ + γₜ·v′ₜ − vₜ
        Aₜ = δₜ + γₜ·λₜ·Aₜ₊₁          (nothing follows the last slot: its A is δ)
        targetₜ = Aₜ + vₜ

    All arguments are [..., L] of one float dtype, slots in time order along the last axis; so are
    the advantage and the target it returns. A trace of 0 keeps what follows out of what came
    before; a position with r = v = v′ = 0 and γ = λ = 1 is transparent. With constant γ and λ this
    is generalized advantage estimation (arXiv 1506.02438, eq. 16). No gradient flows through it.

    Steps Aₜ = δₜ + cₜ·Aₜ₊₁ compose: two of them make one again, with δₜ + cₜ·δₜ₊₁ and cₜ·cₜ₊₁. So
    every pass over the whole tensor doubles how far each position has looked ahead, and log₂ L
    passes replace the loop over time. They only add and multiply: as stable as the loop.
    """
    advantage = reward + discount * next_value - value
    carry = discount * trace
    length, reach = advantage.shape[-1], 1
    while reach < length:
        advantage[..., :-reach].add_(carry[..., : length - reach] * advantage[..., reach:])
        carry = carry[..., :-reach] * carry[..., reach:]
        reach *= 2
    return advantage, advantage + value


def token_slots(stream: Stream, slots: Slots) -> Tensor:
    """Which tokens are decisions, [N, L] bool.

    Under "choices" these are the real choices, and a turn without any keeps its root, so that its
    reward, its discount and its lesson for the critic are not lost. Under "tokens", all tokens.
    """
    if slots == "tokens":
        return stream.mask
    return stream.choice | (stream.roots() & ~stream.has_choice())


def sequences(
    stream: Stream,
    slot: Tensor,
    *,
    gamma_token: float,
    lam: float,
    lam_token: float,
    next_value: Literal["first", "last"] = "first",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The recursion's five sequences for the given slots: r, v, v′, γ′, λ′, each [N, L].

    Inside a turn γ′ = `gamma_token` and λ′ = `lam_token`. A turn's last slot holds the turn's whole
    reward; after it γ′ = γ_t and λ′ = `lam`. v′ is the next slot's value: after a turn, that of the
    next turn's "first" or "last" slot; at a cut, the bootstrap, and there λ′ = 0. Positions that
    are no slots become transparent.
    """
    last = last_of_turn(slot, stream.turn)
    cut = last & stream.cut
    value = stream.value.masked_fill(~slot, 0)
    ahead = pick(value, following(slot), fill=0)
    if next_value == "last":
        ahead = torch.where(last, pick(value, following(last), fill=0), ahead)
    reward = turn_sum(stream.reward.masked_fill(~stream.mask, 0), stream.turn)
    inside = torch.full_like(value, gamma_token)
    trace = torch.full_like(value, lam_token).masked_fill(last, lam).masked_fill(cut, 0)
    return (
        reward.masked_fill(~last, 0),
        value,
        torch.where(cut, stream.bootstrap, ahead).masked_fill(~slot, 0),
        torch.where(last, stream.discount, inside).masked_fill(~slot, 1),
        trace.masked_fill(~slot, 1),
    )
