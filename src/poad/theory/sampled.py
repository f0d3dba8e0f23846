"""Credit for sampled episodes, compared with exact values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poad.credit import Method, Slots, token_credit
from poad.theory.exact import TokenValues
from poad.theory.problems import Episodes, Floats, Ints, LanguageMDP

MIN_EPISODES = 200
"""A label is tested if it occurs in so many episodes. Means of fewer are not normal."""


def decision_bits(mdp: LanguageMDP, policy: Floats) -> Floats:
    """[M] the entropy of the decision that each token is the outcome of, in bits; 0 at roots."""
    tree = mdp.tree
    token = tree.parent >= 0
    each = np.where(token, -np.exp(policy) * policy / math.log(2), 0.0)
    entropy = np.bincount(tree.parent[token], each[token], minlength=len(each))  # by parent
    return np.where(token, np.maximum(entropy[tree.parent], 0), 0.0)


def token_stream(
    mdp: LanguageMDP, played: Episodes, values: TokenValues, bits: Floats | None = None
) -> dict[str, Tensor]:
    """Lay out N sampled episodes as the tensor arguments of `poad.credit.token_credit`.

    Exact values stand in place of a critic's. Of the L = T·D positions, turn t has t·D to
    t·D + D − 1. Those after the end of its action are masked.
    """
    tree, happened = mdp.tree, played.action >= 0
    n, t = happened.shape
    path = np.where(happened[..., None], tree.path[played.action], -1)  # [N, T, D] nodes
    flat = path.reshape(n, -1)  # [N, L]
    mask = flat >= 0
    reward = np.zeros(path.shape)
    reward[..., 0] = played.reward  # token_credit sums over a turn's tokens
    # The value before a token is that of the node above it. Masked positions have the node −1,
    # which is a valid index, so they must be overwritten.
    value = np.where(mask, values.v[tree.parent[flat]], 0.0)
    last = played.successor[np.arange(n), happened.sum(1) - 1]  # [N] the state after the last turn
    return {
        "reward": torch.from_numpy(reward.reshape(n, -1)),
        "value": torch.from_numpy(value),
        "mask": torch.from_numpy(mask),
        "turn_ids": torch.arange(t).repeat_interleave(path.shape[2]).expand(n, -1),
        "choice": torch.from_numpy(mask & tree.is_choice[flat]),
        "bits": torch.from_numpy(np.zeros(flat.shape) if bits is None else bits[flat]),
        # Episodes that were cut go on from their last state. State S is the end, with value 0.
        "bootstrap": torch.from_numpy(np.append(values.v[: mdp.states], 0.0)[last]),
        "ended": torch.from_numpy(last == mdp.states),
    }


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of advantages and their number, per episode and label; both [N, G]."""

    total: Floats
    count: Floats

    @classmethod
    def of(cls, labels: Ints, advantage: Floats, mask: NDArray[np.bool_], groups: int) -> Sums:
        """Add up advantages by labels in [0, G); all three arrays are [N, T, D]."""
        n = len(labels)
        # One bin per episode and label: bin = episode·G + label. [N, T, D] -> [N·G] -> [N, G]
        bins = (labels + groups * np.arange(n)[:, None, None])[mask]
        count = np.bincount(bins, minlength=n * groups)
        total = np.bincount(bins, advantage[mask], minlength=n * groups)
        return cls(total.reshape(n, groups).astype(float), count.reshape(n, groups).astype(float))

    def standard_errors(self, truth: Floats) -> Floats:
        """Deviation of each label's mean from the truth [G], in standard errors.

        Labels that occur in fewer than `MIN_EPISODES` episodes are left out. Advantages within an
        episode depend on each other, so the standard error is that of a ratio of sums over
        independent episodes.
        """
        often = (self.count > 0).sum(0) >= MIN_EPISODES
        total, count = self.total[:, often], self.count[:, often]
        mean = total.sum(0) / count.sum(0)
        spread = np.sqrt(((total - mean * count) ** 2).sum(0)) / count.sum(0)
        # Some credit does not vary at all (λ = 0 inside an action). It must then be exact.
        return (mean - truth[often]) / np.maximum(spread, 1e-12)

    def rms_errors(self, truth: Floats, sizes: Sequence[int]) -> list[float]:
        """Root mean squared error of the means, for estimates from each number of episodes.

        The `sizes` must divide N. Only labels that occur about ten times among the episodes of the
        first size count.
        """
        often = self.count.mean(0) * sizes[0] >= 10
        rms: list[float] = []
        for size in sizes:
            # [N, often] -> [estimates, size, often] -> [estimates, often]
            shape = len(self.total) // size, size, int(often.sum())
            total = self.total[:, often].reshape(shape).sum(1)
            count = self.count[:, often].reshape(shape).sum(1)
            found = count > 0
            error = total[found] / count[found] - np.broadcast_to(truth[often], found.shape)[found]
            rms.append(float(np.sqrt((error**2).mean())) if found.any() else math.nan)
        return rms


@dataclass(frozen=True)
class CreditEstimator:
    """A credit method with its settings; they are explained at `poad.credit.token_credit`."""

    method: Method
    lam: float = 1.0
    lam_token: float | None = None
    """None: the same as `lam`."""
    gamma_token: float | None = None
    slots: Slots | None = None
    lam_actor: float | None = None
    trace: Literal["token", "bit"] = "token"
    bits: Floats | None = None
    """[M] for the trace "bit"; see `decision_bits`."""
    by_action: bool = False
    """Label advantages by the whole action, once per turn, instead of by each token's node."""

    def sums(self, mdp: LanguageMDP, played: Episodes, values: TokenValues, groups: int) -> Sums:
        """Add up the advantages of sampled episodes by label."""
        total, count = np.zeros((2, len(played.action), groups))
        turns = (played.action >= 0).sum(1)
        # Episodes of similar length are computed together, so that little is padded.
        for rows in np.array_split(np.argsort(turns), 16):
            part = played.select(rows, turns[rows].max())
            tensors: dict[str, Any] = {**token_stream(mdp, part, values, self.bits)}
            credit = token_credit(
                **tensors,
                gamma=mdp.gamma,
                lam=self.lam,
                method=self.method,
                lam_token=self.lam if self.lam_token is None else self.lam_token,
                gamma_token=self.gamma_token,
                slots=self.slots,
                lam_actor=self.lam_actor,
                trace=self.trace,
            )
            labels = mdp.tree.path[part.action]  # [N, T, D]
            advantage = credit.advantage.numpy().reshape(labels.shape)
            mask = credit.mask.numpy().reshape(labels.shape)
            if self.by_action:
                # Every choice of a turn has the turn's advantage. Count the first of them only.
                mask = mask & (mask.cumsum(-1) == 1)
                labels = np.broadcast_to(part.action[..., None], labels.shape)
            found = Sums.of(labels, advantage, mask, groups)
            total[rows], count[rows] = found.total, found.count
        return Sums(total, count)
