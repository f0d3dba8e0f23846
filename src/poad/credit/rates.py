"""Rates of a method: discounts, traces and slots, with every default decided."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from torch import Tensor

from poad.credit.slots import Slots

Trace = Literal["token", "bit"]
"""What λ inside an action counts: decisions, or bits of their entropy."""


class Rates(NamedTuple):
    """Discounts, traces and slots of a method, with every default decided."""

    gamma: float
    """γ between actions."""
    lam: float
    """λ after a turn's last slot."""
    gamma_token: float
    """γ inside an action."""
    lam_token: float
    """λ inside an action."""
    slots: Slots
    """Which tokens are decisions."""
    lam_actor: float | Tensor
    """λ inside an action for advantages alone; a number, or [N], one for each row."""
    trace: Trace = "token"
    """What `lam_actor` counts."""
    beta: float | Tensor = 1.0
    """Share of the values inside actions in advantages; a number, or [N]."""

    @property
    def splits(self) -> bool:
        """True if advantages follow another recursion than the critic's targets."""
        fixed = not isinstance(self.beta, Tensor) and not isinstance(self.lam_actor, Tensor)
        same = fixed and self.beta == 1 and self.lam_actor == self.lam_token
        return not (same and (self.trace == "token" or self.lam_token == 1))

    def check(self) -> Rates:
        """Return the rates themselves.

        Raises:
            ValueError: a rate outside [0, 1], or unknown slots or traces.
        """
        for name, found, known in (
            ("slots", self.slots, get_args(Slots)),
            ("trace", self.trace, get_args(Trace)),
        ):
            if found not in known:
                raise ValueError(f"Unknown {name} {found!r}; there are {', '.join(known)}.")
        for name, rate in self._asdict().items():
            if isinstance(rate, str):
                continue
            for each in rate.flatten().tolist() if isinstance(rate, Tensor) else [rate]:
                if not 0 <= each <= 1:  # nor is NaN
                    raise ValueError(f"{name} is {each:g}; it must lie in [0, 1].")
        return self

    def expect_rows(self, rows: int) -> None:
        """Reject a tensor of rates that does not hold one for each row (ValueError)."""
        for name in ("lam_actor", "beta"):
            rate = getattr(self, name)
            if isinstance(rate, Tensor) and rate.shape != (rows,):
                raise ValueError(
                    f"{name} has shape {tuple(rate.shape)}; give a number, or one for each row: "
                    f"({rows},)."
                )
