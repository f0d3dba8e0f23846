"""Exact values of tabular language problems, and sampled credit compared with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.credit import METHODS, Slots
from poad.theory import exact as theory
from poad.theory.exact import (
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
from poad.theory.laws import Convergence
from poad.theory.problems import (
    LanguageMDP,
    problem_with,
    random_policy,
    random_problem,
    sample_episodes,
)
from poad.theory.sampled import CreditEstimator, Sums, token_stream

EXACT = {"rtol": 0, "atol": 1e-10}
GAMMA_TOKENS = (1.0, 0.99, 0.9, 0.5)


@st.composite
def problems(draw: st.DrawFn) -> LanguageMDP:
    return random_problem(
        draw(st.integers(0, 2**32)),
        states=draw(st.integers(1, 6)),
        actions=draw(st.integers(1, 6)),
        depth=draw(st.integers(1, 6)),
        gamma=draw(st.sampled_from([0.0, 0.5, 0.95, 0.99])),
        sign=draw(st.sampled_from(["any", "positive", "negative"])),
        outcomes=draw(st.integers(1, 4)),
    )


def laws(law: Callable[..., None]) -> Callable[..., None]:
    return settings(deadline=None, max_examples=60)(given(mdp=problems())(law))


def two_actions(short: float, long: float) -> LanguageMDP:
    """One state; one token earns `short`, two tokens earn `long`, and the episode ends."""
    mdp = problem_with([[(0,), (1, 2)]], np.random.default_rng(0), gamma=0.9, outcomes=1)
    reward = np.array([[short], [long]])
    return LanguageMDP(mdp.tries, 0.9, mdp.probability, reward, mdp.successor)


# Values by hand.


def test_values_that_can_be_worked_out_by_hand():
    mdp = two_actions(1.0, 1.05)  # nodes: root, "0", "1", "1 2"
    np.testing.assert_allclose(solve_tokens(mdp).q, [np.nan, 1.0, 1.05, 1.05])
    np.testing.assert_allclose(solve_tokens(mdp, best, 0.9).q, [np.nan, 1.0, 0.945, 1.05])
    np.testing.assert_allclose(solve_tokens(mdp).v, [1.05, np.nan, 1.05, np.nan])
    assert solve_actions(mdp).v == [1.05]
    entropy = solve_tokens(mdp, soft(0.5, np.zeros(4))).v[0]
    assert entropy == pytest.approx(0.5 * np.log(np.exp(2.0) + np.exp(2.1)))


def test_ntpo_takes_the_shorter_action_for_gains_and_the_longer_for_losses():
    gains, losses = two_actions(1.0, 1.05), two_actions(-1.0, -1.05)
    for mdp, optimum, naive in ((gains, 1, 0), (losses, 0, 1)):
        assert greedy_tokens(mdp, solve_tokens(mdp)) == optimum
        assert greedy_tokens(mdp, solve_tokens(mdp, best, 0.9)) == naive


def test_chance_and_the_discount_between_actions_count():
    mdp = problem_with([[(0,)]], np.random.default_rng(0), gamma=0.5, outcomes=2)
    mdp = LanguageMDP(
        mdp.tries, 0.5, np.array([[0.6, 0.4]]), np.array([[1.0, 2.0]]), np.array([[0, 1]])
    )
    # V = .6·(1 + .5·V) + .4·2
    assert solve_actions(mdp).v == pytest.approx([1.4 / 0.7])
    assert policy_values(mdp, np.zeros(1)).v == pytest.approx([2.0])


# Law 7.


@laws
def test_bad_is_the_action_level_optimum(mdp: LanguageMDP):
    token, action = solve_tokens(mdp), solve_actions(mdp)
    np.testing.assert_allclose(token.q[mdp.tree.leaf], action.q, **EXACT)
    np.testing.assert_allclose(token.v[: mdp.states], action.v, **EXACT)
    np.testing.assert_array_equal(greedy_tokens(mdp, token), greedy_actions(mdp, action.q))


@laws
def test_the_greedy_policy_earns_the_optimum_and_others_do_not_exceed_it(mdp: LanguageMDP):
    optimum = solve_actions(mdp).v
    for gamma_token in GAMMA_TOKENS:
        chosen = greedy_tokens(mdp, solve_tokens(mdp, best, gamma_token))
        with np.errstate(divide="ignore"):
            log_action = np.log(1.0 * np.isin(np.arange(len(mdp.state)), chosen))
        earned = policy_values(mdp, log_action).v
        if gamma_token == 1:
            np.testing.assert_allclose(earned, optimum, **EXACT)
        assert np.all(earned <= optimum + 1e-10)


@laws
def test_every_prefix_satisfies_its_bellman_equation(mdp: LanguageMDP):
    tree = mdp.tree
    for gamma_token in GAMMA_TOKENS:
        q, v = solve_tokens(mdp, best, gamma_token)
        leaves = set(tree.leaf.tolist())
        for node in range(len(tree.parent)):
            children = np.flatnonzero(tree.parent == node)
            assert (node in leaves) == (len(children) == 0)
            if len(children):
                assert v[node] == pytest.approx(q[children].max(), abs=1e-10)
                if node >= mdp.states:
                    assert q[node] == pytest.approx(gamma_token * v[node], abs=1e-10)
        np.testing.assert_allclose(q[tree.leaf], mdp.action_values(v[: mdp.states]), **EXACT)


@laws
def test_the_gap_along_a_fixed_completion_is_the_closed_form(mdp: LanguageMDP):
    tree, optimum = mdp.tree, solve_actions(mdp)
    for gamma_token in GAMMA_TOKENS:
        for a, (path, n) in enumerate(zip(tree.path, tree.length, strict=True)):
            only = np.full(len(tree.parent), -np.inf)  # this completion and no other
            only[path[:n]] = 0.0
            naive = token_backup(mdp, optimum.v, expected(only), gamma_token).q[path[:n]]
            gap = (1 - gamma_token ** (n - np.arange(1, n + 1))) * optimum.q[a]
            np.testing.assert_allclose(optimum.q[a] - naive, gap, **EXACT)


@laws
def test_ntpo_maximizes_the_discounted_completion(mdp: LanguageMDP):
    for gamma_token in GAMMA_TOKENS:
        naive = solve_tokens(mdp, best, gamma_token)
        found = best_completion(mdp.tree, naive.q[mdp.tree.leaf], gamma_token)
        np.testing.assert_allclose(found, naive.q, **EXACT)


@laws
def test_soft_bad_is_the_action_level_soft_optimum(mdp: LanguageMDP):
    tree, n = mdp.tree, mdp.states
    for temperature in (0.05, 1.0):
        for reference in (np.zeros(len(tree.parent)), random_policy(mdp, 1)):
            whole = tree.path_sum(reference)
            action = solve_actions(mdp, soft(temperature, whole))
            token = solve_tokens(mdp, soft(temperature, reference))
            np.testing.assert_allclose(token.q[tree.leaf], action.q, **EXACT)
            np.testing.assert_allclose(token.v[:n], action.v, **EXACT)

            log_pi = tree.path_sum(soft_policy(token, tree, temperature, reference))
            advantage = (action.q - action.v[mdp.state]) / temperature
            np.testing.assert_allclose(np.exp(log_pi), np.exp(whole + advantage), **EXACT)
            cost = temperature * (log_pi - whole)
            consistent = mdp.action_values(token.v[:n]) - cost
            np.testing.assert_allclose(token.v[:n][mdp.state], consistent, **EXACT)
            earned = policy_values(mdp, log_pi, cost=cost).v
            np.testing.assert_allclose(earned, action.v, **EXACT)


@laws
def test_a_policy_has_the_same_values_by_tokens_and_by_actions(mdp: LanguageMDP):
    tree, n = mdp.tree, mdp.states
    policy, other = random_policy(mdp, 2), random_policy(mdp, 3)
    log_action = tree.path_sum(policy)
    np.testing.assert_allclose(np.bincount(mdp.state, np.exp(log_action)), 1.0, **EXACT)
    for gamma_token in GAMMA_TOKENS:
        token = solve_tokens(mdp, expected(policy), gamma_token)
        action = policy_values(mdp, log_action, gamma_token=gamma_token)
        np.testing.assert_allclose(token.q[tree.leaf], action.q, **EXACT)
        np.testing.assert_allclose(token.v[:n], action.v, **EXACT)
    token = solve_tokens(mdp, regularized(0.3, policy, other))
    cost = 0.3 * (log_action - tree.path_sum(other))
    np.testing.assert_allclose(token.v[:n], policy_values(mdp, log_action, cost=cost).v, **EXACT)


@laws
def test_the_soft_optimum_becomes_the_optimum_as_the_temperature_falls(mdp: LanguageMDP):
    value = solve_tokens(mdp, soft(1e-4, np.zeros(len(mdp.tree.parent)))).v[: mdp.states]
    most = 1e-4 * np.log(6) / (1 - mdp.gamma)
    gain = value - solve_actions(mdp).v
    assert np.all((gain >= -1e-10) & (gain <= most + 1e-10))


# The measurements can tell right from wrong.


def test_a_wrong_backup_violates_the_laws(monkeypatch: pytest.MonkeyPatch):
    mdp = random_problem(0)

    def discounting_every_token(mdp, beyond, combine=best, gamma_token=1.0):
        return token_backup(mdp, beyond, combine, 0.95 * gamma_token)

    monkeypatch.setattr(theory, "token_backup", discounting_every_token)
    wrong = solve_tokens(mdp).q[mdp.tree.leaf] - solve_actions(mdp).q
    assert np.abs(wrong).max() > 1e-2


def test_soft_values_need_the_right_reference_and_temperature():
    mdp = random_problem(0)
    right, reference = (
        solve_actions(mdp, soft(0.3, np.zeros(len(mdp.state)))),
        random_policy(mdp, 1),
    )
    for temperature, log_mu in ((0.3, reference), (0.31, np.zeros_like(reference))):
        token = solve_tokens(mdp, soft(temperature, log_mu))
        assert np.abs(token.v[: mdp.states] - right.v).max() > 1e-3


def test_ntpo_differs_from_the_optimum_in_values_and_choices():
    differs = 0
    for seed in range(10):
        mdp = random_problem(seed, sign="positive")
        naive = solve_tokens(mdp, best, 0.9)
        differs += int(
            (greedy_tokens(mdp, naive) != greedy_actions(mdp, solve_actions(mdp).q)).sum()
        )
    assert differs > 5


# Random problems are what they claim to be.


@laws
def test_a_random_problem_is_a_language_mdp(mdp: LanguageMDP):
    tree = mdp.tree
    np.testing.assert_allclose(mdp.probability.sum(1), 1.0)
    assert tree.length.min() >= 1
    assert np.all(tree.root[tree.leaf] == mdp.state)
    written = [trie.token_path(leaf) for trie in mdp.tries for leaf in trie.leaves]
    assert [len(tokens) for tokens in written] == tree.length.tolist()
    assert np.all((mdp.transition.sum(1) < 1) & (mdp.transition.sum(1) >= 0))
    for state, trie in enumerate(mdp.tries):
        free = sum(len(children) for children in trie.children if len(children) > 1)
        assert tree.is_choice[tree.root == state].sum() == free


def test_random_problems_contain_the_hard_cases():
    mdp = random_problem(3, states=30)
    counts = np.bincount(mdp.state)
    assert counts.max() == 6
    assert counts.min() == 1
    assert set(mdp.tree.length) == {1, 2, 3, 4, 5, 6}
    inner = mdp.tree.path[mdp.tree.path >= 0]
    assert 0 < mdp.tree.is_choice[inner].mean() < 1
    assert (random_problem(3, sign="positive").reward > 0).all()
    assert (random_problem(3, sign="negative").reward < 0).all()


def test_a_seed_determines_the_problem():
    one, same, other = random_problem(5), random_problem(5), random_problem(6)
    assert np.array_equal(one.reward, same.reward)
    assert [t.texts for t in one.tries] == [t.texts for t in same.tries]
    assert [t.texts for t in one.tries] != [t.texts for t in other.tries]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabulary": 3}, "at least the number of actions"),
        ({"states": 0}, "each must be at least 1"),
        ({"gamma": 1.0}, r"must lie in \[0, 1\)"),
        ({"sign": "both"}, "known: any, positive, negative"),
    ],
)
def test_impossible_problems_are_rejected(wrong, message: str):
    with pytest.raises(ValueError, match=message):
        random_problem(0, **wrong)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_discount_outside_0_to_1_is_rejected(rate: float):
    mdp = random_problem(0)
    uniform = np.zeros(len(mdp.state))
    for solve in (
        lambda: solve_tokens(mdp, best, rate),
        lambda: policy_values(mdp, uniform, gamma_token=rate),
    ):
        with pytest.raises(ValueError, match="gamma_token"):
            solve()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_rejected(temperature: float):
    with pytest.raises(ValueError, match="temperature"):
        soft(temperature, np.zeros(3))


def test_soft_values_tend_to_the_optimum_as_the_temperature_falls():
    mdp = random_problem(5)
    optimum = solve_tokens(mdp)
    gaps = [
        np.nanmax(solve_tokens(mdp, soft(t, np.zeros(len(mdp.tree.parent)))).v - optimum.v)
        for t in (1.0, 0.1, 0.001)
    ]
    assert gaps[0] > gaps[1] > gaps[2] >= 0
    assert gaps[2] < 0.1


def test_actions_of_probability_0_cost_nothing():
    mdp = random_problem(3)
    tree, n = mdp.tree, mdp.states
    log_mu = random_policy(mdp, 1)
    optimum = solve_tokens(mdp)
    inner = tree.parent >= 0
    log_policy = np.zeros(len(tree.parent))
    taken = optimum.q[inner] == optimum.v[tree.parent[inner]]
    log_policy[inner] = np.where(taken, 0.0, -np.inf)
    log_action = tree.path_sum(log_policy)
    cost = 0.3 * (log_action - tree.path_sum(log_mu))
    by_tokens = solve_tokens(mdp, regularized(0.3, log_policy, log_mu)).v[:n]
    by_actions = policy_values(mdp, log_action, cost=cost).v
    np.testing.assert_allclose(by_tokens, by_actions, atol=1e-10)


def test_a_nan_reward_is_reported_at_once():
    mdp = random_problem(0)
    broken = replace(mdp, reward=np.full_like(mdp.reward, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        solve_actions(broken)


# Sampled credit.


def small() -> tuple[LanguageMDP, np.ndarray, np.ndarray]:
    mdp = random_problem(13, states=4, actions=5, depth=3, gamma=0.8, sign="positive")
    policy = random_policy(mdp, 0)
    return mdp, policy, mdp.tree.path_sum(policy)


def test_sampled_episodes_follow_the_policy_and_the_transitions():
    mdp, _, log_action = small()
    played = sample_episodes(mdp, log_action, 20_000, np.random.default_rng(0), 1000)
    real = played.action >= 0
    count = np.bincount(played.action[real], minlength=len(mdp.state))
    share = count / np.bincount(mdp.state, count)[mdp.state]
    np.testing.assert_allclose(share, np.exp(log_action), atol=0.02)
    earned = np.bincount(played.action[real], played.reward[real]) / count
    np.testing.assert_allclose(earned, mdp.expected_reward, atol=0.1)
    assert np.all(
        mdp.state[played.action[:, 1:]][real[:, 1:]] == played.successor[:, :-1][real[:, 1:]]
    )
    ended = (played.successor == mdp.states).sum(1)
    assert np.all(ended == 1)


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
@pytest.mark.parametrize("slots", ["choices", "tokens"])
def test_sampled_advantages_have_the_exact_mean(lam: float, slots: Slots):
    mdp, policy, log_action = small()
    values = solve_tokens(mdp, expected(policy))
    played = sample_episodes(mdp, log_action, 8000, np.random.default_rng(1), 6)
    estimator = CreditEstimator(METHODS["poad"], lam, slots=slots)
    sums = estimator.sums(mdp, played, values, len(values.q))
    errors = sums.standard_errors(values.q - values.v[mdp.tree.parent])
    assert len(errors) >= 8
    assert np.abs(errors).max() < 5


def test_the_laws_of_sampled_credit_tell_methods_apart():
    mdp, policy, log_action = small()
    bad, naive = (solve_tokens(mdp, expected(policy), g) for g in (1.0, mdp.gamma))
    played = sample_episodes(mdp, log_action, 8000, np.random.default_rng(1), 6)
    truth = naive.q - naive.v[mdp.tree.parent]
    ntpo = CreditEstimator(METHODS["ntpo"], 0.95)
    right = ntpo.sums(mdp, played, naive, len(truth)).standard_errors(truth)
    wrong = ntpo.sums(mdp, played, bad, len(truth)).standard_errors(truth)
    assert np.abs(right).max() < 5
    assert np.abs(wrong).max() > 20


def test_the_error_of_sampled_returns_shrinks_as_one_over_the_root_of_n():
    mdp, policy, log_action = small()
    truth = solve_tokens(mdp, expected(policy))
    played = sample_episodes(mdp, log_action, 32_768, np.random.default_rng(2), 1000)
    sums = CreditEstimator(METHODS["reinforce"], 1.0).sums(mdp, played, truth, len(truth.q))
    assert np.abs(sums.standard_errors(truth.q)).max() < 5
    sizes = [64, 512, 2048]
    nearing, biased = (
        Convergence("reinforce", sizes, sums.rms_errors(target, sizes))
        for target in (truth.q, truth.q + 1)
    )
    assert nearing.power == pytest.approx(-0.5, abs=0.12)
    assert biased.power > -0.2  # a bias does not shrink


def test_an_episode_that_goes_on_bootstraps_and_one_that_ended_does_not():
    mdp, policy, log_action = small()
    values = solve_tokens(mdp, expected(policy))
    played = sample_episodes(mdp, log_action, 200, np.random.default_rng(3), 2)
    stream = token_stream(mdp, played, values)
    ended = (played.successor == mdp.states).any(1)
    assert 0 < ended.sum() < len(ended)
    assert stream["ended"].numpy().tolist() == ended.tolist()
    next_value = values.v[played.successor[:, 1][~ended]]
    np.testing.assert_allclose(stream["bootstrap"].numpy()[~ended], next_value)
    assert not stream["bootstrap"].numpy()[ended].any()


def test_a_stream_holds_every_token_with_the_value_before_it_and_every_reward_once():
    mdp, policy, log_action = small()
    values = solve_tokens(mdp, expected(policy))
    played = sample_episodes(mdp, log_action, 50, np.random.default_rng(4), 3)
    stream = token_stream(mdp, played, values)
    for i in range(50):
        actions = played.action[i][played.action[i] >= 0]
        nodes = [node for a in actions for node in mdp.tree.path[a] if node >= 0]
        real = stream["mask"][i].numpy()
        assert real.sum() == len(nodes)
        np.testing.assert_array_equal(
            stream["value"][i].numpy()[real], values.v[mdp.tree.parent[nodes]]
        )
        np.testing.assert_array_equal(stream["choice"][i].numpy()[real], mdp.tree.is_choice[nodes])
        turns = np.repeat(np.arange(len(actions)), mdp.tree.length[actions])
        np.testing.assert_array_equal(stream["turn_ids"][i].numpy()[real], turns)
        paid = np.bincount(turns, stream["reward"][i].numpy()[real])
        np.testing.assert_array_equal(paid, played.reward[i, : len(actions)])


def test_errors_count_episodes_not_turns():
    # Ten equal turns of an episode count as one observation.
    labels, mask = np.zeros((400, 10, 1), dtype=int), np.ones((400, 10, 1), dtype=bool)
    draws = np.random.default_rng(0).normal(size=(400, 1, 1))
    sums = Sums.of(labels, np.broadcast_to(draws, labels.shape), mask, 1)
    expected_error = draws.mean() / (draws.std() / np.sqrt(400))
    assert sums.standard_errors(np.zeros(1)) == pytest.approx(expected_error)


def test_an_estimate_without_variance_must_be_exact():
    labels, mask = np.zeros((400, 1, 1), dtype=int), np.ones((400, 1, 1), dtype=bool)
    sums = Sums.of(labels, np.full(labels.shape, 0.3), mask, 1)
    assert np.abs(sums.standard_errors(np.array([0.3]))) < 1
    assert np.abs(sums.standard_errors(np.array([0.31]))) > 1000
