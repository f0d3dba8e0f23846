"""Group methods: credit from how an episode did beside others from the same beginning.

There is no critic. The return of a turn is the discounted sum of the rewards from it on,
G = r + γₜ·G′, and x̂ = (x − mean) / (standard deviation + ε) compares x with a group. Then

    A of every turn of an episode = Ĝ of its first turn among the episodes of the group      (GRPO)
    A of a turn = that + Ĝ of the turn among the group's turns behind the same observation  (GiGPO)

Sources: GRPO is eq. 3 of arXiv 2402.03300, with outcome supervision; GiGPO is eqs. 4 to 8 of arXiv
2505.10978, with ω = 1. A group of one is compared with nothing and has the advantage 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from poad.credit.method import Method
from poad.credit.methods import find_method
from poad.credit.recursion import Credit, recursion
from poad.credit.slots import TokenStream, expect_ids, pick_first, sequences, turn_sum

_EPSILON = 1e-6


@torch.no_grad()
def group_credit(
    reward: Tensor,
    mask: Tensor,
    turn_ids: Tensor,
    group_ids: Tensor,
    state_ids: Tensor | None = None,
    *,
    gamma: float,
    method: str | Method = "grpo",
    choice: Tensor | None = None,
    discount: Tensor | None = None,
    ended: Tensor | None = None,
    episode_ids: Tensor | None = None,
) -> Credit:
    """Compute the credit of flat token tensors by comparing episodes, and turns, within groups.

    The arguments that `poad.token_credit` has as well are the same here.

    Args:
        reward: [B, L] float.
        mask: [B, L] bool.
        turn_ids: [B, L] int.
        group_ids: [B, L] int: the group of a token's episode. Its episodes began alike.
        state_ids: [B, L] int: what a token's turn began with, the same for equal observations. None
            if only episodes are compared.
        gamma: discount between actions.
        method: "grpo", "gigpo", or a `Method` that compares.
        choice: [B, L] bool.
        discount: [B, L] float.
        ended: [B] or [B, L] bool. Episodes that go on take no part.
        episode_ids: [B, L] int.

    Raises:
        ValueError, TypeError: impossible shapes or ids; a wrong kind of dtype; a method that does
            not compare.
    """
    method = find_method(method)
    if method.compared == "none":
        raise ValueError(f"{method.name} judges each episode by itself; call poad.token_credit.")
    if state_ids is None and method.compared == "steps":
        raise ValueError(f"{method.name} compares turns behind equal prompts; give state_ids.")
    group, state = expect_ids(reward.shape, group_ids=group_ids, state_ids=state_ids)
    value = torch.zeros_like(reward)
    stream = TokenStream.from_rows(
        reward, value, mask, turn_ids, gamma, choice, discount, None, ended, episode_ids
    )
    return _compared(stream, group, state, steps=method.compared == "steps")


def _compared(stream: TokenStream, group: Tensor, state: Tensor, *, steps: bool) -> Credit:
    dtype, stream = stream.value.dtype, stream.in_working_precision()
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
    if steps:
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
