"""Exact solutions of small language problems, at the level of actions and at the level of tokens.

    action level   Q(o,a) = R(o,a) + γ E V(o′)                 V(o) = ⊕ₐ Q(o,a)
    token level    Q(o,w≤j) = γ_w V(o,w≤j)            j < n     V(o,w<j) = ⊕ Q(o,w<j,w) over w
                   Q(o,w≤n) = R(o,a) + γ E V(o′)      j = n

⊕ combines the values of all options into one value. The choice of ⊕ makes V an optimum (`best`), an
optimum with entropy or KL regularization (`soft`), or the value of a given policy (`expected`,
`regularized`). With γ_w = 1 the token level is BAD, the Bellman backup with action decomposition;
with γ_w = γ it is the naive backup of NTPO (both are from arXiv 2405.15821). S, A and M count
states, actions and nodes, as in `poad.theory.problems`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from poad.theory.problems import Floats, Ints, LanguageMDP, Tree

MAX_ITERATIONS = 1_000_000
Combine = Callable[[Floats, slice, Ints], Floats]
"""⊕. The arguments are the values of consecutive options, the slice of all options that they are,
and the [G] positions within the slice where each group of siblings begins. It returns [G] values.
"""


class ActionValues(NamedTuple):
    """Values at the action level."""

    q: Floats
    """[A]"""
    v: Floats
    """[S]"""


class TokenValues(NamedTuple):
    """Values at the token level. The state values are those of the S roots, `v[:S]`."""

    q: Floats
    """[M] Q of the token that leads to the node. NaN at roots, since no token leads there."""
    v: Floats
    """[M] V of the prefix that ends in the node. NaN at leaves, since nothing follows them."""


def best(q: Floats, options: slice, starts: Ints) -> Floats:
    """⊕ = max: the greedy optimum."""
    return np.maximum.reduceat(q, starts)


def soft(temperature: float, log_reference: Floats) -> Combine:
    """⊕ = α log Σ μ exp(q/α): the optimum when deviating from μ costs α·KL.

    `log_reference` is log μ of every option, [M] or [A]. With log μ = 0 everywhere, entropy takes
    the place of KL. Source: soft BAD; soft Q-learning (arXiv 1702.08165, eq. 5).

    Raises:
        ValueError: the temperature α is not positive. Use `best`, its limit for α → 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive (`best` is for 0).")

    def combine(q: Floats, options: slice, starts: Ints) -> Floats:
        # q holds the options of one slice in order, so the reference is cut to the same slice.
        logits = q / temperature + log_reference[options]
        top = np.maximum.reduceat(logits, starts)  # [G], for a log-sum-exp that cannot overflow
        sizes = np.append(starts[1:], len(q)) - starts
        total = np.add.reduceat(np.exp(logits - np.repeat(top, sizes)), starts)
        return temperature * (top + np.log(total))

    return combine


def expected(log_policy: Floats) -> Combine:
    """⊕ = Σ π q: the value of a policy. `log_policy` is log π of every option, [M] or [A]."""
    return regularized(0.0, log_policy, np.zeros_like(log_policy))


def regularized(temperature: float, log_policy: Floats, log_reference: Floats) -> Combine:
    """⊕ = Σ π (q − α log(π/μ)): the value of a policy when deviating from μ costs α·KL.

    Both logarithms are [M] or [A]. Options with log π = −∞ cost nothing. log μ must be finite.
    """
    # −∞ is replaced before the subtraction: 0 · (−∞) would be NaN.
    policy = np.exp(log_policy)
    cost = temperature * (np.where(policy > 0, log_policy, 0.0) - log_reference)

    def combine(q: Floats, options: slice, starts: Ints) -> Floats:
        return np.add.reduceat(policy[options] * (q - cost[options]), starts)

    return combine


def token_backup(
    mdp: LanguageMDP, next_value: Floats, combine: Combine = best, gamma_token: float = 1.0
) -> TokenValues:
    """Back up one action: from the values [S] of the next observation to every prefix.

    Raises:
        ValueError: `gamma_token` lies outside [0, 1].
    """
    _check_rate(gamma_token)
    q, v = np.full((2, len(mdp.tree.parent)), np.nan)
    q[mdp.tree.leaf] = mdp.action_values(next_value)
    # A level's options are all children of the level above, so deepest first, each level finds the
    # Q of all its options complete.
    for options, starts, parents in reversed(mdp.tree.levels):
        v[parents] = combine(q[options], options, starts)  # [options] -> [G]
        q[parents] = gamma_token * v[parents]
    q[: mdp.states] = np.nan  # no token leads to a root
    return TokenValues(q, v)


def solve_tokens(
    mdp: LanguageMDP, combine: Combine = best, gamma_token: float = 1.0
) -> TokenValues:
    """Find the fixed point at the token level: BAD or soft BAD for γ_w = 1, NTPO for less."""
    size = mdp.states
    value = _fixed_point(lambda v: token_backup(mdp, v, combine, gamma_token).v[:size], size)
    return token_backup(mdp, value, combine, gamma_token)


def solve_actions(mdp: LanguageMDP, combine: Combine = best) -> ActionValues:
    """Find the fixed point at the action level by value iteration: the reference optimum."""
    options = slice(0, len(mdp.state))
    value = _fixed_point(lambda v: combine(mdp.action_values(v), options, mdp.first), mdp.states)
    return ActionValues(mdp.action_values(value), value)


def _fixed_point(step: Callable[[Floats], Floats], size: int) -> Floats:
    """Iterate a contraction from zeros [size] until only rounding changes the values."""
    value, rounding = np.zeros(size), 4 * np.finfo(float).eps
    for _ in range(MAX_ITERATIONS):
        value, before = step(value), value
        change = np.abs(value - before).max()
        if not np.isfinite(change):
            raise ValueError("A value is not finite. Check the rewards and probabilities.")
        if change <= rounding * max(1, np.abs(value).max()):
            return value
    raise ValueError(
        f"The values did not converge in {MAX_ITERATIONS:,} iterations. Use a smaller gamma."
    )


def _check_rate(gamma_token: float) -> None:
    if not 0 <= gamma_token <= 1:
        raise ValueError(f"gamma_token is {gamma_token}; it must lie in [0, 1].")


def policy_values(
    mdp: LanguageMDP, log_action: Floats, *, gamma_token: float = 1.0, cost: Floats | None = None
) -> ActionValues:
    """Evaluate a policy over whole actions, log π [A], by linear equations instead of iteration.

        V(o) = Σₐ π(a) γ_w^{n−1} (R(o,a) − cost(a) + γ E V(o′))         q = R + γ E V(o′)

    The factor γ_w^{n−1} is the discount from the last token of an action to its first. `cost` [A]
    is paid for each action, for example α·log(π/μ).

    Raises:
        ValueError: `gamma_token` lies outside [0, 1].
    """
    _check_rate(gamma_token)
    share = np.exp(log_action) * gamma_token ** (mdp.tree.length - 1)  # [A] π γ_w^{n−1}
    reward = mdp.expected_reward - (0.0 if cost is None else np.where(share > 0, cost, 0.0))
    # V = W (R − cost) + γ W P V, where row o of W [S, A] holds the shares of o's actions and
    # P [A, S] the transitions: (1 − γ W P) V = W (R − cost).
    weight = np.zeros((mdp.states, len(mdp.state)))
    weight[mdp.state, np.arange(len(mdp.state))] = share
    system = np.eye(mdp.states) - mdp.gamma * (weight @ mdp.transition)
    value: Floats = np.linalg.solve(system, weight @ reward).astype(float)
    return ActionValues(mdp.action_values(value), value)


def soft_policy(values: TokenValues, tree: Tree, temperature: float, reference: Floats) -> Floats:
    """Log-probability [M] of every token under the soft optimum: log μ + (Q − V)/α; 0 at roots.

    `reference` is the `log_reference` that was given to `soft`.
    """
    inner = tree.parent >= 0  # [M] bool: all nodes but the roots
    log_policy = np.zeros(len(tree.parent))
    # Q belongs to the node of the token, V to the prefix before it, which is the parent's.
    advantage = values.q[inner] - values.v[tree.parent[inner]]
    log_policy[inner] = reference[inner] + advantage / temperature
    return log_policy


def greedy_tokens(mdp: LanguageMDP, values: TokenValues) -> Ints:
    """[S] the action that results from taking the best token at every prefix."""
    following = np.full(len(values.q), -1)  # [M] the best child of each node; −1 at leaves
    for options, starts, parents in mdp.tree.levels:
        groups = np.split(values.q[options], starts[1:])
        # Child indices count within their group, groups within the slice, the slice within all M.
        following[parents] = options.start + starts + [int(group.argmax()) for group in groups]
    node = np.arange(mdp.states)  # [S] walk from all roots at once, and stay at leaves
    for _ in mdp.tree.levels:
        node = np.where(following[node] >= 0, following[node], node)
    action = np.full(len(values.q), -1)
    action[mdp.tree.leaf] = np.arange(len(mdp.state))
    return action[node]


def greedy_actions(mdp: LanguageMDP, q: Floats) -> Ints:
    """[S] the best action of every state, by values [A] of whole actions."""
    groups = np.split(q, mdp.first[1:])  # one array of values per state
    return mdp.first + [int(group.argmax()) for group in groups]


def best_completion(tree: Tree, action_value: Floats, gamma_token: float) -> Floats:
    """[M] NTPO's greedy value: the max over an option's completions of γ_w^{|a|−j}·Q(o,a).

    The actions are enumerated, without any backup. `action_value` [A] is R + γ E V(o′). The result
    is NaN at roots.
    """
    value = np.full(len(tree.parent), -np.inf)
    for path, length, q in zip(tree.path, tree.length, action_value, strict=True):
        left = np.arange(length - 1, -1, -1)  # |a| − j for j = 1 … |a|
        np.maximum.at(value, path[:length], gamma_token**left * q)
    value[tree.parent < 0] = np.nan
    return value
