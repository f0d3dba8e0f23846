"""Turns laid out as [N, T, D], the shape in which laws of credit are easiest to state.

`credit_of` lays such a trajectory out as the flat token tensors that `poad.token_credit` takes, and
puts the credit back into the trajectory's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poad.credit import Credit, Method, token_credit


@dataclass(frozen=True)
class Trajectory:
    """What N streams did in T turns of at most D tokens; a turn without a token did not happen."""

    reward: Tensor
    """[N, T, D] float."""
    value: Tensor
    """[N, T, D] float."""
    mask: Tensor
    """[N, T, D] bool."""
    choice: Tensor
    """[N, T, D] bool."""
    discount: Tensor
    """[N, T] float."""
    cut: Tensor
    """[N, T] bool. The turn is the last of an episode or of the rollout."""
    bootstrap: Tensor
    """[N, T] float."""
    ended: Tensor
    """[N, T] bool."""


def token_tensors(trajectory: Trajectory) -> dict[str, Tensor]:
    """The arguments of `token_credit`, [N, T·D]: turns end to end, as they lie in memory."""
    n, t, d = trajectory.reward.shape

    def each_token(facts: Tensor) -> Tensor:  # [N, T] -> [N, T·D]
        return facts[..., None].expand(n, t, d).reshape(n, t * d)

    cut = (trajectory.cut & trajectory.mask.any(-1)).long()
    return {
        "reward": trajectory.reward.reshape(n, t * d),
        "value": trajectory.value.reshape(n, t * d),
        "mask": trajectory.mask.reshape(n, t * d),
        "choice": trajectory.choice.reshape(n, t * d),
        "turn_ids": each_token(torch.arange(t).expand(n, t)),
        "episode_ids": each_token(cut.cumsum(-1) - cut),
        "discount": each_token(trajectory.discount),
        "bootstrap": each_token(trajectory.bootstrap),
        "ended": each_token(trajectory.ended),
    }


def credit_of(
    method: str | Method, trajectory: Trajectory, gamma: float, lam: float, **options: Any
) -> Credit:
    """The credit of a trajectory, [N, T, D]; so may be `bits`, if they are given."""
    tensors = token_tensors(trajectory)
    if options.get("bits") is not None:
        options["bits"] = options["bits"].reshape(tensors["reward"].shape)
    credit = token_credit(**tensors, gamma=gamma, lam=lam, method=method, **options)
    shape = trajectory.reward.shape
    return Credit(**{name: values.reshape(shape) for name, values in vars(credit).items()})
