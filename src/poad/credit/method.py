"""A method as data: which tokens are decisions, and how they get their credit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poad.credit.rates import Rates, Trace
from poad.credit.recursion import Credit, recursion
from poad.credit.slots import Compared, Slots, TokenStream, per_bit, sequences, turn_sum

Estimator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From reward, value, next value, discount and trace to advantage and target; all [N, L]."""


@dataclass(frozen=True)
class Method:
    """One way to give credit, as data; a method of your own is one more of these."""

    name: str
    """Its name in configurations and on the command line."""
    summary: str
    """One line, with the source."""
    decision: Literal["token", "turn"] = "token"
    """The slots: tokens of the action, or the turn as a whole, at its root. The advantage of a turn
    goes to all of its choices."""
    slots: Slots = "choices"
    """For tokens: which of them are slots by default."""
    gamma_token: float | None = 1.0
    """Default discount between the slots of one action; None means γ."""
    next_value: Literal["first", "last"] = "first"
    """The slot of the next turn at which the value after a turn is read."""
    uses_critic: bool = True
    """False: values are 0, λ is 1, nothing follows an ending, and unfinished episodes wait."""
    compared: Compared = "none"
    """What its groups of episodes compare; then it is `group_credit` that computes credit."""
    score: Literal["trie", "word", "token", "sum"] = "trie"
    """Default sampling among offered actions: token by token, or by a whole-action score."""
    estimator: Estimator = recursion
    """Computes advantage and target from the five sequences."""

    @property
    def whole_action(self) -> bool:
        """True if the action is one decision, so that only whole offered actions can be judged."""
        return self.score != "trie"

    def rates(
        self,
        gamma: float,
        lam: float,
        lam_token: float | None = None,
        gamma_token: float | None = None,
        slots: Slots | None = None,
        lam_actor: float | Tensor | None = None,
        trace: Trace = "token",
        beta: float | Tensor = 1.0,
    ) -> Rates:
        """Replace every None by this method's default.

        `gamma_token` defaults to the method's own, and None there means γ. `lam_token` defaults to
        1 for methods that do not discount inside an action, so that the trace does not depend on
        the action's length, and to λ for those that do (ntpo, archer_adrl). The published code of
        POAD uses λ at every token. `lam_actor` defaults to `lam_token`.

        Raises:
            ValueError: a rate outside [0, 1], or unknown slots or traces.
        """
        fades = self.gamma_token is None
        if gamma_token is None:
            gamma_token = gamma if self.gamma_token is None else self.gamma_token
        lam_token = (lam if fades else 1.0) if lam_token is None else lam_token
        slots = self.slots if slots is None else slots
        lam_actor = lam_token if lam_actor is None else lam_actor
        return Rates(gamma, lam, gamma_token, lam_token, slots, lam_actor, trace, beta).check()

    @torch.no_grad()
    def credit(self, stream: TokenStream, rates: Rates) -> Credit:
        """Compute the credit of every decision of a stream, [N, L].

        Methods without a critic ignore every λ. Methods that decide per turn always have the root
        as their slot, and ignore all rates inside actions.

        Raises:
            ValueError: a rate for each row that is not [N].
        """
        rates.expect_rows(len(stream.value))
        dtype, stream = stream.value.dtype, stream.in_working_precision()
        per_turn = self.decision == "turn"
        slot = stream.roots() if per_turn else stream.token_slots(rates.slots)  # [N, L] bool
        if not self.uses_critic:
            stream = stream.without_critic()
            rates = rates._replace(lam=1.0, lam_token=1.0, lam_actor=1.0, trace="token", beta=1.0)

        def estimate(stream: TokenStream, inside: float | Tensor) -> tuple[Tensor, Tensor]:
            five = sequences(
                stream,
                slot,
                gamma_token=rates.gamma_token,
                lam=rates.lam,
                lam_token=inside,
                next_value=self.next_value,
            )
            return self.estimator(*five)

        advantage, target = estimate(stream, rates.lam_token)
        if rates.splits and not per_turn:  # advantages trust the values inside actions less
            inside = rates.lam_actor
            if isinstance(inside, Tensor):
                inside = inside[:, None]  # [N] -> [N, 1]
            if rates.trace == "bit":
                inside = per_bit(inside, stream.bits, slot)
            advantage, _ = estimate(stream.shrunk(rates.beta), inside)

        # The loss covers the choices. The critic is trained at the slots, even at forced tokens.
        mask, value_mask = stream.choice, slot
        if per_turn:  # the root's advantage, at every token of the turn
            advantage = turn_sum(advantage.masked_fill(~slot, 0), stream.turn)
        if not self.uses_critic:
            mask, value_mask = mask & stream.finished(), torch.zeros_like(slot)
        return Credit(
            advantage=advantage.masked_fill(~mask, 0).to(dtype),
            target=target.masked_fill(~value_mask, 0).to(dtype),
            mask=mask,
            value_mask=value_mask,
        )
