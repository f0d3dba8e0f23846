"""Accuracy of the critic, on a rollout that it has not learned from, and reliance on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poad.agent import CreditSettings
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


def rely(
    credit: CreditSettings, terms: ValueTerms, value: Tensor, streams: int
) -> tuple[CreditSettings, dict[str, float]]:
    """Fit the actor's λ, where the settings ask for it: the critic decides as far as it has earned.

    λ is 1 - β. β is the slope of a regression, through the origin, of what a turn brought beyond
    V(o) on what the critic said inside the action beyond V(o). It is 1 for exact values.
    Independent errors of the critic lower it: it is the share of the inner values' variance that is
    not error. It does not tell how much the critic leaves unsaid. The critic
    has not learned from these turns yet, and the fit for one half of the streams uses the other
    half alone, so that no advantage depends on its own outcome.

    Args:
        credit: the method and its rates, and whether λ is fitted.
        terms: what the critic said, and what came.
        value: [U] the critic's readings.
        streams: N.

    Returns:
        The settings with the fitted rate, [N], and the mean β as a metric. The same settings and no
        metric if nothing is fitted.
    """
    if not credit.fitted or credit.method.decision == "turn":
        return credit, {}
    root = value[terms.root]  # [W] V(o) at each reading; at roots themselves nothing is said beyond
    said, came = terms.old_value - root, terms.target - root
    beta = torch.zeros(streams)  # [N]
    for half in (0, 1):
        other = (terms.place > 0) & (terms.stream % 2 != half)  # [W]
        power = (said[other] ** 2).sum()
        if power > 0:
            beta[half::2] = ((said * came)[other].sum() / power).clamp(0, 1)
    rates = credit.rates._replace(lam_actor=1 - beta)
    return replace(credit, rates=rates), {"beta": float(beta.mean())}
