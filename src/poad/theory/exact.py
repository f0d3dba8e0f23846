"""Exact solutions of small language problems, action by action and token by token.

    action level   Q(o,a) = R(o,a) + γ E V(o′)                 V(o) = ⊕ₐ Q(o,a)
    token level    Q(o,w≤j) = γ_w V(o,w≤j)            j < n     V(o,w<j) = ⊕ Q(o,w<j,w) over w
                   Q(o,w≤n) = R(o,a) + γ E V(o′)      j = n

⊕ says how options become one value. It makes V an optimum (`best`), an entropy- or KL-regularized
optimum (`soft`) or what a given policy earns (`expected`, `regularized`). γ_w = 1 is BAD, the
Bellman backup with action decomposition; γ_w = γ the naive one of NTPO (arXiv 2405.15821).
S, A and M count states, actions and nodes, as in `poad.theory.problems`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from poad.theory.problems import Floats, Ints, LanguageMDP, Tree

ITERATIONS = 1_000_000
"""Iterations after which a fixed point is given up."""
Combine = Callable[[Floats, slice, Ints], Floats]
"""⊕: from the values of options, which options they are, and where groups begin, to a value per
group."""


class ActionValues(NamedTuple):
    """Values at the action level."""

    q: Floats
    """[A]"""
    v: Floats
    """[S]"""


class TokenValues(NamedTuple):
    """Values at the token level; those of the S roots, `v[:S]`, are the state values."""

    q: Floats
    """[M] Q of the token that leads to the node; NaN at roots, which no token leads to."""
    v: Floats
    """[M] V of the prefix that ends in the node; NaN at leaves, which nothing continues."""


def best(q: Floats, options: slice, starts: Ints) -> Floats:
    """⊕ = max: the greedy optimum."""
    return np.maximum.reduceat(q, starts)


def soft(temperature: float, log_reference: Floats) -> Combine:
    """⊕ = α log Σ μ exp(q/α): the optimum when straying from μ costs α·KL.

    `log_reference` holds log μ of every option, [M] or [A]; all 0 for entropy instead of KL.
    Source: soft BAD; soft Q-learning (arXiv 1702.08165, eq. 5).

    Raises:
        ValueError: a temperature α that is not above 0; `best` is what it tends to there.
    """
    if not temperature > 0:
        raise ValueError(f"The temperature is {temperature}; it must be above 0 (`best` is its 0).")

    def combine(q: Floats, options: slice, starts: Ints) -> Floats:
        logits = q / temperature + log_reference[options]
        top = np.maximum.reduceat(logits, starts)
        sizes = np.append(starts[1:], len(q)) - starts
        total = np.add.reduceat(np.exp(logits - np.repeat(top, sizes)), starts)
        return temperature * (top + np.log(total))

    return combine


def expected(log_policy: Floats) -> Combine:
    """⊕ = Σ π q: what a policy earns. `log_policy` holds log π of every option, [M] or [A]."""

    def combine(q: Floats, options: slice, starts: Ints) -> Floats:
        return np.add.reduceat(np.exp(log_policy[options]) * q, starts)

    return combine


def regularized(temperature: float, log_policy: Floats, log_reference: Floats) -> Combine:
    """⊕ = Σ π (q − α log(π/μ)): what a policy earns when straying from μ costs α·KL.

    Logarithms are [M] or [A]. What π never takes, log π = −∞, costs nothing; log μ is finite.
    """
    policy = np.exp(log_policy)
    cost = temperature * (np.where(policy > 0, log_policy, 0.0) - log_reference)

    def combine(q: Floats, options: slice, starts: Ints) -> Floats:
        return np.add.reduceat(policy[options] * (q - cost[options]), starts)

    return combine


def token_backup(
    mdp: LanguageMDP, beyond: Floats, combine: Combine = best, gamma_token: float = 1.0
) -> TokenValues:
    """One action's backup, from the values [S] of the observation after it to every prefix.

    Q(o,w≤j) = γ_w ⊕ Q(o,w≤j,w) inside the action, and R + γ E beyond(o′) at its last token.

    Raises:
        ValueError: a `gamma_token` outside [0, 1].
    """
    _check_rate(gamma_token)
    q, v = np.full((2, len(mdp.tree.parent)), np.nan)
    q[mdp.tree.leaf] = mdp.whole(beyond)
    for options, starts, parents in reversed(mdp.tree.levels):
        v[parents] = combine(q[options], options, starts)
        q[parents] = gamma_token * v[parents]
    q[: mdp.states] = np.nan
    return TokenValues(q, v)


def solve_tokens(
    mdp: LanguageMDP, combine: Combine = best, gamma_token: float = 1.0
) -> TokenValues:
    """The token level's fixed point: BAD or soft BAD with γ_w = 1, NTPO below."""
    size = mdp.states
    value = _fixed_point(lambda v: token_backup(mdp, v, combine, gamma_token).v[:size], size)
    return token_backup(mdp, value, combine, gamma_token)


def solve_actions(mdp: LanguageMDP, combine: Combine = best) -> ActionValues:
    """The action level's fixed point, by value iteration: the optimum the methods are held to."""
    options = slice(0, len(mdp.state))
    value = _fixed_point(lambda v: combine(mdp.whole(v), options, mdp.first), mdp.states)
    return ActionValues(mdp.whole(value), value)


def _fixed_point(step: Callable[[Floats], Floats], size: int) -> Floats:
    """Iterate a contraction until rounding is all that is left."""
    value, rounding = np.zeros(size), 4 * np.finfo(float).eps
    for _ in range(ITERATIONS):
        value, before = step(value), value
        change = np.abs(value - before).max()
        if not np.isfinite(change):
            raise ValueError("A value is not finite; are all rewards and probabilities?")
        if change <= rounding * max(1, np.abs(value).max()):
            return value
    raise ValueError(
        f"The values did not settle in {ITERATIONS:,} iterations: gamma is too near 1."
    )


def _check_rate(gamma_token: float) -> None:
    if not 0 <= gamma_token <= 1:
        raise ValueError(f"gamma_token is {gamma_token}; a discount lies in [0, 1].")


def policy_values(
    mdp: LanguageMDP,
    log_action: Floats,
    *,
    gamma_token: float = 1.0,
    cost: Floats | None = None,
) -> ActionValues:
    """What a policy over whole actions, log π [A], earns: by linear equations, not by iteration.

    V = Σₐ π(a) γ_w^{n−1} (R − cost + γ E V(o′)), where the factor is what γ_w leaves of an action's
    worth at its root. `cost` [A] is paid per action, as α·log(π/μ). `q` is R + γ E V(o′).

    Raises:
        ValueError: a `gamma_token` outside [0, 1].
    """
    _check_rate(gamma_token)
    share = np.exp(log_action) * gamma_token ** (mdp.tree.length - 1)
    reward = mdp.expected_reward - (0.0 if cost is None else np.where(share > 0, cost, 0.0))
    weight = np.zeros((mdp.states, len(mdp.state)))
    weight[mdp.state, np.arange(len(mdp.state))] = share
    system = np.eye(mdp.states) - mdp.gamma * (weight @ mdp.transition)
    value: Floats = np.linalg.solve(system, weight @ reward).astype(float)
    return ActionValues(mdp.whole(value), value)


def soft_policy(values: TokenValues, tree: Tree, temperature: float, reference: Floats) -> Floats:
    """Log-probability of every token, [M], under the soft optimum: log μ + (Q − V)/α; 0 at roots.

    What `soft` is the log-sum-exp of; `reference` is its `log_reference`.
    """
    inner = tree.parent >= 0
    log_policy = np.zeros(len(tree.parent))
    ahead = values.q[inner] - values.v[tree.parent[inner]]
    log_policy[inner] = reference[inner] + ahead / temperature
    return log_policy


def greedy_tokens(mdp: LanguageMDP, values: TokenValues) -> Ints:
    """[S] the action that the best token spells, one token after the other."""
    following = np.full(len(values.q), -1)
    for options, starts, parents in mdp.tree.levels:
        groups = np.split(values.q[options], starts[1:])
        following[parents] = options.start + starts + [int(group.argmax()) for group in groups]
    node = np.arange(mdp.states)
    for _ in mdp.tree.levels:
        node = np.where(following[node] >= 0, following[node], node)
    action = np.full(len(values.q), -1)
    action[mdp.tree.leaf] = np.arange(len(mdp.state))
    return action[node]


def greedy_actions(mdp: LanguageMDP, q: Floats) -> Ints:
    """[S] the best action of every state by values of whole actions, [A]."""
    groups = np.split(q, mdp.first[1:])
    return mdp.first + [int(group.argmax()) for group in groups]


def best_completion(tree: Tree, worth: Floats, gamma_token: float) -> Floats:
    """[M] the max over an option's completions of γ_w^{|a|−j}·worth(a): NTPO's greedy value.

    Enumerated action by action, without any backup. `worth` [A] is R + γ E V(o′); NaN at roots.
    """
    value = np.full(len(tree.parent), -np.inf)
    for path, length, whole in zip(tree.path, tree.length, worth, strict=True):
        left = np.arange(length - 1, -1, -1)
        np.maximum.at(value, path[:length], gamma_token**left * whole)
    value[tree.parent < 0] = np.nan
    return value
