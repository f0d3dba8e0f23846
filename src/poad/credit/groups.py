"""Group methods: credit from how an episode did beside others from the same beginning.

There is no critic. The return of a turn is the discounted sum of the rewards from it on,
G = r + γₜ·G′, and x̂ = (x − mean) / (standard deviation + ε) compares x with a group. Then

    A of every turn of an episode = Ĝ of its first turn among the episodes of the group      (GRPO)
    A of a turn = that + Ĝ of the turn among the group's turns behind the same observation  (GiGPO)

Sources: GRPO is eq. 3 of arXiv 2402.03300, with outcome supervision; GiGPO is eqs. 4 to 8 of arXiv
2505.10978, with ω = 1. A group of one is compared with nothing and has the advantage 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from poad.credit.rates import Rates
from poad.credit.recursion import Credit, recursion
from poad.credit.slots import TokenStream, pick_first, sequences, turn_sum

Compared = Literal["none", "episodes", "steps"]
"""What is compared within a group: nothing, whole episodes, or also the turns of one state."""
_EPSILON = 1e-6


@torch.no_grad()
def group_credit(
    stream: TokenStream, rates: Rates, compared: Compared, group: Tensor, state: Tensor
) -> Credit:
    """Compute the credit of every choice by comparison within groups, [N, L].

    Args:
        stream: the tokens. Episodes whose end is not in it take no part.
        rates: of which only γ counts.
        compared: "episodes", or "steps" for the turns as well.
        group: [N, L] int: the group of a token's episode.
        state: [N, L] int: what a token's turn began with; the same for equal observations.
    """
    dtype, stream = stream.value.dtype, stream.in_working_precision().without_critic()
    root = stream.roots()
    five = sequences(stream, root, gamma_token=1.0, lam=1.0, lam_token=1.0)
    returns, _ = recursion(*five)  # [N, L], of a turn at its root
    finished = stream.finished()
    seen = root & finished
    first = seen & pick_first(stream.cut, root)  # the roots of episodes
    # Flat, in the order of rows and time: n turns, of which some begin an episode.
    episode = first[seen].cumsum(0) - 1  # [n] the number of the turn's episode
    whole = _compare(returns[first], group[first])  # [episodes]
    advantage = whole[episode]  # [n]
    if compared == "steps":
        pairs = torch.stack([group[seen], state[seen]], dim=1)  # [n, 2]
        _, together = pairs.unique(dim=0, return_inverse=True)
        advantage = advantage + _compare(returns[seen], together)
    spread = torch.zeros_like(returns).masked_scatter(seen, advantage)
    mask = stream.choice & finished
    return Credit(
        advantage=turn_sum(spread, stream.turn).masked_fill(~mask, 0).to(dtype),
        target=torch.zeros_like(returns, dtype=dtype),
        mask=mask,
        value_mask=torch.zeros_like(mask),
    )


def _compare(value: Tensor, group: Tensor) -> Tensor:
    """Standardize values [n] within their groups [n]; 0 in groups of one."""
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    zero = value.new_zeros(len(count))
    mean = zero.index_add(0, index, value) / count
    away = value - mean[index]
    spread = zero.index_add(0, index, away.square()) / (count - 1).clamp(min=1)
    return torch.where(count[index] > 1, away / (spread[index].sqrt() + _EPSILON), 0.0)
