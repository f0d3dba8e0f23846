"""Accuracy of the critic, on a rollout that it has not learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from poad.credit import Credit
from poad.learn.losses import explained_variance, masked_moments
from poad.learn.rows import PLACES, TokenRows

if TYPE_CHECKING:
    from poad.learn.experience import ValueTerms


def accuracy(terms: ValueTerms) -> dict[str, float]:
    """Measure the critic by place in the action, on a rollout that it has not learned from.

    Returns:
        For each of `PLACES` that occurs, `explained_variance_PLACE`, the share of the targets'
        variance that the critic explains, and `value_bias_PLACE`, the mean of value - target.
    """
    found: dict[str, float] = {}
    for i, name in enumerate(PLACES):
        here = terms.place == i
        if here.any():
            explained = explained_variance(terms.old_value, terms.target, here)
            bias = (terms.old_value - terms.target)[here].mean()
            found |= {
                f"explained_variance_{name}": float(explained),
                f"value_bias_{name}": float(bias),
            }
    return found


def measure(rows: TokenRows, value: Tensor, judged: Credit) -> dict[str, float]:
    """Measure credit, and the critic as a whole, before anything is learned from either."""
    _, std = masked_moments(judged.advantage, judged.mask)
    explained = explained_variance(rows.values(value, rows.read), judged.target, judged.value_mask)
    return {"explained_variance": float(explained), "advantage_std": float(std)}
