"""The table of methods, and `token_credit`, the one way in.

Our trainer and other people's call it with the same flat token tensors; it lays the rows out as a
`TokenStream` and ends in one recursion.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from poad.credit.method import Method
from poad.credit.rates import Trace
from poad.credit.recursion import Credit
from poad.credit.slots import Slots, TokenStream
from poad.errors import ConfigError, did_you_mean, imported

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
            Method(
                name="grpo",
                summary="Critic-free: an episode's return beside those of its group, which began "
                "alike, for each of its tokens (arXiv 2402.03300).",
                decision="turn",
                uses_critic=False,
                compared="episodes",
            ),
            Method(
                name="gigpo",
                summary="As grpo, and each turn's return beside those of the group's turns behind "
                "the same prompt (arXiv 2505.10978).",
                decision="turn",
                uses_critic=False,
                compared="steps",
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
    names = vars(imported(module, where))
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
    _expect_all(method, trace, bits)
    return method.credit(stream, rates)


def _expect_all(method: Method, trace: Trace, bits: Tensor | None) -> None:
    """Refuse methods and traces that need more than they were given (ValueError)."""
    if bits is None and trace == "bit":
        raise ValueError('trace = "bit" needs `bits`, the entropy of each decision, [B, L].')
    if method.compared != "none":
        raise ValueError(f"{method.name} compares episodes; call poad.credit.group_credit.")
