"""The laws that `poad verify` checks, on problems whose answers are exact.

Every law is measured by the largest deviation that was found, which must stay within a bound. Exact
laws compare two independent computations: a backup over tokens on one side, and on the other value
iteration over actions, linear equations, or an enumeration. The estimators of `poad.credit` get
sampled episodes and exact values, and their deviations are measured in standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from poad.credit import METHODS, token_credit
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
    problem_with,
    random_policy,
    random_problem,
    sample_episodes,
)
from poad.theory.sampled import CreditEstimator, decision_bits, token_stream
from poad.theory.signal import Gains, tabulate, trace_out

ROUNDING = 1e-10
"""The bound of exact laws."""
STANDARD_ERRORS = 6.0
"""The bound of laws about means. By chance alone, one mean in 10⁹ exceeds it."""
GAMMA_TOKENS = (1.0, 0.99, 0.95, 0.9, 0.8, 0.5)
MAX_LENGTH = 200
"""The length in tokens of the longest action for which the gap is measured."""
TEMPERATURE = 0.3
GAMMA_SAMPLED, GAMMA_TOKEN_BETWEEN = 0.8, 0.9
"""γ of the problem for sampled credit, and a γ_w between γ and 1."""
EPISODES, TURNS = 16_384, 8
"""For advantages. Episodes that are cut after so many turns bootstrap."""
RETURN_EPISODES = 65_536
"""For returns without a critic."""
IDENTITY_EPISODES = 16
"""For identities, which hold episode by episode."""
SAMPLE_SIZES = (64, 256, 1024, 4096)
"""Numbers of episodes per estimate, which show how the error shrinks."""
TRACES = ((0.95, 1.0), (1.0, 1.0), (0.95, 0.95))
"""(λ after a turn, λ inside it): the default, no decay at all, and the paper's published code."""
SIGNS: tuple[Sign, ...] = ("positive", "negative")


@dataclass(frozen=True)
class Law:
    """A law and the largest deviation from it."""

    name: str
    measured: str
    """The quantity that should be 0. SE means in standard errors of the mean."""
    deviation: float
    """Its largest absolute value over all cases."""
    bound: float
    cases: int
    """The number of comparisons."""

    @property
    def holds(self) -> bool:
        """True if the deviation is within the bound. NaN never is."""
        return self.deviation <= self.bound


@dataclass(frozen=True)
class Gap:
    """NTPO's undervaluation of an action's first token, by the length of the action."""

    gamma_token: float
    length: list[int]
    measured: list[float]
    """1 − Q_NTPO(o,w₁) / Q(o,a), by the solver."""
    closed: list[float]
    """1 − γ_w^{n−1}, the closed form."""


@dataclass(frozen=True)
class Preference:
    """How often NTPO's greedy action is not the optimum, in states that offer several actions."""

    sign: Sign
    """The sign of the rewards."""
    gamma_token: float
    states: list[int]
    """The number of states, by the length of the optimal action from 1 token on."""
    differs: list[int]
    """The number of those where NTPO's greedy action differs."""
    optimal_length: float
    """The mean number of tokens of the optimal action."""
    greedy_length: float
    """The mean number of tokens of NTPO's greedy action."""

    @property
    def shares(self) -> list[float]:
        """`differs` as a share of `states`, by length; NaN where there are no states."""
        pairs = zip(self.differs, self.states, strict=True)
        return [part / of if of else math.nan for part, of in pairs]

    @property
    def rate(self) -> float:
        """The share of all states in which NTPO's greedy action is not the optimum."""
        return sum(self.differs) / max(sum(self.states), 1)


@dataclass(frozen=True)
class Convergence:
    """The error of sampled credit, by the number of episodes."""

    method: str
    episodes: list[int]
    error: list[float]
    """The root mean squared error over states and tokens, in units of the return."""

    @property
    def power(self) -> float:
        """The exponent of N in a power law for the error; -1/2 for an unbiased estimator."""
        return float(np.polyfit(np.log(self.episodes), np.log(self.error), 1)[0])


@dataclass(frozen=True)
class Findings:
    """The results of `verify`."""

    laws: list[Law]
    gaps: list[Gap]
    preferences: list[Preference]
    convergences: list[Convergence]
    gains: list[Gains]
    """The signal of token credit, as printed."""
    curves: list[Gains]
    """The same, as drawn."""

    @property
    def hold(self) -> bool:
        """True if every law holds."""
        return all(law.holds for law in self.laws)


def verify(*, states: int, actions: int, depth: int, problems: int, seed: int) -> Findings:
    """Check all laws on random problems.

    Args:
        states: the number of states of each problem.
        actions: the largest number of actions that a state offers.
        depth: the largest number of tokens in an action.
        problems: the number of problems with rewards of any sign. There are as many again with
            positive rewards, and with negative rewards.
        seed: determines all random draws.
    """
    size = {"states": states, "actions": actions, "depth": depth, "vocabulary": max(8, actions)}
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3 * problems + 2)]
    *drawn, gap_seed, sample_seed = seeds
    # Every third seed belongs to the same sign of the rewards.
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
            *identity_laws(every, policies, sample_seed),
            *sampled,
        ],
        gaps=gaps,
        preferences=[row for _, rows in preferred for row in rows],
        convergences=convergences,
        gains=tabulate(),
        curves=trace_out(),
    )


def _law(
    name: str,
    measured: str,
    deviations: Iterable[Floats],
    bound: float = ROUNDING,
    empty: float = math.nan,
) -> Law:
    """Make a law from all deviations. If there are none, the deviation is `empty`."""
    found = np.concatenate([np.zeros(0), *map(np.ravel, deviations)])
    largest = float(np.abs(found).max()) if len(found) else empty
    return Law(name, measured, largest, bound, len(found))


def optimum_laws(problems: Sequence[LanguageMDP]) -> list[Law]:
    """BAD has the values and the greedy policy of the action level (arXiv 2405.15821)."""
    value, policy, earned = [], [], []
    for mdp in problems:
        action, token = solve_actions(mdp), solve_tokens(mdp)
        value += [token.q[mdp.tree.leaf] - action.q, token.v[: mdp.states] - action.v]
        chosen = greedy_tokens(mdp, token)
        policy.append(1.0 * (chosen != greedy_actions(mdp, action.q)))
        with np.errstate(divide="ignore"):  # log π [A] of a deterministic policy: 0 or −∞
            log_action = np.log(1.0 * np.isin(np.arange(len(mdp.state)), chosen))
        earned.append(policy_values(mdp, log_action).v - action.v)
    return [
        _law("BAD is the optimum", "Q(last token) − Q*, V − V*", value),
        _law("BAD's greedy policy", "states where it differs", policy, 0),
        _law("BAD's greedy return", "V by linear equations − V*", earned),
    ]


def ntpo_gap(seed: int) -> tuple[Law, list[Gap]]:
    """Measure NTPO's gap for actions of 1 to 200 tokens.

        Q(o,a) − Q_NTPO(o,w≤j) = (1 − γ_w^{n−j}) Q(o,a)          (arXiv 2405.15821)

    All actions differ in their first token, so a prefix has only one completion. Both sides use the
    optimal V(o′).
    """
    lengths = range(1, MAX_LENGTH + 1)
    # The action of length n is the token n followed by n − 1 zeros, in both states.
    offers = [[(n, *[0] * (n - 1)) for n in lengths] for _ in range(2)]
    mdp = problem_with(offers, np.random.default_rng(seed), sign="positive")
    optimum, tree = solve_actions(mdp), mdp.tree
    left = tree.length[:, None] - 1 - np.arange(tree.path.shape[1])  # [A, D] n − j
    real = tree.path >= 0
    deviations, gaps = [], []
    for gamma_token in GAMMA_TOKENS:
        naive = token_backup(mdp, optimum.v, best, gamma_token).q[tree.path]  # [M] -> [A, D]
        gap = optimum.q[:, None] - naive
        closed = (1 - gamma_token ** np.maximum(left, 0)) * optimum.q[:, None]
        deviations.append((gap - closed)[real])
        relative = (gap / optimum.q[:, None])[:MAX_LENGTH, 0]  # first tokens, first state
        formula = [1 - gamma_token ** (n - 1) for n in lengths]
        gaps.append(Gap(gamma_token, list(lengths), relative.tolist(), formula))
    return _law("NTPO's gap", "gap − (1 − γ_w^{n−j}) Q(o,a)", deviations), gaps


def ntpo_laws(problems: Sequence[LanguageMDP]) -> list[Law]:
    """NTPO maximizes the discounted completion, and equals BAD for γ_w = 1."""
    greedy, same = [], []
    for mdp in problems:
        tree, actions = mdp.tree, solve_actions(mdp)
        for gamma_token in GAMMA_TOKENS:
            naive = solve_tokens(mdp, best, gamma_token)
            found = best_completion(tree, naive.q[tree.leaf], gamma_token) - naive.q
            greedy.append(found[mdp.states :])  # roots have no Q
            if gamma_token == 1:
                same.append(naive.q[tree.leaf] - actions.q)
    return [
        _law("NTPO's greedy value", "Q − max γ_w^{|a|−j} Q(o,a)", greedy),
        _law("NTPO with γ_w = 1 is BAD", "Q(last token) − Q*", same),
    ]


def length_preference(
    problems: Sequence[LanguageMDP], sign: Sign, depth: int
) -> tuple[Law, list[Preference]]:
    """NTPO deviates from the action with its best Q only towards shorter or longer actions.

    It ranks actions by γ_w^{n−1}·Q(o,a), with Q its own value at the last token. So it deviates to
    shorter actions where rewards are positive, and to longer ones where they are negative. This
    also counts how often its choice is not the optimum of the action level.
    """
    wrong, rows = [], []
    direction = 1 if sign == "positive" else -1
    optima = [greedy_actions(mdp, solve_actions(mdp).q) for mdp in problems]
    for gamma_token in GAMMA_TOKENS:
        optimal, greedy, differs = [], [], []
        for mdp, target in zip(problems, optima, strict=True):
            length = mdp.tree.length
            several = np.bincount(mdp.state) > 1  # [S] bool: states with a choice
            naive = solve_tokens(mdp, best, gamma_token)
            chosen = greedy_tokens(mdp, naive)
            own_best = greedy_actions(mdp, naive.q[mdp.tree.leaf])
            # Both are [S] action numbers. Only states where they differ are compared by length.
            deviates = chosen != own_best
            wrong.append(1.0 * (direction * (length[chosen] - length[own_best]) >= 0)[deviates])
            optimal.append(length[target][several])
            greedy.append(length[chosen][several])
            differs.append((chosen != target)[several])
        # Histograms over lengths of 1 to `depth` tokens, so that bin 0 is dropped.
        lengths, differ = np.concatenate(optimal), np.concatenate(differs)
        states, wrongly = (
            np.bincount(found, minlength=depth + 1)[1:].tolist()
            for found in (lengths, lengths[differ])
        )
        means = _mean(lengths), _mean(np.concatenate(greedy))
        rows.append(Preference(sign, gamma_token, states, wrongly, *means))
    way, values = ("shorter", "> 0") if sign == "positive" else ("longer", "< 0")
    name = f"NTPO goes {way}, Q {values}"
    return _law(name, f"deviations, not {way}", wrong, 0, empty=0.0), rows


def _mean(numbers: Ints) -> float:
    return float(numbers.mean()) if len(numbers) else math.nan


def soft_laws(problems: Sequence[LanguageMDP], references: Sequence[Floats]) -> list[Law]:
    """Soft BAD is the soft optimum of the action level, with entropy (μ = 1) and with KL to μ.

    It is consistent along paths: V(o) = R + γ E V(o′) − α log(π/μ) for every action, as in path
    consistency learning (arXiv 1702.08892).
    """
    laws = []
    for label in ("entropy", "KL"):
        value, product, consistent, earned = [], [], [], []
        for mdp, policy in zip(problems, references, strict=True):
            tree, n = mdp.tree, mdp.states
            log_mu = policy if label == "KL" else np.zeros_like(policy)
            mu = tree.path_sum(log_mu)  # [M] -> [A]: log μ of whole actions
            action = solve_actions(mdp, soft(TEMPERATURE, mu))
            token = solve_tokens(mdp, soft(TEMPERATURE, log_mu))
            value += [token.q[tree.leaf] - action.q, token.v[:n] - action.v]
            log_pi = tree.path_sum(soft_policy(token, tree, TEMPERATURE, log_mu))
            advantage = action.q - action.v[mdp.state]
            product.append(np.exp(log_pi) - np.exp(mu + advantage / TEMPERATURE))
            cost = TEMPERATURE * (log_pi - mu)
            # [S] -> [A]: the value of each action's own state
            consistent.append(token.v[:n][mdp.state] - (mdp.action_values(token.v[:n]) - cost))
            earned.append(policy_values(mdp, log_pi, cost=cost).v - action.v)
        name = f"Soft BAD, {label}"
        laws += [
            _law(f"{name}: values", "Q, V − those of actions", value),
            _law(f"{name}: policy", "Π π(w) − μ(a) exp((Q−V)/α)", product),
            _law(f"{name}: paths", "V − R − γ E V + α log π/μ", consistent),
            _law(f"{name}: return", "V by linear equations − V(o)", earned),
        ]
    return laws


def evaluation_laws(
    problems: Sequence[LanguageMDP], policies: Sequence[Floats], references: Sequence[Floats]
) -> list[Law]:
    """A random token policy has the same values by tokens as by linear equations over actions."""
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
    groups = {"BAD": bad, "NTPO": naive, "entropy": entropy, "KL": kl}
    linear = "V by tokens − by equations"
    return [_law(f"Random policy, {name}", linear, gaps) for name, gaps in groups.items()]


def identity_laws(
    problems: Sequence[LanguageMDP], policies: Sequence[Floats], seed: int
) -> list[Law]:
    """POAD lies between its own advantages and those of turn-level PPO, whatever the critic reads.

    With λ = 1 inside actions, A[j] = A_turn + V(o) − V(o, w_<j): nothing is bootstrapped inside an
    action, so only the baseline differs. With β = 0 as well, the baseline is V(o), and the
    advantages are A_turn. Values are random numbers, since neither depends on the critic.
    """
    rng, baseline, none = np.random.default_rng(seed), [], []
    for mdp, policy in zip(problems, policies, strict=True):
        played = sample_episodes(mdp, mdp.tree.path_sum(policy), IDENTITY_EPISODES, rng, TURNS)
        numbers = rng.normal(size=len(mdp.tree.parent))
        tensors: dict[str, Any] = {**token_stream(mdp, played, TokenValues(numbers, numbers))}
        rates: dict[str, Any] = {
            "gamma": mdp.gamma,
            "lam": TRACES[0][0],
            "lam_token": 1.0,
            "slots": "tokens",
        }
        turn, poad, shrunk = (
            token_credit(**tensors, method=METHODS[name], beta=beta, **rates)
            for name, beta in (("turn_ppo", 1.0), ("poad", 1.0), ("poad", 0.0))
        )
        # [N, L] V(o): the node at the top of each token's path
        path = np.where(played.action[..., None] >= 0, mdp.tree.path[played.action], -1)
        top = numbers[mdp.tree.root[path.reshape(len(path), -1)]]
        expected = turn.advantage.numpy() + top - tensors["value"].numpy()
        baseline.append((poad.advantage.numpy() - expected)[poad.mask.numpy()])
        none.append((shrunk.advantage - turn.advantage)[poad.mask].numpy())
    return [
        _law("POAD with λ 1 inside", "A_turn + V(o) − V(o,w) − A", baseline),
        _law("POAD with λ 1 and β 0", "A_turn − A", none),
    ]


def estimator_laws(seed: int) -> tuple[list[Law], list[Convergence]]:
    """The sampled credit of `poad.credit` has the exact mean, if the critic's values are exact.

    E[A | state, token] = Q − V of the method's own backup, for all `TRACES`. Returns without a
    critic have the mean Q. The problem is small, the policy random, and there are many episodes. A
    small γ and positive rewards, which keep values away from 0, reveal a discount in the wrong
    place. `archer_adrl` is left out: it bootstraps from a value that belongs to no backup, so its
    exact mean is not known.
    """
    size = {"states": 5, "actions": 5, "depth": 4}
    mdp = random_problem(seed, gamma=GAMMA_SAMPLED, sign="positive", **size)
    policy, rng = random_policy(mdp, seed), np.random.default_rng(seed)
    log_action = mdp.tree.path_sum(policy)
    played = sample_episodes(mdp, log_action, EPISODES, rng, TURNS)
    laws, convergences = [], []
    # A turn-level method has no slots inside an action, so its λ_token has no effect.
    for name, estimator, values, truth in _cases(mdp, policy):
        by_turn = estimator.method.decision == "turn"
        found = []
        for lam, lam_token in TRACES[:2] if by_turn else TRACES:
            traced = replace(estimator, lam=lam, lam_token=lam_token)
            sums = traced.sums(mdp, played, values, len(truth))
            found.append(sums.standard_errors(truth))
            if (lam, lam_token) == TRACES[0]:
                errors = sums.rms_errors(truth, SAMPLE_SIZES)
                convergences.append(Convergence(name, [*SAMPLE_SIZES], errors))
        minus = "Q(o,a) − V(o)" if estimator.by_action else "Q − V(o)" if by_turn else "Q − V"
        laws.append(_law(f"Sampled {name}", f"mean − ({minus}), SE", found, STANDARD_ERRORS))

    # A return is known only if its episode ends. In practice, 1000 turns are never reached.
    exact = solve_tokens(mdp, expected(policy))
    played = sample_episodes(mdp, log_action, RETURN_EPISODES, rng, 1000)
    sums = CreditEstimator(METHODS["reinforce"], 1.0).sums(mdp, played, exact, len(exact.q))
    returns = Convergence("reinforce", [*SAMPLE_SIZES], sums.rms_errors(exact.q, SAMPLE_SIZES))
    miss, slope = [sums.standard_errors(exact.q)], [np.array([returns.power + 0.5])]
    laws += [
        _law("Sampled reinforce", "mean − Q, SE", miss, STANDARD_ERRORS),
        _law("Sampled reinforce, ∝ 1/√N", "error's power of N + 1/2", slope, 0.1),
    ]
    return laws, [*convergences, returns]


def _cases(
    mdp: LanguageMDP, policy: Floats
) -> list[tuple[str, CreditEstimator, TokenValues, Floats]]:
    """List names, estimators, critics and truths: the exact mean advantages, [M] or by action [A].

    Critic and truth are those of the random policy under the method's own backup.
    """
    tree = mdp.tree

    def method(name: str, **settings: Any) -> CreditEstimator:
        return CreditEstimator(METHODS[name], **settings)

    def solve(gamma_token: float) -> tuple[TokenValues, Floats]:
        values = solve_tokens(mdp, expected(policy), gamma_token)
        return values, values.q - values.v[tree.parent]  # Q − V of the prefix before the token

    (bad, of_bad), (naive, of_naive) = solve(1.0), solve(mdp.gamma)
    between, of_between = solve(GAMMA_TOKEN_BETWEEN)
    of_turn = bad.q - bad.v[tree.root]
    whole = policy_values(mdp, tree.path_sum(policy))
    of_action = whole.q - whole.v[mdp.state]
    by_bit = method("poad", lam_actor=0.5, trace="bit", bits=decision_bits(mdp, policy))
    fading = method("poad", gamma_token=GAMMA_TOKEN_BETWEEN, slots="tokens")
    return [
        ("poad", method("poad"), bad, of_bad),
        ("poad, all slots", method("poad", slots="tokens"), bad, of_bad),
        ("poad, λ 1/2 a bit", by_bit, bad, of_bad),
        (f"poad, γ_w {GAMMA_TOKEN_BETWEEN}", fading, between, of_between),
        ("ntpo", method("ntpo"), naive, of_naive),
        ("turn_ppo", method("turn_ppo"), bad, of_turn),
        ("twosome", method("twosome", by_action=True), bad, of_action),
        ("glam", method("glam", by_action=True), bad, of_action),
    ]
