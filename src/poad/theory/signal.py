"""How much signal the gradient of token credit holds, beside that of turn-level PPO.

In closed form, for actions that are coin flips. One turn writes n tokens, each one of two. At K
places, evenly spread from the first token to the last, both are equally likely, and one of them is
worth 1 and the other -1. These decide. At all other places one token is likely, and nothing depends
on it. What was decided is paid at the end, as a sum. The critic reads exact values with independent
errors, at the root as well. Their size is relative to the spread of the values: the root mean
variance of the exact values over the n places.

Advantages are linear in the flips and the errors, so their moments need no samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np

from poad.credit import Trace
from poad.theory.problems import Floats, Ints

TABLE = ((2, 2, 0.0), (32, 2, 0.0), (32, 8, 0.0), (128, 8, 0.0), (32, 8, 0.5), (32, 8, 1.0))
"""(n, K, noise) of the rows that are printed."""
TABLE_LAM = (1.0, 0.95, 0.5)
DRAWN = (32, 8)
"""(n, K) of the drawing."""
DRAWN_NOISE = (0.0, 0.25, 0.5, 1.0, 2.0)
DRAWN_LAM = tuple(1 - i / 40 for i in range(33))
"""λ from 1 to .2."""


@dataclass(frozen=True)
class CoinFlips:
    """A turn of n tokens, of which K decide.

    Raises:
        ValueError: there are fewer than two tokens, or not between 1 and n decisions.
    """

    tokens: int
    """n, at least 2."""
    decisions: int
    """K, from 1 to n."""
    likely: float = 0.9
    """Probability of the likelier token where nothing is decided."""

    def __post_init__(self) -> None:
        if self.tokens < 2 or not 1 <= self.decisions <= self.tokens:
            raise ValueError(
                f"{self.decisions} of {self.tokens} tokens cannot decide; give at least 2 tokens, "
                "and from 1 to all of them as decisions."
            )

    @cached_property
    def places(self) -> Ints:
        """[K] the tokens that decide, from 0 on."""
        return np.linspace(0, self.tokens - 1, self.decisions).round().astype(int)

    @cached_property
    def decides(self) -> Floats:
        """[n] 1 where the token decides and 0 elsewhere, which is the variance of what it earns."""
        return np.isin(np.arange(self.tokens), self.places).astype(np.float64)

    @cached_property
    def probability(self) -> Floats:
        """[n] of the likelier token."""
        return np.where(self.decides > 0, 0.5, self.likely)

    @cached_property
    def score(self) -> Floats:
        """[n] E |∇ log π(w)|², the gradient taken by the logits of the token."""
        return 2 * self.probability * (1 - self.probability)

    @cached_property
    def bits(self) -> Floats:
        """[n] the entropy of each token."""
        both = np.stack([self.probability, 1 - self.probability])
        return -(both * np.log2(np.maximum(both, 1e-300))).sum(0)

    @cached_property
    def spread(self) -> float:
        """The root mean variance of the exact values before the tokens."""
        before = np.cumsum(self.decides) - self.decides  # [n] decisions made so far
        return math.sqrt(before.mean())

    def advantages(
        self, lam: float = 1.0, noise: float = 0.0, trace: Trace = "token", beta: float = 1.0
    ) -> tuple[Floats, Floats]:
        """Compute the advantages of poad as a linear map.

        Args:
            lam: λ inside the action, once per token or once per bit.
            noise: the critic's error in units of `spread`.
            trace: what λ counts.
            beta: share of the inner values.

        Returns:
            Two matrices [n, n]: what each token's advantage takes from each flip, whose outcome is
            1 or -1, and from the critic's error at each token, of variance 1.
        """
        n = self.tokens
        made = np.tril(np.ones((n, n)), -1) * self.decides  # [n, n] V(o, w_<j) by flips; V(o) = 0
        error = noise * self.spread * np.eye(n)
        paid = np.zeros((n, n))
        paid[-1] = self.decides
        power = np.cumsum(np.ones(n) if trace == "token" else self.bits)
        # [n, n] λ to the power of what lies between two tokens; 0 for tokens before
        carry = np.triu(lam ** np.maximum(power[None] - power[:, None], 0))

        def credit(value: Floats, reward: Floats) -> Floats:
            value = value[0] + beta * (value - value[0])
            ahead = np.vstack([value[1:], np.zeros((1, n))])  # nothing follows the turn
            return carry @ (reward + ahead - value)

        return credit(made, paid), credit(error, np.zeros((n, n)))

    def signal(
        self, lam: float = 1.0, noise: float = 0.0, trace: Trace = "token", beta: float = 1.0
    ) -> float:
        """Compute the signal-to-noise ratio of one turn's gradient, by the logits of its tokens.

        The signal is the squared length of the mean gradient along the true one, and the noise is
        the sum of the variances of all components. Infinite where nothing is left to chance.
        """
        flips, errors = self.advantages(lam, noise, trace, beta)
        mean = self.decides * np.diag(flips)  # [n] of the true gradient that is left
        power = ((flips**2).sum(1) + (errors**2).sum(1)) * self.score
        # the squared score at a decision is its mean, whichever token is drawn
        variance = float((power - self.score * mean**2).sum())
        signal = float((self.score * mean).sum() ** 2 / (self.score * self.decides).sum())
        return signal / variance if variance > 1e-12 else math.inf

    def gain(
        self, lam: float = 1.0, noise: float = 0.0, trace: Trace = "token", beta: float = 1.0
    ) -> float:
        """Compute the same relative to turn-level PPO with the same critic's V(o)."""
        return self.signal(lam, noise, trace, beta) / self.signal(1.0, noise, beta=0.0)


@dataclass(frozen=True)
class Gains:
    """The signal-to-noise ratio relative to turn-level PPO, by λ inside actions."""

    tokens: int
    decisions: int
    noise: float
    """The critic's error in units of the values' spread."""
    trace: Trace
    """What λ counts."""
    lam: list[float]
    gain: list[float]

    @classmethod
    def of(
        cls, tokens: int, decisions: int, noise: float, trace: Trace, lams: Sequence[float]
    ) -> Gains:
        """Compute them for every λ."""
        flips = CoinFlips(tokens, decisions)
        found = [flips.gain(lam, noise, trace) for lam in lams]
        return cls(tokens, decisions, noise, trace, list(lams), found)


def tabulate() -> list[Gains]:
    """Compute the rows that are printed, by the token and by the bit."""
    return [Gains.of(*row, trace, TABLE_LAM) for row in TABLE for trace in get_args(Trace)]


def trace_out() -> list[Gains]:
    """Compute the curves that are drawn, by the token and by the bit."""
    return [
        Gains.of(*DRAWN, noise, trace, DRAWN_LAM)
        for trace in get_args(Trace)
        for noise in DRAWN_NOISE
    ]
