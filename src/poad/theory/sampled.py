"""Credit for sampled episodes, set against exact values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poad.credit import Method, Trajectory
from poad.theory.exact import TokenValues
from poad.theory.problems import Episodes, Floats, Ints, LanguageMDP

SEEN = 200
"""In how many episodes a label must occur: means of a few are not normal."""


def trajectory_of(mdp: LanguageMDP, played: Episodes, values: TokenValues) -> Trajectory:
    """Sampled episodes with exact values for a critic; where one was cut, it bootstraps."""
    tree, happened = mdp.tree, played.action >= 0
    path = np.where(happened[..., None], tree.path[played.action], -1)
    mask = path >= 0
    reward = np.zeros(path.shape)
    reward[..., 0] = played.reward
    ended = played.successor == mdp.states
    cut = ended | (happened & (np.arange(path.shape[1]) == path.shape[1] - 1))
    beyond = np.append(values.v[: mdp.states], 0.0)[played.successor]
    return Trajectory(
        reward=torch.from_numpy(reward),
        value=torch.from_numpy(np.where(mask, values.v[tree.parent[path]], 0.0)),
        mask=torch.from_numpy(mask),
        choice=torch.from_numpy(mask & tree.is_choice[path]),
        discount=torch.full(played.action.shape, mdp.gamma, dtype=torch.float64),
        cut=torch.from_numpy(cut),
        bootstrap=torch.from_numpy(np.where(cut, beyond, 0.0)),
        ended=torch.from_numpy(ended),
    )


@dataclass(frozen=True, eq=False)
class Sums:
    """Advantages added up per episode and label, and how many there were; both [N, G]."""

    total: Floats
    count: Floats

    @classmethod
    def of(cls, labels: Ints, advantage: Floats, mask: NDArray[np.bool_], groups: int) -> Sums:
        """From labels in [0, G), advantages and what counts, all [N, T, D]."""
        n = len(labels)
        at = (labels + groups * np.arange(n)[:, None, None])[mask]
        count = np.bincount(at, minlength=n * groups)
        total = np.bincount(at, advantage[mask], minlength=n * groups)
        return cls(total.reshape(n, groups).astype(float), count.reshape(n, groups).astype(float))

    def errors(self, truth: Floats) -> Floats:
        """By how many standard errors the means miss the truth [G]; only labels often seen.

        Within an episode advantages depend on one another, so the episode is what varies.
        """
        often = (self.count > 0).sum(0) >= SEEN
        total, count = self.total[:, often], self.count[:, often]
        mean = total.sum(0) / count.sum(0)
        spread = np.sqrt(((total - mean * count) ** 2).sum(0)) / count.sum(0)
        # What never varies, as at λ = 0 inside an action, is right to the last digits or wrong.
        return (mean - truth[often]) / np.maximum(spread, 1e-12)

    def error(self, truth: Floats, sizes: Sequence[int]) -> list[float]:
        """Root mean squared error of the means, for estimates from growing numbers of episodes.

        Over labels that occur ten times in the smallest of the `sizes`, which divide N.
        """
        often = self.count.mean(0) * sizes[0] >= 10
        rms: list[float] = []
        for size in sizes:
            shape = len(self.total) // size, size, int(often.sum())
            total = self.total[:, often].reshape(shape).sum(1)
            count = self.count[:, often].reshape(shape).sum(1)
            seen = count > 0
            error = total[seen] / count[seen] - np.broadcast_to(truth[often], seen.shape)[seen]
            rms.append(float(np.sqrt((error**2).mean())) if seen.any() else math.nan)
        return rms


@dataclass(frozen=True)
class Judge:
    """A method with its settings."""

    method: Method
    lam: float
    options: Mapping[str, Any] = field(default_factory=dict)
    by_action: bool = False
    """Label advantages by the whole action, not by the token's node."""

    def sums(self, mdp: LanguageMDP, played: Episodes, values: TokenValues, groups: int) -> Sums:
        """Advantages by label; a few episodes at a time, of about the same length."""
        total, count = np.zeros((2, len(played.action), groups))
        turns = (played.action >= 0).sum(1)
        for rows in np.array_split(np.argsort(turns), 16):
            part = played.of(rows, turns[rows].max())
            trajectory = trajectory_of(mdp, part, values)
            credit = self.method.credit(trajectory, mdp.gamma, self.lam, **self.options)
            labels = mdp.tree.path[part.action]
            if self.by_action:
                labels = np.broadcast_to(part.action[..., None], labels.shape)
            found = Sums.of(labels, credit.advantage.numpy(), credit.mask.numpy(), groups)
            total[rows], count[rows] = found.total, found.count
        return Sums(total, count)
