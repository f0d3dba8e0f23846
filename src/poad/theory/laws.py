"""The laws that `poad verify` checks, on problems whose answers are exact.

Every law is a number: the largest deviation found, and the bound it must stay within. Exact laws
compare two computations that share no code where they differ (a backup over tokens and value
iteration over actions, linear equations, or an enumeration). The estimators of `poad.credit` are
given sampled episodes and exact values, and judged in standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poad.credit import METHODS
from poad.theory.exact import (
    TokenValues,
    best,
    best_completion,
    expected,
    greedy_actions,
    greedy_tokens,
    policy_values,
    regularized,
    soft,
    soft_policy,
    solve_actions,
    solve_tokens,
    token_backup,
)
from poad.theory.problems import (
    Floats,
    Ints,
    LanguageMDP,
    Sign,
    play,
    problem_of,
    random_policy,
    random_problem,
)
from poad.theory.sampled import Judge

EXACT = 1e-10
"""What rounding may do to a law."""
HALFWAY = 0.9
"""A γ_w between γ and 1, where sampled credit is checked too."""
ERRORS = 6.0
"""Standard errors that a mean may lie from the truth; chance alone passes them once in 10⁹."""
GAMMA_TOKENS = (1.0, 0.99, 0.95, 0.9, 0.8, 0.5)
LONGEST = 200
"""Tokens of the longest action for which the gap is measured."""
TEMPERATURE = 0.3
EPISODES, TURNS = 16_384, 8
"""For advantages; what goes on then is cut, and bootstraps."""
BATCHES, RETURNS = (64, 256, 1024, 4096), 65_536
"""Episodes per estimate, to see the errors shrink, and in all for returns."""
TRACES = ((0.95, 1.0), (1.0, 1.0), (0.95, 0.95))
"""(λ after a turn, λ inside it): the default, none that fades, and as published."""
SIGNS: tuple[Sign, ...] = ("positive", "negative")


@dataclass(frozen=True)
class Law:
    """One thing that must hold, and how far it was from holding."""

    name: str
    measured: str
    """What is compared."""
    deviation: float
    """The largest found."""
    bound: float
    cases: int
    """Comparisons made."""

    @property
    def holds(self) -> bool:
        """Whether the deviation is within its bound; a NaN is not."""
        return self.deviation <= self.bound


@dataclass(frozen=True)
class Gap:
    """How much NTPO undervalues the first token of an action, by the action's length."""

    gamma_token: float
    length: list[int]
    measured: list[float]
    """1 − Q_NTPO(o,w₁) / Q(o,a), from the solver."""
    closed: list[float]
    """1 − γ_w^{n−1}."""


@dataclass(frozen=True)
class Preference:
    """How often NTPO's greedy policy is not the optimum, in states that offer several actions."""

    sign: Sign
    """Of the rewards."""
    gamma_token: float
    states: list[int]
    """By length of the optimal action, from 1 token: how many states."""
    differs: list[int]
    """In how many of them NTPO's greedy action is another."""
    optimal_length: float
    """Mean tokens of the optimal action."""
    greedy_length: float
    """Mean tokens of NTPO's greedy action."""

    @property
    def shares(self) -> list[float]:
        """`differs` as a share of `states`, by length; NaN where there were none."""
        pairs = zip(self.differs, self.states, strict=True)
        return [part / of if of else math.nan for part, of in pairs]

    @property
    def rate(self) -> float:
        """The share of all states in which NTPO's greedy action is not the optimum."""
        return sum(self.differs) / max(sum(self.states), 1)


@dataclass(frozen=True)
class Convergence:
    """How the mean of sampled credit nears its exact value."""

    method: str
    episodes: list[int]
    error: list[float]
    """Root mean squared error over states and tokens, in units of the return."""

    @property
    def power(self) -> float:
        """The power of N with which the error shrinks; -1/2 for what has no bias."""
        return float(np.polyfit(np.log(self.episodes), np.log(self.error), 1)[0])


@dataclass(frozen=True)
class Findings:
    """All that was found out."""

    laws: list[Law]
    gaps: list[Gap]
    preferences: list[Preference]
    convergences: list[Convergence]

    @property
    def hold(self) -> bool:
        """Whether every law does."""
        return all(law.holds for law in self.laws)


def verify(*, states: int, actions: int, depth: int, problems: int, seed: int) -> Findings:
    """Check everything on random problems.

    Args:
        states: of each problem.
        actions: offered by a state, at most.
        depth: tokens of an action, at most.
        problems: with rewards of any sign, with positive ones and with negative ones, each.
        seed: of all chance.
    """
    size = {"states": states, "actions": actions, "depth": depth, "vocabulary": max(8, actions)}
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3 * problems + 2)]
    *drawn, gap_seed, sample_seed = seeds
    signs: dict[Sign, list[LanguageMDP]] = {
        sign: [random_problem(s, sign=sign, **size) for s in drawn[i::3]]
        for i, sign in enumerate(("any", *SIGNS))
    }
    every = [mdp for group in signs.values() for mdp in group]
    policies = [random_policy(mdp, seed + i) for i, mdp in enumerate(every)]
    references = [random_policy(mdp, seed + len(every) + i) for i, mdp in enumerate(every)]
    gap_law, gaps = ntpo_gap(gap_seed)
    preferred = [length_preference(signs[sign], sign, depth) for sign in SIGNS]
    sampled, convergences = estimator_laws(sample_seed)
    return Findings(
        laws=[
            *optimum_laws(every),
            gap_law,
            *ntpo_laws(every),
            *(law for law, _ in preferred),
            *soft_laws(every, references),
            *evaluation_laws(every, policies, references),
            *sampled,
        ],
        gaps=gaps,
        preferences=[row for _, rows in preferred for row in rows],
        convergences=convergences,
    )


def _law(
    name: str,
    measured: str,
    deviations: Iterable[Floats],
    bound: float = EXACT,
    empty: float = math.nan,
) -> Law:
    """A law from all deviations; where nothing could be compared, `empty` is the largest."""
    found = np.concatenate([np.zeros(0), *map(np.ravel, deviations)])
    largest = float(np.abs(found).max()) if len(found) else empty
    return Law(name, measured, largest, bound, len(found))


def optimum_laws(problems: Sequence[LanguageMDP]) -> list[Law]:
    """BAD has the values and the greedy policy of the action level."""
    value, policy, earned = [], [], []
    for mdp in problems:
        action, token = solve_actions(mdp), solve_tokens(mdp)
        value += [token.q[mdp.tree.leaf] - action.q, token.v[: mdp.states] - action.v]
        chosen = greedy_tokens(mdp, token)
        policy.append(1.0 * (chosen != greedy_actions(mdp, action.q)))
        with np.errstate(divide="ignore"):
            log_action = np.log(1.0 * np.isin(np.arange(len(mdp.state)), chosen))
        earned.append(policy_values(mdp, log_action).v - action.v)
    return [
        _law("BAD is the action-level optimum", "Q(last token) − Q*, V(o) − V*", value),
        _law("BAD's greedy policy is optimal", "states where it is another", policy, 0),
        _law("... and earns the optimum", "its V by linear equations − V*", earned),
    ]


def ntpo_gap(seed: int) -> tuple[Law, list[Gap]]:
    """NTPO's gap along fixed completions of 1 to 200 tokens, for equal V(o′).

        Q(o,a) − Q_NTPO(o,w≤j) = (1 − γ_w^{n−j}) Q(o,a)          (arXiv 2405.15821)

    Actions part at their first token, so each has one completion. V(o′) is that of the optimum.
    """
    lengths = range(1, LONGEST + 1)
    offers = [[(n, *[0] * (n - 1)) for n in lengths] for _ in range(2)]
    mdp = problem_of(offers, np.random.default_rng(seed), sign="positive")
    optimum, tree = solve_actions(mdp), mdp.tree
    left = tree.length[:, None] - 1 - np.arange(tree.path.shape[1])
    real = tree.path >= 0
    deviations, gaps = [], []
    for gamma_token in GAMMA_TOKENS:
        naive = token_backup(mdp, optimum.v, best, gamma_token).q[tree.path]
        gap = optimum.q[:, None] - naive
        closed = (1 - gamma_token ** np.maximum(left, 0)) * optimum.q[:, None]
        deviations.append((gap - closed)[real])
        relative = (gap / optimum.q[:, None])[:LONGEST, 0]
        formula = [1 - gamma_token ** (n - 1) for n in lengths]
        gaps.append(Gap(gamma_token, list(lengths), relative.tolist(), formula))
    measured = f"the gap − this, j ≤ n ≤ {LONGEST}, six γ_w"
    return _law("NTPO's gap is (1 − γ_w^{n−j}) Q(o,a)", measured, deviations), gaps


def ntpo_laws(problems: Sequence[LanguageMDP]) -> list[Law]:
    """What NTPO maximizes, and that it is BAD once γ_w is 1."""
    greedy, same = [], []
    for mdp in problems:
        tree, actions = mdp.tree, solve_actions(mdp)
        for gamma_token in GAMMA_TOKENS:
            naive = solve_tokens(mdp, best, gamma_token)
            found = best_completion(tree, naive.q[tree.leaf], gamma_token) - naive.q
            greedy.append(found[mdp.states :])
            if gamma_token == 1:
                same.append(naive.q[tree.leaf] - actions.q)
    completions = "Q − max γ_w^{|a|−j}(R + γ E V(o′))"
    return [
        _law("NTPO's greedy value", completions, greedy),
        _law("NTPO with γ_w = 1 is BAD", "Q(last token) − Q*", same),
    ]


def length_preference(
    problems: Sequence[LanguageMDP], sign: Sign, depth: int
) -> tuple[Law, list[Preference]]:
    """NTPO leaves its own best action only for a shorter one (rewards > 0), or a longer (< 0).

    It ranks actions by γ_w^{n−1}·Q(o,a), Q being its value at the last token. How often that is not
    the optimum of the action level is counted, by the length of the optimal action.
    """
    wrong, rows = [], []
    direction = 1 if sign == "positive" else -1
    optima = [greedy_actions(mdp, solve_actions(mdp).q) for mdp in problems]
    for gamma_token in GAMMA_TOKENS:
        optimal, greedy, differs = [], [], []
        for mdp, target in zip(problems, optima, strict=True):
            length = mdp.tree.length
            several = np.bincount(mdp.state) > 1
            naive = solve_tokens(mdp, best, gamma_token)
            chosen = greedy_tokens(mdp, naive)
            own_best = greedy_actions(mdp, naive.q[mdp.tree.leaf])
            left = chosen != own_best
            wrong.append(1.0 * (direction * (length[chosen] - length[own_best]) >= 0)[left])
            optimal.append(length[target][several])
            greedy.append(length[chosen][several])
            differs.append((chosen != target)[several])
        at, away = np.concatenate(optimal), np.concatenate(differs)
        rows.append(
            Preference(
                sign,
                gamma_token,
                np.bincount(at, minlength=depth + 1)[1:].tolist(),
                np.bincount(at[away], minlength=depth + 1)[1:].tolist(),
                _mean(at),
                _mean(np.concatenate(greedy)),
            )
        )
    way, values = ("shorter", "> 0") if sign == "positive" else ("longer", "< 0")
    name = f"NTPO goes {way} where values {values}"
    return _law(name, f"choices against its Q, not {way}", wrong, 0, empty=0.0), rows


def _mean(numbers: Ints) -> float:
    return float(numbers.mean()) if len(numbers) else math.nan


def soft_laws(problems: Sequence[LanguageMDP], references: Sequence[Floats]) -> list[Law]:
    """Soft BAD is the action level's soft optimum, for entropy (μ = 1) and for KL to a policy μ."""
    laws = []
    for label in ("entropy", "KL"):
        value, product, consistent, earned = [], [], [], []
        for mdp, policy in zip(problems, references, strict=True):
            tree, n = mdp.tree, mdp.states
            log_mu = policy if label == "KL" else np.zeros_like(policy)
            mu = tree.path_sum(log_mu)
            action = solve_actions(mdp, soft(TEMPERATURE, mu))
            token = solve_tokens(mdp, soft(TEMPERATURE, log_mu))
            value += [token.q[tree.leaf] - action.q, token.v[:n] - action.v]
            log_pi = tree.path_sum(soft_policy(token, tree, TEMPERATURE, log_mu))
            advantage = action.q - action.v[mdp.state]
            product.append(np.exp(log_pi) - np.exp(mu + advantage / TEMPERATURE))
            cost = TEMPERATURE * (log_pi - mu)
            consistent.append(token.v[:n][mdp.state] - (mdp.whole(token.v[:n]) - cost))
            earned.append(policy_values(mdp, log_pi, cost=cost).v - action.v)
        name = f"Soft BAD, {label}"
        laws += [
            _law(f"{name}: the soft optimum", "Q, V − the action level's", value),
            _law(f"{name}: its policy", "Π π(w) − μ(a) exp((Q − V)/α)", product),
            _law(
                f"{name}: soft consistency",
                "V − [R + γ E V(o′) − α Σ log π/μ]",
                consistent,
            ),
            _law(f"{name}: what it earns", "V by linear equations − V(o)", earned),
        ]
    return laws


def evaluation_laws(
    problems: Sequence[LanguageMDP], policies: Sequence[Floats], references: Sequence[Floats]
) -> list[Law]:
    """A random token policy has the same values whether tokens or actions are counted."""
    bad, naive, entropy, kl = [], [], [], []
    for mdp, policy, log_mu in zip(problems, policies, references, strict=True):
        tree, n = mdp.tree, mdp.states
        log_action = tree.path_sum(policy)
        for gamma_token in GAMMA_TOKENS:
            token = solve_tokens(mdp, expected(policy), gamma_token)
            action = policy_values(mdp, log_action, gamma_token=gamma_token)
            gap = [token.q[tree.leaf] - action.q, token.v[:n] - action.v]
            (bad if gamma_token == 1 else naive).extend(gap)
        for found, reference in ((entropy, np.zeros_like(policy)), (kl, log_mu)):
            cost = TEMPERATURE * (log_action - tree.path_sum(reference))
            token = solve_tokens(mdp, regularized(TEMPERATURE, policy, reference))
            found.append(token.v[:n] - policy_values(mdp, log_action, cost=cost).v)
    linear = "by tokens − by linear equations"
    return [
        _law("A random policy's values, BAD", linear, bad),
        _law("A random policy's values, NTPO", linear, naive),
        _law("A random policy's values, entropy", linear, entropy),
        _law("A random policy's values, KL", linear, kl),
    ]


def estimator_laws(seed: int) -> tuple[list[Law], list[Convergence]]:
    """The sampled credit of `poad.credit`, with exact values for a critic, has the exact mean.

    E[A | state, token] = Q − V of the method's own backup, for the `TRACES`; returns without a
    critic have mean Q. One small problem, a random policy, and many episodes; with a small γ and
    values away from 0, so that a discount in the wrong place shows. `archer_adrl` is not among
    them: the value it goes on from is no backup's, so that nothing exact is to be had.
    """
    size = {"states": 5, "actions": 5, "depth": 4}
    mdp = random_problem(seed, gamma=0.8, sign="positive", **size)
    policy = random_policy(mdp, seed)
    tree, log_action, rng = mdp.tree, mdp.tree.path_sum(policy), np.random.default_rng(seed)
    bad = solve_tokens(mdp, expected(policy))
    naive = solve_tokens(mdp, expected(policy), mdp.gamma)
    halfway = solve_tokens(mdp, expected(policy), HALFWAY)
    ahead, of_naive, of_halfway = (v.q - v.v[tree.parent] for v in (bad, naive, halfway))
    whole = policy_values(mdp, log_action)
    turn, tokens = whole.q - whole.v[mdp.state], {"slots": "tokens"}
    of_turn = bad.q - bad.v[tree.root]
    between = tokens | {"gamma_token": HALFWAY}
    cases: list[tuple[str, str, dict[str, Any], TokenValues, Floats, bool]] = [
        ("poad", "poad", {}, bad, ahead, False),
        ("poad, all slots", "poad", tokens, bad, ahead, False),
        (f"poad, γ_w {HALFWAY}", "poad", between, halfway, of_halfway, False),
        ("ntpo", "ntpo", {}, naive, of_naive, False),
        ("turn_ppo", "turn_ppo", {}, bad, of_turn, False),
        ("twosome", "twosome", {}, bad, turn, True),
        ("glam", "glam", {}, bad, turn, True),
    ]
    played = play(mdp, log_action, EPISODES, rng, TURNS)
    laws, convergences = [], []
    for name, method, options, values, truth, by_action in cases:
        by_turn = METHODS[method].decision == "turn"
        found = []
        for lam, lam_token in TRACES[:2] if by_turn else TRACES:
            judge = Judge(METHODS[method], lam, options | {"lam_token": lam_token}, by_action)
            sums = judge.sums(mdp, played, values, len(truth))
            found.append(sums.errors(truth))
            if (lam, lam_token) == TRACES[0]:
                error = sums.error(truth, BATCHES)
                convergences.append(Convergence(name, [*BATCHES], error))
        minus = "Q(o,a) − V(o)" if by_action else "Q − V(o)" if by_turn else "Q − V"
        measured = f"mean − ({minus}), standard errors"
        laws.append(_law(f"Sampled credit, {name}", measured, found, ERRORS))
    played = play(mdp, log_action, RETURNS, rng, 1000)
    returns = Judge(METHODS["reinforce"], 1.0).sums(mdp, played, bad, len(bad.q))
    nearing = Convergence("reinforce", [*BATCHES], returns.error(bad.q, BATCHES))
    slope, miss = np.array([nearing.power + 0.5]), [returns.errors(bad.q)]
    laws += [
        _law("Sampled returns, reinforce", "mean − Q, standard errors", miss, ERRORS),
        _law("... their error shrinks as 1/√N", "power of N + 1/2, N 64 to 4096", [slope], 0.1),
    ]
    return laws, [*convergences, nearing]
