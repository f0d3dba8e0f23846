"""Numbers that are not finite: which of them came first, and whose fault it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain

from torch import Tensor, nn

from poad.credit import Credit
from poad.errors import DivergenceError
from poad.lm import whole
from poad.turns import Turn

_LARGEST = 1e15
"""Advantages and targets are squared, and float32 ends at 3e38."""


def refuse_overflow(streams: Sequence[Sequence[Turn]], value: Tensor, judged: Credit) -> None:
    """Reject credit that no loss can be computed from, before any step is made.

    Args:
        streams: the turns, whose rewards may be to blame.
        value: [U] what the critic read, which may be to blame as well.
        judged: the credit.

    Raises:
        DivergenceError: names the largest reward, with its turn, or the critic.
    """
    if all(bool((each.abs() <= _LARGEST).all()) for each in (judged.advantage, judged.target)):
        return
    turn = max(chain.from_iterable(streams), key=lambda turn: _size(turn.reward))
    read = _size(float(value.abs().max())) if len(value) else 0.0
    if _size(turn.reward) >= read:
        raise DivergenceError(
            f"The world paid a reward of {turn.reward:g} for the action {turn.action.text!r}, too "
            "much to learn from. Scale the rewards of the world; returns of about 1 suit the "
            "default settings."
        )
    raise DivergenceError(
        f"The critic diverged: it reads values of up to {read:g}, where no reward is larger than "
        f"{abs(turn.reward):g}. The last checkpoint is intact. Try a smaller critic.lr."
    )


class Skips:
    """Counts the gradient steps that were skipped, because a loss or a gradient was not finite.

    One such step may be an accident of a rare batch, and skipping it keeps the weights as they are.
    More of them are a training that diverged.
    """

    MOST = 5
    """So many skipped steps, without an update in between that skipped none, end a training."""

    def __init__(self) -> None:
        self.count = 0
        """Skipped steps since the last update that skipped none."""
        self._before = 0

    @property
    def here(self) -> int:
        """Steps that the present update has skipped."""
        return self.count - self._before

    def begin(self) -> None:
        """Begin an update: if the last one skipped no step, those before it are forgiven."""
        if not self.here:
            self.count = 0
        self._before = self.count

    def skip(self, measured: Mapping[str, float], trained: Mapping[str, nn.Module]) -> None:
        """Count a step, and say why it is skipped.

        Args:
            measured: the losses and measurements of the step.
            trained: what the step would have changed, by the setting of its learning rate.

        Raises:
            DivergenceError: there were too many; names what was not finite, and says what to try.
        """
        where, rates = diagnosis(measured, trained)
        self.count += 1
        if self.count >= self.MOST:
            raise DivergenceError(
                f"Training diverged: {where}. {self.count} steps were skipped in a row of updates. "
                f"The last checkpoint is intact. Try a smaller {' or '.join(rates)}, or "
                "model.dtype = float32."
            )
        if self.here == 1:
            warnings.warn(f"A gradient step was skipped: {where}.", stacklevel=2)


def diagnosis(
    measured: Mapping[str, float], trained: Mapping[str, nn.Module]
) -> tuple[str, list[str]]:
    """Find the first number of a step that was not finite.

    Args:
        measured: the losses and measurements of the step.
        trained: what the step would have changed, by the setting of its learning rate.

    Returns:
        What is not finite, in words, and the learning rates to blame.
    """
    rates = list(trained)
    for name in ("entropy", "kl", "policy_loss", "kl_reference", "value_loss"):
        if not math.isfinite(measured.get(name, 0.0)):  # in the order in which they are computed
            return f"{name} is {measured[name]}", rates
    broken = [
        (rate, name)
        for rate, module in trained.items()
        for name, weight in module.named_parameters()
        if weight.grad is not None and not whole(weight.grad).isfinite().all()
    ]
    # The backward pass goes from the last layer to the first. A norm of finite gradients may
    # overflow as well; then none is to be named.
    where = f"the gradient of {broken[-1][1]}" if broken else "the norm of the gradient"
    where = f"the losses are finite, but {where} is not"
    return where, [broken[-1][0]] if broken else rates


def _size(number: float) -> float:
    return math.inf if math.isnan(number) else abs(number)
