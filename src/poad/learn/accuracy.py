"""Accuracy of the critic, on a rollout that it has not learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poad.learn.losses import explained_variance
from poad.learn.rows import PLACES

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
