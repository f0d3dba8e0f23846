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
"""Methods that judge every episode by itself."""
GROUP_METHODS = ("grpo", "gigpo")
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
    lam_actor: float | list[float] | None = None,
    trace: str = "token",
    beta: float | list[float] = 1.0,
    bits: torch.Tensor | None = None,
) -> Credit:
    """Compute what `credit_of` must return, in float64.

    Targets come from one walk over the slots. Advantages come from another one, with values shrunk
    to the root's and with a trace of their own. `lam_actor` and `beta` may be lists, with a number
    for each row.
    """
    fades = method in ("ntpo", "archer_adrl")
    if lam_token is None:
        lam_token = lam if fades else 1.0
    if gamma_token is None:
        gamma_token = gamma if fades else 1.0
    if slots is None:
        slots = "tokens" if method == "ntpo" else "choices"
    if method in TURN_METHODS:
        slots = "turn"
    if lam_actor is None:
        lam_actor = lam_token
    blind = method == "reinforce"
    shape = trajectory.reward.shape
    advantage = torch.zeros(shape, dtype=torch.float64)
    target = torch.zeros(shape, dtype=torch.float64)
    mask = torch.zeros(shape, dtype=torch.bool)
    value_mask = torch.zeros(shape, dtype=torch.bool)
    for n in range(shape[0]):
        real, free = trajectory.mask[n].tolist(), trajectory.choice[n].tolist()
        cut, ended = trajectory.cut[n].tolist(), trajectory.ended[n].tolist()
        stream = slots_of(real, free, slots)
        value = [[0.0] * shape[2]] * shape[1] if blind else trajectory.value[n].tolist()
        share = beta[n] if isinstance(beta, list) else beta
        inside = lam_actor[n] if isinstance(lam_actor, list) else lam_actor
        count = None if bits is None or trace == "token" else bits[n].tolist()
        if blind:
            lam = lam_token = inside = 1.0
        walk = Walk(trajectory, n, stream, method, gamma_token, lam)
        expected = walk(value, lam_token)
        judged = walk(
            [shrunk(v, r, share) for v, r in zip(value, real, strict=True)], inside, count
        )
        for slot, a, b in zip(stream, judged, expected, strict=True):
            t, j = slot.turn, slot.token
            end = next(k for k in range(t, shape[1]) if any(real[k]) and cut[k])
            if blind and not ended[end]:
                continue
            if not blind:
                target[n, t, j], value_mask[n, t, j] = b + value[t][j], True
            chosen = [j] if free[t][j] else []
            if method in TURN_METHODS:
                chosen = [k for k, flag in enumerate(free[t]) if flag]
            for k in chosen:
                advantage[n, t, k], mask[n, t, k] = a, True
    return Credit(advantage, target, mask, value_mask)


def shrunk(value: list[float], real: list[bool], beta: float) -> list[float]:
    """V(o) + β·(V(o, w_<j) − V(o)) at every token of a turn."""
    root = next((v for v, flag in zip(value, real, strict=True) if flag), math.nan)
    return [root + beta * (v - root) for v in value]


@dataclass
class Walk:
    """The advantage of every slot of a stream, given values and a trace inside actions."""

    trajectory: Trajectory
    n: int
    stream: list[Slot]
    method: str
    gamma_token: float
    lam: float

    def __call__(
        self, value: list[list[float]], inside: float, bits: list[list[float]] | None = None
    ) -> list[float]:
        """With bits, the trace to a slot is `inside` to the power of that slot's bits."""
        reward, real = self.trajectory.reward[self.n].tolist(), self.trajectory.mask[self.n]
        delta, decay = [], []
        for i, slot in enumerate(self.stream):
            t, after = slot.turn, self.stream[i + 1] if i + 1 < len(self.stream) else None
            if not slot.last:
                assert after is not None
                ahead = value[after.turn][after.token]
                power = 1.0 if bits is None else bits[after.turn][after.token]
                delta.append(self.gamma_token * ahead - value[t][slot.token])
                decay.append(self.gamma_token * inside**power)
                continue
            r = sum(x for x, flag in zip(reward[t], real[t].tolist(), strict=True) if flag)
            discount, lam = float(self.trajectory.discount[self.n, t]), self.lam
            if self.trajectory.cut[self.n, t]:
                blind = self.method == "reinforce"
                ahead, lam = 0.0 if blind else float(self.trajectory.bootstrap[self.n, t]), 0.0
            else:
                if self.method == "archer_adrl":
                    after = next(s for s in self.stream[i + 1 :] if s.last)
                assert after is not None
                ahead = value[after.turn][after.token]
            delta.append(r + discount * ahead - value[t][slot.token])
            decay.append(discount * lam)
        return textbook_gae(delta, decay)


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


def random_bits(trajectory: Trajectory, seed: int, junk: float = math.nan) -> torch.Tensor:
    """Entropies [N, T, D] between 0 and 3 bits, exactly 0 in places; junk wherever unreal."""
    rng = torch.Generator().manual_seed(seed + 1)
    bits = 4 * torch.rand(trajectory.mask.shape, generator=rng, dtype=torch.float64) - 1
    return bits.clamp(min=0).masked_fill(~trajectory.mask, junk)


def assert_same_credit(found: Credit, expected: Credit, tolerance: float = 1e-12) -> None:
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.value_mask, expected.value_mask)
    for name in ("advantage", "target"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance
        )
