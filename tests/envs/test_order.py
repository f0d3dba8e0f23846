"""The world of many decisions in an action: what a form pays, and who says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.agent.build import load_agent
from poad.agent.policy import Policy
from poad.config import from_dict
from poad.envs.check import check_env
from poad.envs.order import FIELDS, TRAITS, TURNED
from poad.envs.registry import make
from poad.errors import ConfigError
from poad.theory.order import OrderOracle
from poad.turns import Observation

sizes = st.integers(2, 16).flatmap(
    lambda choices: st.tuples(st.just(choices), st.integers(1, 128 // choices))
)


def world(**arguments: Any) -> Any:
    return make("poad/Order-v0", **arguments).unwrapped


def filled(env: Any, customer: int, bits: tuple[int, ...]) -> str:
    """The form with these options, whose index in the offer is the bits as a number."""
    return env.form(customer)[int("".join(map(str, bits)), 2)]


def play(env: Any, seed: int, wrong: list[set[int]]) -> list[tuple[float, bool, dict[str, Any]]]:
    """Take every order with some fields wrong; the rewards, the endings and the infos."""
    env.reset(seed=seed)
    seen = []
    for fields, customer in zip(wrong, list(env._orders), strict=True):
        bits = tuple(bit ^ (i in fields) for i, bit in enumerate(env.right(customer)))
        _, reward, over, cut, info = env.step(filled(env, customer, bits))
        assert "invalid_action" not in info
        assert not cut
        seen.append((reward, over, info))
    return seen


@settings(deadline=None)
@given(sizes, st.integers(0, 7), st.data())
def test_a_form_has_so_many_words_and_options_only_in_their_places(size, customer, data):
    choices, each = size
    env = world(choices=choices, words=choices * each)
    offered = env.form(customer)
    assert offered.size == 2**choices
    texts = [offered[data.draw(st.integers(0, offered.size - 1))].split() for _ in range(3)]
    assert {len(text) for text in texts} == {choices * each}
    places = range(each - 1, choices * each, each)
    for i, place in enumerate(places):
        assert all(text[place] in FIELDS[i] for text in texts)
        if each > 1:  # what a choice depends on stands before it, as the prompt says
            assert {text[place - 1] for text in texts} <= set(TRAITS[i % 3])
            assert texts[0][place - 1] in env.prompt(0, customer).split()
    fixed = [[word for k, word in enumerate(text) if k not in places] for text in texts]
    assert fixed[0] == fixed[1] == fixed[2]


@settings(deadline=None)
@given(sizes, st.integers(0, 7), st.data())
def test_the_share_counts_right_options_in_their_places(size, customer, data):
    choices, each = size
    env = world(choices=choices, words=choices * each)
    bits = tuple(data.draw(st.integers(0, 1)) for _ in range(choices))
    right = env.right(customer)
    share = sum(a == b for a, b in zip(bits, right, strict=True)) / choices
    text = filled(env, customer, bits)
    assert env.share(text, customer) == pytest.approx(share)
    words = text.split()
    place = data.draw(st.sampled_from(range(choices))) * each + each - 1
    lost = (bits[place // each] == right[place // each]) / choices
    for other in ("cake", FIELDS[place // each][1 - right[place // each]]):
        words[place] = other
        assert env.share(" ".join(words), customer) == pytest.approx(share - lost)
    assert env.share("", customer) == 0
    if each > 1:  # the words between do not matter, but their number does
        words = text.split()
        words[0] = "cake"
        assert env.share(" ".join([*words, "and", "more"]), customer) == pytest.approx(share)


def test_the_options_of_a_field_differ_from_the_first_letter():
    assert all(first[0] != second[0] for first, second in FIELDS)
    words = [word for pair in (*FIELDS, *TRAITS) for word in pair]
    assert len(set(words)) == len(words)


def test_what_is_right_depends_on_the_traits_that_the_prompt_names():
    env = world(choices=16, words=16)
    prompts = {env.prompt(turn, n) for turn in range(3) for n in env.customers}
    assert len(prompts) == 24
    for n in env.customers:
        said = env.prompt(0, n).split()
        named = [pair.index(next(word for word in pair if word in said)) for pair in TRAITS]
        assert env.right(n) == tuple(named[i % 3] ^ TURNED[i] for i in range(16))
    for k in (2, 4, 8, 16):  # no option is right for more than about half of the customers
        shares = np.mean([env.right(n)[:k] for n in env.customers], axis=0)
        assert set(shares) == {0.5}


@pytest.mark.parametrize(
    ("pay", "rewards"), [("additive", [1.0, 0.75, 0.5]), ("all", [1, 0, 0]), ("late", [0, 0, 2.25])]
)
def test_pay_is_told_as_the_manual_says(pay: str, rewards: list[float]):
    seen = play(world(turns=3, pay=pay), 5, [set(), {2}, {0, 3}])
    assert [reward for reward, _, _ in seen] == rewards
    assert [over for _, over, _ in seen] == [False, False, True]
    assert [info["measures"]["right"] for _, _, info in seen] == [1.0, 0.75, 0.5]
    assert seen[-1][2]["episode"] == {"r": sum(rewards), "l": 3, "success": False}
    assert play(world(turns=3, pay=pay), 5, [set()] * 3)[-1][2]["episode"]["success"] is True


@pytest.mark.parametrize("pay", ["additive", "all", "late"])
def test_noise_has_the_variance_it_is_given_and_comes_from_the_seed(pay: str):
    quiet, noisy = world(turns=2, pay=pay), world(turns=2, pay=pay, noise=0.5)
    wrong = [{0}, {1, 2}]
    noise = np.array(
        [
            [b[0] - a[0] for a, b in zip(play(quiet, s, wrong), play(noisy, s, wrong), strict=True)]
            for s in range(2000)
        ]
    )
    paid = noise[:, -1] if pay == "late" else noise.ravel()
    assert pay != "late" or not noise[:, 0].any()
    assert abs(paid.mean()) < 4 * 0.5 / np.sqrt(len(paid))
    assert paid.std() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * len(paid)))
    assert len(set(paid)) == len(paid)
    # It depends on the seed alone, neither on the action nor on what was played before.
    other = [
        b[0] - a[0]
        for a, b in zip(play(quiet, 7, [{3}, set()]), play(noisy, 7, [{3}, set()]), strict=True)
    ]
    assert pay == "all" or np.allclose(other, noise[7])


def test_the_seed_draws_customers_uniformly_and_independently():
    env = world(turns=3)
    drawn = []
    for seed in range(1000):
        env.reset(seed=seed)
        drawn.append(list(env._orders))
    counts = np.stack([np.bincount(column, minlength=8) for column in np.array(drawn).T])
    assert counts.min() > 80
    assert counts.max() < 175
    assert np.mean([a == b for a, b, _ in drawn]) == pytest.approx(1 / 8, abs=0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        {"choices": 2, "words": 2, "turns": 2, "noise": 0.3},
        {"choices": 16, "words": 128, "turns": 3, "pay": "late"},
        {"choices": 8, "words": 32, "turns": 2, "offered": False, "pay": "all"},
    ],
)
def test_the_contract_holds_whatever_the_arguments(arguments: dict[str, Any]):
    check_env(lambda: make("poad/Order-v0", **arguments), episodes=8)


def test_written_freely_a_form_pays_as_when_it_is_offered():
    offered, free = world(turns=2), world(turns=2, offered=False)
    wrong = [{1}, set()]
    assert [s[:2] for s in play(offered, 3, wrong)] == [s[:2] for s in play(free, 3, wrong)]
    assert "admissible_actions" not in free.reset(seed=0)[1]
    env = world()
    env.reset(seed=0)
    assert env.step("a cake please")[4]["invalid_action"] == "a cake please"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"choices": 1}, "choices must be from 2 to 16, got 1"),
        ({"choices": 17, "words": 34}, "choices must be from 2 to 16, got 17"),
        ({"choices": 4, "words": 18}, "words must be a multiple of choices = 4, got 18"),
        ({"words": 0}, "words must be a multiple"),
        ({"turns": 4}, "turns must be from 1 to 3, got 4"),
        ({"pay": "late payment"}, "pay must be one of additive, all, late; got 'late payment'"),
        ({"noise": -0.1}, "noise must be a finite number from 0, got -0.1"),
        ({"noise": float("nan")}, "noise must be a finite number from 0, got nan"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        make("poad/Order-v0", **arguments)


# --- the embedded model -----------------------------------------------------------------------


def untrained(choices: int, words: int) -> Policy:
    arguments = {"choices": choices, "words": words}
    told = {"env": "poad/Order-v0", "env_args": arguments, "model": {"device": "cpu"}}
    return load_agent(from_dict(told | {"acting": {"max_action_tokens": words + 2}})).policy


@pytest.mark.parametrize(
    ("choices", "words", "least"), [(2, 2, 0.9), (4, 16, 0.8), (16, 16, 0.8), (8, 32, 0.75)]
)
def test_the_untrained_model_spells_forms_and_prefers_no_option(choices, words, least):
    env, policy = world(choices=choices, words=words), untrained(choices, words)
    seen = [n for n in env.customers for _ in range(20)]
    actions = policy.act([Observation(env.prompt(0, n)) for n in seen], np.random.default_rng(0))
    spelled = [
        action.text.split()[words // choices - 1 :: words // choices]
        for action, n in zip(actions, seen, strict=True)
        if action.text in env.form(n)
    ]
    assert len(spelled) >= least * len(seen)
    first = np.mean([[w == FIELDS[i][0] for i, w in enumerate(text)] for text in spelled], axis=0)
    assert np.abs(first - 0.5).max() < 0.25


@pytest.mark.parametrize(
    ("choices", "words"), [(2, 2), (2, 128), (4, 8), (8, 16), (16, 16), (16, 128), (3, 9)]
)
def test_offered_a_form_the_untrained_model_chooses_about_uniformly(choices, words):
    env, policy = world(choices=choices, words=words), untrained(choices, words)
    seen = [Observation(env.prompt(0, n), env.form(n)) for n in env.customers]
    chances = [
        np.exp(logprob)
        for action in policy.act(seen, np.random.default_rng(0))
        for logprob, choice in zip(action.logprob, action.choice, strict=True)
        if choice
    ]
    assert len(chances) == 8 * choices
    assert 0.2 < min(chances) <= max(chances) < 0.8


@pytest.mark.parametrize("choices", [4, 8])
def test_the_untrained_model_does_not_know_what_is_right(choices: int):
    env, policy = world(choices=choices, words=2 * choices), untrained(choices, 2 * choices)
    roots = [(policy.prompt_ids(Observation(env.prompt(0, n))), ()) for n in env.customers]
    values = OrderOracle(policy, 1.0, choices=choices, words=2 * choices)(roots)
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)
    assert values == pytest.approx([0.5] * 8, abs=0.1)
