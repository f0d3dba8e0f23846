"""Credit the slow way: loops over turns and tokens, and the advantage as the double sum.

It checks the fast code, so it shares nothing with it but the layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from trajectories import Trajectory

from poad.credit import Credit

ALL_METHODS = ("poad", "ntpo", "twosome", "glam", "turn_ppo", "archer_adrl", "reinforce")
CRITIC_METHODS = ALL_METHODS[:-1]
TURN_METHODS = ("twosome", "glam", "turn_ppo")
JUNK = (math.nan, math.inf, -math.inf, 1e30, 0.0)


@dataclass
class Slot:
    turn: int
    token: int
    last: bool


def textbook_gae(delta: list[float], decay: list[float]) -> list[float]:
    """A_i = Σ_{k ≥ i} (Π_{i ≤ m < k} decay_m)·δ_k, where decay is γ·λ, and 0 at a cut."""
    return [
        sum(math.prod(decay[i:k]) * delta[k] for k in range(i, len(delta)))
        for i in range(len(delta))
    ]


def slots_of(mask: list[list[bool]], choice: list[list[bool]], rule: str) -> list[Slot]:
    slots = []
    for t, (real, free) in enumerate(zip(mask, choice, strict=True)):
        tokens = [j for j, flag in enumerate(real) if flag]
        choices = [j for j, flag in enumerate(free) if flag]
        here = {"tokens": tokens, "choices": choices or tokens[:1], "turn": tokens[:1]}[rule]
        slots += [Slot(t, j, j == here[-1]) for j in here]
    return slots


def naive_credit(
    trajectory: Trajectory,
    method: str,
    gamma: float,
    lam: float,
    *,
    lam_token: float | None = None,
    gamma_token: float | None = None,
    slots: str | None = None,
) -> Credit:
    """Compute what `credit_of` must return, in float64."""
    fades = method in ("ntpo", "archer_adrl")
    if lam_token is None:
        lam_token = lam if fades else 1.0
    if gamma_token is None:
        gamma_token = gamma if fades else 1.0
    if slots is None:
        slots = "tokens" if method == "ntpo" else "choices"
    if method in TURN_METHODS:
        slots = "turn"
    if method == "reinforce":
        lam = lam_token = 1.0
    shape = trajectory.reward.shape
    advantage = torch.zeros(shape, dtype=torch.float64)
    target = torch.zeros(shape, dtype=torch.float64)
    mask = torch.zeros(shape, dtype=torch.bool)
    value_mask = torch.zeros(shape, dtype=torch.bool)
    for n in range(shape[0]):
        reward, value = trajectory.reward[n].tolist(), trajectory.value[n].tolist()
        real, free = trajectory.mask[n].tolist(), trajectory.choice[n].tolist()
        cut, ended = trajectory.cut[n].tolist(), trajectory.ended[n].tolist()
        stream = slots_of(real, free, slots)
        delta, decay, baseline = [], [], []
        for i, slot in enumerate(stream):
            t = slot.turn
            v = 0.0 if method == "reinforce" else value[t][slot.token]
            r, discount, trace = 0.0, gamma_token, lam_token
            if slot.last:
                r = sum(x for x, flag in zip(reward[t], real[t], strict=True) if flag)
                discount, trace = float(trajectory.discount[n, t]), lam
            if slot.last and cut[t]:
                ahead, trace = float(trajectory.bootstrap[n, t]), 0.0
            else:
                after = stream[i + 1]
                if method == "archer_adrl" and slot.last:
                    after = next(s for s in stream[i + 1 :] if s.last)
                ahead = value[after.turn][after.token]
            if method == "reinforce":
                ahead = 0.0
            delta.append(r + discount * ahead - v)
            decay.append(discount * trace)
            baseline.append(v)
        for slot, a, v in zip(stream, textbook_gae(delta, decay), baseline, strict=True):
            t, j = slot.turn, slot.token
            if method == "reinforce":
                end = next(k for k in range(t, shape[1]) if any(real[k]) and cut[k])
                if ended[end] and free[t][j]:
                    advantage[n, t, j], mask[n, t, j] = a, True
                continue
            target[n, t, j], value_mask[n, t, j] = a + v, True
            judged = [j] if free[t][j] else []
            if method in TURN_METHODS:
                judged = [k for k, flag in enumerate(free[t]) if flag]
            for k in judged:
                advantage[n, t, k], mask[n, t, k] = a, True
    return Credit(advantage, target, mask, value_mask)


def random_trajectory(
    seed: int,
    n: int = 3,
    t: int = 5,
    d: int = 4,
    *,
    junk: float = math.nan,
    dtype: torch.dtype = torch.float64,
) -> Trajectory:
    """Ragged, gappy streams: absent turns, turns without choice, cuts; junk wherever unreal."""
    rng = torch.Generator().manual_seed(seed)

    def floats(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)

    def flags(*size: int, share: float) -> torch.Tensor:
        return torch.rand(size, generator=rng) < share

    mask = flags(n, t, d, share=0.7) & flags(n, t, 1, share=0.8)
    choice = mask & flags(n, t, d, share=0.6) & flags(n, t, 1, share=0.8)
    present = mask.any(-1)
    cut = flags(n, t, share=0.3)
    for row, here in zip(cut, present, strict=True):
        if here.any():
            row[here.nonzero()[-1]] = True
    return Trajectory(
        reward=floats(n, t, d).masked_fill(~mask, junk),
        value=floats(n, t, d).masked_fill(~mask, junk),
        mask=mask,
        choice=choice,
        discount=(1 - 0.5 * torch.rand((n, t), generator=rng, dtype=torch.float64))
        .to(dtype)
        .masked_fill(~present, junk),
        cut=cut,
        bootstrap=floats(n, t).masked_fill(~(cut & present), junk),
        ended=cut & flags(n, t, share=0.6),
    )


def assert_same_credit(found: Credit, expected: Credit, tolerance: float = 1e-12) -> None:
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.value_mask, expected.value_mask)
    for name in ("advantage", "target"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance
        )
