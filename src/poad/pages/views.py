"""An episode as the inspector shows it, whoever recorded it, and its credit by any method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from poad.turns import Cut

if TYPE_CHECKING:  # credit needs torch, which reports do without
    import torch

    from poad.credit import Method, Trace

Ending = Literal["terminated", "truncated", "unfinished"]


class Alternative(NamedTuple):
    """What could have stood at a place: a token, or a whole action."""

    text: str
    probability: float
    before: float
    """Its probability under the policy that is compared with; NaN if unknown."""
    taken: bool = False
    """Whether the agent took it."""


@dataclass(frozen=True)
class TurnView:
    """One turn of n tokens. A number that nobody recorded is NaN."""

    prompt: str
    action: str
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    """[n] the tokens as readable text."""
    choice: tuple[bool, ...]
    """[n] whether another token could have stood there."""
    logprob: tuple[float, ...]
    """[n] log-probabilities under the policy that acted, in nats; 0 at forced tokens."""
    value: tuple[float, ...]
    """[n] the critic's value before each token."""
    reward: float
    duration: int = 1
    """Primitive steps that the action took."""
    invalid: bool = False
    """Whether the world did not offer the action."""
    offered: tuple[tuple[str, float], ...] | None = None
    """(action, probability) in the order offered; None where actions were not listed."""
    form: str = ""
    """The form that was offered, if one was."""
    cut: Cut | None = None
    """What the model did not read, if the prompt was too long for it."""
    before: tuple[float, ...] = ()
    """[n] log-probabilities under the policy that is compared with; empty if there is none."""
    entropy: tuple[float, ...] = ()
    """[n] entropy of the decision at each token, in nats; empty if unknown."""
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    """[n] the likeliest alternatives at each token, with the one that was taken; empty if
    unknown."""


@dataclass(frozen=True)
class EpisodeView:
    """One episode."""

    seed: int
    episode_return: float
    """As the world reports it."""
    success: bool | None
    """None if nobody recorded it."""
    ending: Ending
    turns: tuple[TurnView, ...]
    bootstrap: float = math.nan
    """The critic's value after the last turn, unless the episode terminated; NaN if unknown."""

    @property
    def knows_values(self) -> bool:
        """Whether any value of a critic was recorded."""
        return any(math.isfinite(v) for turn in self.turns for v in turn.value)


@dataclass(frozen=True)
class Dials:
    """What the sliders of the page set. None leaves a rate to each method; see `Method.rates`."""

    gamma: float = 0.99
    lam: float = 0.95
    gamma_token: float | None = None
    lam_token: float | None = None
    lam_actor: float | None = None
    beta: float = 1.0
    trace: Trace = "token"
    by_duration: bool = True
    """γ to the power of a turn's primitive steps, or γ once per turn."""


class TokenJudgement(NamedTuple):
    """The credit of one token; None where it earns or learns nothing."""

    advantage: float | None
    """At the choices that take part in the policy's loss."""
    target: float | None
    """At the slots, where the critic is trained."""


def judge(episode: EpisodeView, method: Method, dials: Dials) -> list[TokenJudgement]:
    """Compute the credit of every token of an episode, turn after turn, in float64.

    Unknown values count as 0, and so do unknown entropies.
    """
    import torch

    from poad.credit import token_credit

    rows = _rows(episode, dials)
    if not rows["reward"].numel():
        return []
    entropy = chain.from_iterable(
        turn.entropy or repeat(0.0, _size(turn)) for turn in episode.turns
    )
    bits = torch.tensor([[_known(each) / math.log(2) for each in entropy]], dtype=torch.float64)
    credit = token_credit(
        rows["reward"],
        rows["value"],
        rows["mask"],
        rows["turn_ids"],
        gamma=dials.gamma,
        lam=dials.lam,
        method=method,
        gamma_token=dials.gamma_token,
        lam_token=dials.lam_token,
        lam_actor=dials.lam_actor,
        beta=dials.beta,
        trace=dials.trace,
        bits=bits.clamp(min=0),
        choice=rows["choice"],
        discount=rows["discount"],
        bootstrap=rows["bootstrap"],
        ended=rows["ended"],
    )
    columns = (credit.advantage, credit.mask, credit.target, credit.value_mask)
    return [
        TokenJudgement(advantage if earns else None, target if learns else None)
        for advantage, earns, target, learns in zip(
            *(column[0].tolist() for column in columns), strict=True
        )
    ]


def _rows(episode: EpisodeView, dials: Dials) -> dict[str, torch.Tensor]:
    """Lay an episode out as the one row, [1, L], that `token_credit` takes."""
    import torch

    columns: dict[str, list[Any]] = {
        name: [] for name in ("reward", "value", "turn_ids", "choice", "discount")
    }
    for number, turn in enumerate(episode.turns):
        size = _size(turn)
        columns["reward"] += [0.0] * (size - 1) + [_known(turn.reward)] * min(size, 1)
        columns["value"] += [_known(value) for value in turn.value]
        columns["turn_ids"] += [number] * size
        columns["choice"] += turn.choice
        steps = turn.duration if dials.by_duration else 1
        columns["discount"] += [dials.gamma**steps] * size
    floats = ("reward", "value", "discount")
    rows = {
        name: torch.tensor([column], dtype=torch.float64 if name in floats else None)
        for name, column in columns.items()
    }
    rows["mask"] = torch.ones_like(rows["choice"])
    goes_on = 0.0 if episode.ending == "terminated" else _known(episode.bootstrap)
    rows["bootstrap"] = torch.tensor([goes_on], dtype=torch.float64)
    rows["ended"] = torch.tensor([episode.ending != "unfinished"])
    return rows


def kinds(more: Sequence[Method] = ()) -> Mapping[str, Method]:
    """Group the methods that give the same credit to the same episode, by their joined names.

    Methods that only sample in another way, as glam and twosome do, differ in nothing that a
    recorded episode shows. Left out are methods with an estimator of their own, because the page
    can compute the one recursion alone, and those that compare several episodes.
    """
    from poad.credit import METHODS, recursion

    groups: dict[tuple[Any, ...], list[Method]] = {}
    for method in {m.name: m for m in (*METHODS.values(), *more)}.values():
        if method.estimator is recursion and method.compared == "none":
            groups.setdefault(_essence(method), []).append(method)
    named = {", ".join(m.name for m in group): group[0] for group in groups.values()}
    return MappingProxyType(named)


def _essence(method: Method) -> tuple[Any, ...]:
    """Everything of a method that its credit depends on."""
    inside = (method.slots, method.gamma_token) if method.decision == "token" else ()
    return (method.decision, *inside, method.next_value, method.uses_critic)


def _size(turn: TurnView) -> int:
    return len(turn.token_ids)


def _known(number: float) -> float:
    return number if math.isfinite(number) else 0.0
