"""The oracle's values are what forms pay on average, after every beginning, for any policy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.agent.build import Agent, load_agent
from poad.agent.sampling import ActingCache
from poad.config import Config
from poad.envs.registry import make
from poad.theory.order import (
    MAX_EXACT,
    Chances,
    Filled,
    OrderOracle,
    exact_values,
    perfect_values,
    sampled_values,
)
from poad.theory.problems import Floats
from poad.turns import Observation, Position

PAYS: tuple[Literal["additive", "all"], ...] = ("additive", "all")


def table(choices: int, seed: int, depends: bool = True) -> Chances:
    """A policy whose taste in a field depends on all fields before it, or on their number."""
    rng = np.random.default_rng(seed)
    second: dict[Filled, float] = {
        filled if depends else (j,): rng.random()
        for j in range(choices)
        for filled in (product((0, 1), repeat=j) if depends else [(j,)])
    }

    def chances(asked: Sequence[Filled]) -> Floats:
        p = np.array([second[f if depends else (len(f),)] for f in asked])
        return np.stack([1 - p, p], axis=1)

    return chances


def mean_pay(chances: Chances, right: Filled, pay: str, begun: Filled) -> float:
    """The mean over all ways to complete a form."""
    total = 0.0
    for rest in product((0, 1), repeat=len(right) - len(begun)):
        form, chance = (*begun, *rest), 1.0
        for j in range(len(begun), len(right)):
            chance *= chances([form[:j]])[0, form[j]]
        share = sum(a == b for a, b in zip(form, right, strict=True)) / len(right)
        total += chance * (share if pay == "additive" else share == 1)
    return total


forms = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple)


@settings(deadline=None, max_examples=30)
@given(forms, st.integers(0, 10**6), st.sampled_from(PAYS))
def test_exact_values_are_means_over_all_completions(right, seed, pay):
    chances = table(len(right), seed)
    values = exact_values(chances, right, pay)
    assert [len(level) for level in values] == [2**j for j in range(len(right) + 1)]
    for j, level in enumerate(values):
        for begun, value in zip(product((0, 1), repeat=j), level, strict=True):
            assert value == pytest.approx(mean_pay(chances, right, pay, begun))


@settings(deadline=None, max_examples=30)
@given(forms, st.integers(0, 10**6))
def test_a_perfect_form_is_as_likely_as_along_its_own_path(right, seed):
    chances = table(len(right), seed)
    beginnings = [b for j in range(len(right) + 1) for b in product((0, 1), repeat=j)]
    expected = np.concatenate(exact_values(chances, right, "all"))
    assert perfect_values(chances, right, beginnings) == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@given(forms, st.integers(0, 10**6))
def test_sampled_values_are_exact_where_fields_do_not_depend_on_each_other(right, seed):
    chances = table(len(right), seed, depends=False)
    beginnings = [b for j in range(len(right) + 1) for b in product((0, 1), repeat=j)]
    found = sampled_values(chances, right, beginnings, 1, np.random.default_rng(seed))
    assert found == pytest.approx(np.concatenate(exact_values(chances, right)))


@pytest.mark.parametrize("seed", range(3))
def test_sampled_values_are_unbiased_and_no_noisier_than_what_is_paid(seed: int):
    right, samples, times = (1, 0, 1, 1, 0), 4, 400
    chances = table(5, seed)
    beginnings = [b for j in range(6) for b in product((0, 1), repeat=j)]
    rng = np.random.default_rng(seed)
    found = np.stack(
        [sampled_values(chances, right, beginnings, samples, rng) for _ in range(times)]
    )
    exact = np.concatenate(exact_values(chances, right))
    error = found.std(0) / np.sqrt(times)
    assert np.all(np.abs(found.mean(0) - exact) <= 4.5 * error + 1e-12)
    # A mean of paid forms has the variance of the share right; counting chances has less.
    squares = np.concatenate([exact_values(chances, right)[-1] ** 2])
    spread = 0.0
    for form, square in zip(product((0, 1), repeat=5), squares, strict=True):
        spread += square * np.prod([chances([form[:j]])[0, form[j]] for j in range(5)])
    assert found[:, 0].var() < 0.8 * (spread - exact[0] ** 2) / samples


def test_a_form_too_large_to_go_through_is_refused():
    with pytest.raises(ValueError, match=r"13 fields is too large .* use sampled_values"):
        exact_values(table(2, 0), (0,) * (MAX_EXACT + 1))


# --- the oracle -------------------------------------------------------------------------------


def agent(**arguments: Any) -> Agent:
    return load_agent(Config(env="poad/Order-v0", env_args=arguments))


def world(**arguments: Any) -> Any:
    return make("poad/Order-v0", **arguments).unwrapped


@pytest.mark.parametrize("pay", PAYS)
@pytest.mark.parametrize("choices", [4, 8])
def test_the_oracle_values_every_beginning_as_the_policy_would_finish_it(pay, choices):
    """By the probability of each offered action, which the policy computes by other means."""
    arguments = {"choices": choices, "words": 2 * choices, "pay": pay}
    env, policy = world(**arguments), agent(**arguments).policy
    oracle = OrderOracle(policy, 0.9, **arguments)
    for customer in (0, 5):
        seen = Observation(env.prompt(0, customer), env.form(customer))
        tree = policy.codec.trie(env.form(customer))
        chance = np.array(policy.probabilities(seen))
        pays = np.array([env.share(text, customer) for text in env.form(customer)])
        pays = pays if pay == "additive" else pays == 1
        spelled = [tree.token_path(leaf) for leaf in tree.all_leaves()]
        begun = [tokens[:j] for tokens in spelled[:: 2**choices // 4] for j in range(len(tokens))]
        values = oracle([(policy.prompt_ids(seen), tokens) for tokens in begun])
        for tokens, value in zip(begun, values, strict=True):
            these = np.array([each[: len(tokens)] == tokens for each in spelled])
            expected = (chance * pays)[these].sum() / chance[these].sum()
            assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pay", ["additive", "all", "late"])
def test_the_oracle_is_right_about_whole_episodes(pay: str):
    """The mean discounted return after a prompt and the first choice, by playing."""
    arguments = {"choices": 2, "words": 4, "turns": 3, "pay": pay}
    env, policy, gamma = world(**arguments), agent(**arguments).policy, 0.8
    rng, cache = np.random.default_rng(0), ActingCache()
    returns: dict[Position, list[float]] = {}
    for seed in range(1500):
        prompt, info = env.reset(seed=seed)
        turns, over = [], False
        while not over:
            seen = Observation(prompt, info["admissible_actions"])
            (action,) = policy.act([seen], rng, cache=cache)
            prompt, reward, over, _, info = env.step(action.text)
            turns.append((policy.prompt_ids(seen), action.token_ids, reward))
        for t, (ids, tokens, _) in enumerate(turns):
            later = sum(gamma**k * reward for k, (*_, reward) in enumerate(turns[t:]))
            for j in (0, 2):  # before the first choice, and behind it
                returns.setdefault((ids, tokens[:j]), []).append(later)
    values = OrderOracle(policy, gamma, **arguments)(list(returns))
    means = np.array([np.mean(found) for found in returns.values()])
    errors = np.array([np.std(found) / np.sqrt(len(found)) for found in returns.values()])
    assert len(returns) == 3 * 8 * 3
    assert np.all(np.abs(means - values) <= 4.5 * errors + 1e-9)


def test_larger_forms_are_sampled_without_bias():
    arguments = {"choices": 8, "words": 8}
    env, policy = world(**arguments), agent(**arguments).policy
    ids = policy.prompt_ids(Observation(env.prompt(0, 3)))
    action = policy.codec.action(env.form(3)[77])
    positions: list[Position] = [(ids, action[:j]) for j in range(len(action))]
    exact = OrderOracle(policy, 1.0, **arguments)(positions)
    sampled = OrderOracle(policy, 1.0, exact=4, samples=400, **arguments)(positions)
    assert sampled == pytest.approx(exact, abs=0.01)
    assert sampled[-1] == pytest.approx(exact[-1])  # nothing is left to draw


def test_trees_that_grow_too_large_to_keep_change_no_value(monkeypatch: pytest.MonkeyPatch):
    """The codec begins another tree in the middle of a call, whose nodes have other numbers."""
    arguments = {"choices": 16, "words": 16}
    env, policy = world(**arguments), agent(**arguments).policy
    ids = policy.prompt_ids(Observation(env.prompt(0, 3)))
    spelled = [policy.codec.action(env.form(3)[n]) for n in (5, 40_000, 65_000)]
    positions: list[Position] = [(ids, way[:j]) for way in spelled for j in range(len(way))]
    expected = OrderOracle(policy, 1.0, samples=2, **arguments)(positions)
    monkeypatch.setattr("poad.lm.tokenizer.MAX_NODES", 50)
    found = OrderOracle(agent(**arguments).policy, 1.0, samples=2, **arguments)(positions)
    assert found == pytest.approx(expected)


def test_a_perfect_form_of_sixteen_fields_is_valued_exactly():
    arguments = {"choices": 16, "words": 16, "pay": "all"}
    env, policy = world(**arguments), agent(**arguments).policy
    right = env.form(6)[int("".join(map(str, env.right(6))), 2)]
    (ids, action) = (policy.prompt_ids(Observation(env.prompt(0, 6))), policy.codec.action(right))
    values = OrderOracle(policy, 1.0, **arguments)([(ids, action[:j]) for j in range(17)])
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1.0)
    assert 0 < values[0] < 2**-14


def test_freely_written_actions_are_finished_and_paid():
    arguments = {"choices": 2, "words": 4, "offered": False}
    env, policy = world(**arguments), agent(**arguments).policy
    seen = Observation(env.prompt(0, 1))
    ids = policy.prompt_ids(seen)
    actions = policy.act([seen] * 600, np.random.default_rng(0))
    shares = np.array([env.share(action.text, 1) for action in actions])
    oracle = OrderOracle(policy, 1.0, samples=600, **arguments)
    whole = policy.codec.action("old small teacher rye")
    root, done, wrong = oracle([(ids, ()), (ids, whole[:-1]), (ids, whole[:2])])
    assert root == pytest.approx(shares.mean(), abs=6 * shares.std() / np.sqrt(600))
    assert done == pytest.approx(env.share("old small teacher rye", 1), abs=0.05)
    assert 0 <= wrong <= 1


def test_a_prompt_of_another_world_is_refused():
    oracle = OrderOracle(agent().policy, 1.0)
    with pytest.raises(ValueError, match="a prompt that this world does not show by itself"):
        oracle([((1, 2, 3), ())])
