"""The methods, a row each: what counts as a decision, and how its credit is counted.

`METHODS["poad"].credit(trajectory, gamma, lam)` judges a rollout; `token_credit` judges the flat
token tensors of other trainers. Both lay the tokens out as a stream and end in one recursion.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from poad.credit.recursion import Credit, Slots, Trajectory, recursion, sequences, token_slots
from poad.credit.slots import Stream, token_stream, turn_sum
from poad.errors import ConfigError, did_you_mean

Estimator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From reward, value, next value, discount and trace to advantage and target; all [N, L]."""


@dataclass(frozen=True)
class Method:
    """One way to give credit, as data; a method of your own is one more of these."""

    name: str
    """What configurations and the command line call it."""
    summary: str
    """One line, with the source."""
    decision: Literal["token", "turn"] = "token"
    """What is a slot: tokens of the action, or the turn as a whole, at its root."""
    spread: bool = False
    """For turns: give the turn's advantage to all its choices, not to the root alone."""
    slots: Slots = "choices"
    """For tokens: which of them are slots by default."""
    gamma_token: float | None = 1.0
    """Default discount between the slots of one action; None means γ."""
    next_value: Literal["first", "last"] = "first"
    """Whether the first or the last slot of the next turn tells the value after a turn."""
    uses_critic: bool = True
    """False: values are 0, λ is 1, nothing lies beyond an ending, and unfinished episodes wait."""
    score: Literal["trie", "word", "token", "sum"] = "trie"
    """Default sampling among offered actions: token by token, or by a whole-action score."""
    estimator: Estimator = recursion
    """What makes advantage and target of the five sequences."""

    @property
    def whole_action(self) -> bool:
        """Whether the action is one decision, so that only whole offered actions can be judged."""
        return self.decision == "turn" and not self.spread

    def credit(
        self,
        trajectory: Trajectory,
        gamma: float,
        lam: float,
        *,
        lam_token: float | None = None,
        gamma_token: float | None = None,
        slots: Slots | None = None,
    ) -> Credit:
        """Judge every decision of a rollout; the credit is laid out like the trajectory, [N, T, D].

        The discount after a turn is the trajectory's; `gamma` is the discount inside an action for
        methods that use γ there too. `lam` is λ after a turn's last slot, `lam_token` λ inside a
        turn: None takes `lam`, as the paper's published code does; 1 makes the trace independent of
        the action's length. None for `gamma_token` and `slots` takes the method's default. Methods
        without a critic ignore both λ; methods that decide per turn ignore `lam_token` and
        `gamma_token`, and always have the root as their slot. Raises ValueError for a rate outside
        [0, 1] or unknown slots.
        """
        credit = self.judge(
            trajectory.stream(),
            gamma,
            lam,
            lam_token=lam_token,
            gamma_token=gamma_token,
            slots=slots,
            spread=self.spread,
        )
        return credit.reshape(trajectory.reward.shape)

    @torch.no_grad()
    def judge(
        self,
        stream: Stream,
        gamma: float,
        lam: float,
        *,
        lam_token: float | None,
        gamma_token: float | None,
        slots: Slots | None,
        spread: bool,
    ) -> Credit:
        """Judge every decision of a stream, [N, L]; `credit` explains the arguments."""
        lam_token = lam if lam_token is None else lam_token
        gamma_token = self.gamma_token if gamma_token is None else gamma_token
        gamma_token = gamma if gamma_token is None else gamma_token
        slots = self.slots if slots is None else slots
        _check(slots, gamma=gamma, lam=lam, lam_token=lam_token, gamma_token=gamma_token)
        dtype = stream.value.dtype
        stream = stream.in_working_precision()
        if not self.uses_critic:
            stream, lam, lam_token = stream.without_critic(), 1.0, 1.0

        slot = stream.roots() if self.decision == "turn" else token_slots(stream, slots)
        rates = {"gamma_token": gamma_token, "lam": lam, "lam_token": lam_token}
        five = sequences(stream, slot, next_value=self.next_value, **rates)
        advantage, target = self.estimator(*five)

        mask, value_mask = stream.choice, slot
        if self.decision == "turn" and spread:
            advantage = turn_sum(advantage.masked_fill(~slot, 0), stream.turn)
        elif self.decision == "turn":
            mask = slot & stream.has_choice()
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
                summary="The turn's advantage given to each of its tokens, as token-level trainers "
                "such as AReaL, AgileRL and oat do.",
                decision="turn",
                spread=True,
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
                summary="Critic-free return of finished episodes "
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
    choice: Tensor | None = None,
    discount: Tensor | None = None,
    bootstrap: Tensor | None = None,
    ended: Tensor | None = None,
    episode_ids: Tensor | None = None,
) -> Credit:
    """Credit for the flat token tensors of another trainer: any method, in place of its GAE.

    A row is one conversation of L positions: prompt, action tokens, observations between them and
    padding, on any side. Only action tokens count; the rest may hold anything.

    - `reward` [B, L] float: the sum over a turn's action tokens is the turn's reward.
    - `value` [B, L] float: the critic's reading *before* the token, from the hidden state that
      predicts it. From values of a full forward pass over all positions this is
      `values.roll(1, dims=1)`, or `values[:, :-1]` beside the labels `[:, 1:]`; trainers that
      already cut their values to the response beside its log-probabilities pass them unchanged.
    - `mask` [B, L] bool: action tokens, those the policy sampled.
    - `turn_ids` [B, L] int: which turn an action token belongs to; never decreasing.
    - `gamma`, `lam`, `lam_token`, `gamma_token`, `slots`: as in `Method.credit`.
    - `choice` [B, L] bool: action tokens that had an alternative; default all of them.
    - `discount` [B, L] float: γ_t, read at a turn's last action token; default `gamma` everywhere.
    - `bootstrap` float: the value after the last turn, [B], or for packed rows [B, L], read at each
      episode's last action token; default 0, the episode terminated.
    - `ended` bool, likewise [B] or [B, L]: False where an episode goes on after its last turn, so
      that methods without a critic leave it out; default True.
    - `episode_ids` [B, L] int: for several episodes packed into a row; never decreasing at action
      tokens. Where they change, turn ids may start over.

    Returns a `Credit` of [B, L] tensors. Turn-level methods, `twosome` and `glam` too, give the
    turn's advantage to all its choices, since that is where a per-token loss expects it. Raises
    ValueError for shapes, ids or rates that cannot be, TypeError for a wrong kind of dtype.
    """
    stream = token_stream(
        reward,
        value,
        mask,
        turn_ids,
        choice=mask if choice is None else choice,
        discount=torch.full_like(value, gamma) if discount is None else discount,
        bootstrap=value.new_zeros(len(value)) if bootstrap is None else bootstrap,
        ended=mask.new_ones(len(mask)) if ended is None else ended,
        episode_ids=torch.zeros_like(turn_ids) if episode_ids is None else episode_ids,
    )
    return find_method(method).judge(
        stream,
        gamma,
        lam,
        lam_token=lam_token,
        gamma_token=gamma_token,
        slots=slots,
        spread=True,
    )


def _check(slots: str, **rates: float) -> None:
    """Refuse unknown slots and rates outside [0, 1]."""
    if slots not in get_args(Slots):
        raise ValueError(f"Unknown slots {slots!r}; there are {', '.join(get_args(Slots))}.")
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} is {rate}; it must lie in [0, 1].")
