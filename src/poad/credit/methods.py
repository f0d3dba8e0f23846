"""The methods, a row each: which tokens are decisions, and how they get their credit.

`token_credit` is the one way in. Our trainer and other people's call it with the same flat token
tensors; it lays the rows out as a `TokenStream` and ends in one recursion.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from poad.credit.recursion import Credit, recursion
from poad.credit.slots import Slots, TokenStream, per_bit, sequences, turn_sum
from poad.errors import ConfigError, did_you_mean

Estimator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From reward, value, next value, discount and trace to advantage and target; all [N, L]."""


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
        if lam_token is None:
            lam_token = lam if fades else 1.0
        slots = self.slots if slots is None else slots
        if slots not in get_args(Slots):
            raise ValueError(f"Unknown slots {slots!r}; there are {', '.join(get_args(Slots))}.")
        if trace not in get_args(Trace):
            raise ValueError(f"Unknown trace {trace!r}; there are {', '.join(get_args(Trace))}.")
        if lam_actor is None:
            lam_actor = lam_token
        rates = Rates(gamma, lam, gamma_token, lam_token, slots, lam_actor, trace, beta)
        for name, rate in rates._asdict().items():
            if isinstance(rate, str):
                continue
            for each in rate.flatten().tolist() if isinstance(rate, Tensor) else [rate]:
                if not 0 <= each <= 1:  # nor is NaN
                    raise ValueError(f"{name} is {each:g}; it must lie in [0, 1].")
        return rates

    @torch.no_grad()
    def credit(self, stream: TokenStream, rates: Rates) -> Credit:
        """Compute the credit of every decision of a stream, [N, L].

        Methods without a critic ignore every λ. Methods that decide per turn always have the root
        as their slot, and ignore all rates inside actions.

        Raises:
            ValueError: a rate for each row that is not [N].
        """
        dtype = stream.value.dtype
        for name in ("lam_actor", "beta"):
            _expect_by_row(name, getattr(rates, name), len(stream.value))
        stream = stream.in_working_precision()
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
        if rates.splits and not per_turn:
            inside = _by_row(rates.lam_actor)
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


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        row.name: row
        for row in (
            Method(
                name="poad",
                summary="Bellman backup with action decomposition: γ acts between actions, never "
                "inside one (arXiv 2405.15821).",
            ),
            Method(
                name="ntpo",
                summary="Naive token-level policy optimization: every token is a time step, so "
                "long actions fade (arXiv 2405.15821).",
                slots="tokens",
                gamma_token=None,
            ),
            Method(
                name="twosome",
                summary="Action-level PPO; actions are sampled by their mean log-probability per "
                "word (arXiv 2401.14151).",
                decision="turn",
                score="word",
            ),
            Method(
                name="glam",
                summary="Action-level PPO; actions are sampled by their summed log-probability "
                "(arXiv 2302.02662).",
                decision="turn",
                score="sum",
            ),
            Method(
                name="turn_ppo",
                summary="The turn's advantage given to each of its tokens, as in AReaL, AgileRL "
                "and oat.",
                decision="turn",
            ),
            Method(
                name="archer_adrl",
                summary="As ntpo, but a turn bootstraps from the last slot of the next action: the "
                'baseline "ARCHER" in the code of arXiv 2405.15821, which is not ArCHer itself.',
                gamma_token=None,
                next_value="last",
            ),
            Method(
                name="reinforce",
                summary="Critic-free return of finished episodes, whose first turns an older "
                "policy may have acted; what follows a truncation counts as 0 "
                "(Machine Learning 8, 1992, 229-256).",
                uses_critic=False,
            ),
        )
    }
)
"""Every method by name."""


def find_method(method: str | Method) -> Method:
    """Find a method by its name in `METHODS`, or one of your own as "package.module:NAME".

    In the second form the module is imported, and `NAME` must be a `Method` there. A `Method` is
    returned as it is.

    Raises:
        ConfigError: the name is unknown, its module cannot be imported, or it is not a `Method`.
    """
    if isinstance(method, Method):
        return method
    module, colon, name = method.rpartition(":")
    if colon:
        return _import_method(module, name)
    if method in METHODS:
        return METHODS[method]
    raise ConfigError(
        f"There is no method {method!r}. {did_you_mean(method, METHODS)}Known methods: "
        f"{', '.join(METHODS)}. Name a method of your own as package.module:NAME."
    )


def _import_method(module: str, name: str) -> Method:
    where = f"the method '{module}:{name}'"
    try:
        names = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Cannot import {where}: {error}. Run poad from the directory that holds the module, "
            "or install its package."
        ) from error
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigError(f"Cannot import {where}: {type(error).__name__}: {error}") from error
    if name not in names:
        known = [each for each, value in names.items() if isinstance(value, Method)]
        raise ConfigError(
            f"Cannot find {where}: {module} has no {name!r}. {did_you_mean(name, known)}"
            f"Methods there: {', '.join(known) or 'none'}."
        )
    if not isinstance(names[name], Method):
        kind = type(names[name]).__name__
        raise ConfigError(f"Cannot use {where}: it is a {kind}, not a poad.credit.Method.")
    return names[name]


def _expect_by_row(name: str, rate: float | Tensor, rows: int) -> None:
    """Reject a tensor of rates that does not hold one for each row (ValueError)."""
    if isinstance(rate, Tensor) and rate.shape != (rows,):
        raise ValueError(
            f"{name} has shape {tuple(rate.shape)}; give a number, or one for each row: ({rows},)."
        )


def _by_row(rate: float | Tensor) -> float | Tensor:
    """Turn a rate for each row, [N], into a column [N, 1]; a number stays as it is."""
    return rate[:, None] if isinstance(rate, Tensor) else rate


def token_credit(
    reward: Tensor,
    value: Tensor,
    mask: Tensor,
    turn_ids: Tensor,
    *,
    gamma: float,
    lam: float,
    method: str | Method = "poad",
    lam_token: float | None = None,
    gamma_token: float | None = None,
    slots: Slots | None = None,
    lam_actor: float | Tensor | None = None,
    trace: Trace = "token",
    beta: float | Tensor = 1.0,
    bits: Tensor | None = None,
    choice: Tensor | None = None,
    discount: Tensor | None = None,
    bootstrap: Tensor | None = None,
    ended: Tensor | None = None,
    episode_ids: Tensor | None = None,
) -> Credit:
    """Compute the credit of flat token tensors by any method, in place of a trainer's GAE.

    A row is one conversation of L positions. Only action tokens count; the rest may hold anything.

    Args:
        reward: [B, L] float. The sum over a turn's action tokens is the turn's reward.
        value: [B, L] float. The critic *before* the token: a forward pass's ``.roll(1, dims=1)``.
        mask: [B, L] bool. Action tokens, those the policy sampled.
        turn_ids: [B, L] int. The turn of each action token; never decreasing.
        gamma: discount between actions.
        lam: λ after a turn's last slot.
        method: a name in `METHODS`, or a `Method`; `Method.rates` says what None means below.
        lam_token: λ inside an action.
        gamma_token: discount inside an action.
        slots: which action tokens are decisions, "choices" or "tokens".
        lam_actor: λ inside an action for advantages, or [B]. None: `lam_token`, as for targets.
        trace: whether `lam_actor` acts once per "token" or once per "bit" of entropy.
        beta: β, or [B]; advantages take V(o) + β·(V(o, w_<j) - V(o)) for inner values.
        bits: [B, L] float. Entropy of the decision at each token in bits, for the trace "bit".
        choice: [B, L] bool. Action tokens that had an alternative. None: all of them.
        discount: [B, L] float. γₜ, read at a turn's last action token. None: `gamma` everywhere.
        bootstrap: [B] float, the value after the row's last turn, or [B, L], read at each episode's
            last action token. None: 0, the episode terminated.
        ended: [B] bool, for the row's last episode, or [B, L], read like `bootstrap`. False where
            an episode goes on; methods without a critic then leave it out. None: True.
        episode_ids: [B, L] int, never decreasing. Turn ids may start over where they change.

    Raises:
        ValueError, TypeError: impossible shapes, ids or rates; a wrong kind of dtype.
    """
    method = find_method(method)
    rates = method.rates(gamma, lam, lam_token, gamma_token, slots, lam_actor, trace, beta)
    stream = TokenStream.from_rows(
        reward, value, mask, turn_ids, gamma, choice, discount, bootstrap, ended, episode_ids, bits
    )
    if bits is None and trace == "bit":
        raise ValueError('trace = "bit" needs `bits`, the entropy of each decision, [B, L].')
    return method.credit(stream, rates)
