"""A form is for the policy what the list of its actions is, and it may have any number of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import PROMPTS, Zoo, assert_same

from poad.agent.policy import Policy
from poad.agent.sampling import ActingCache
from poad.agent.settings import Acting
from poad.config import PromptConfig
from poad.errors import ConfigError
from poad.lm.tokenizer import MAX_NODES
from poad.trie import Form, FormTree
from poad.turns import Observation, Turn

pytestmark = pytest.mark.usefixtures("float64")

# An optional part, alternatives that begin alike, and one that begins another.
FORM = Form(
    (("open", "look"), ("", " at"), (" the",), (" red", " reddish", " blue"), (" door", " tomato"))
)
HUGE = Form(tuple((f" no {i}", f" yes {i}") for i in range(60)))
SCHEMES = {
    "trie": Acting(),
    "word": Acting(scheme="score"),
    "sum": Acting(scheme="score", score="sum"),
    "published": Acting(scheme="published"),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def both(zoo: Zoo, tokenizer: str, scheme: str) -> tuple[Policy, list[Observation]]:
    """A policy, and the same offer as a form and as a list, which have the same tokens."""
    policy = Policy(zoo.load(tokenizer=tokenizer), SCHEMES[scheme])
    listed = tuple(FORM)
    tree = policy.codec.trie(FORM)
    assert [tree.token_path(n) for n in tree.all_leaves()] == list(map(policy.codec.action, listed))
    return policy, [Observation(PROMPTS[0], FORM), Observation(PROMPTS[0], listed)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tokenizer", ["bytes", "pieces_first"])
def test_a_form_is_acted_and_learned_as_the_list_of_its_actions(zoo: Zoo, tokenizer, scheme):
    policy, observations = both(zoo, tokenizer, scheme)
    probabilities = [policy.probabilities(o) for o in observations]
    assert_same(*map(torch.tensor, probabilities))
    assert_same(sum(probabilities[0]), 1.0)
    batches = []
    for o in observations:
        actions = policy.act([o] * 60, rng(), cache=ActingCache())
        turns = [Turn(policy.prompt_ids(o), action, 0.0) for action in actions]
        batch, decision, option = policy.decisions(turns)
        batches.append((actions, policy.evaluate(batch), decision, option))
    for form, listed in zip(batches[0][0], batches[1][0], strict=True):
        assert (form.text, form.token_ids, form.choice) == (
            listed.text,
            listed.token_ids,
            listed.choice,
        )
        assert_same(torch.tensor(form.logprob), torch.tensor(listed.logprob))
    assert len({action.text for action in batches[0][0]}) > 5
    # The decisions are the same, number for number, and so are their options.
    for one, other in zip(batches[0][1:], batches[1][1:], strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        else:
            assert_same(one.logprob.exp(), other.logprob.exp())
            assert_same(one.entropy, other.entropy)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_what_is_acted_in_a_huge_form_was_offered_and_is_recorded_exactly(zoo: Zoo, seed: int):
    policy = Policy(zoo.load())
    seen = Observation(PROMPTS[1], HUGE)
    actions = policy.act([seen, seen, Observation(PROMPTS[2], HUGE)], rng(seed))
    assert {a.text in HUGE for a in actions} == {True}
    assert {sum(a.choice) for a in actions} == {60}
    tree = policy.codec.trie(HUGE)
    assert isinstance(tree, FormTree)
    prompts = [PROMPTS[1], PROMPTS[1], PROMPTS[2]]
    turns = [Turn(policy.codec.prompt(p), a, 0.0) for p, a in zip(prompts, actions, strict=True)]
    batch, decision, option = policy.decisions(turns)
    again = policy.evaluate(batch).logprob[decision, option].where(decision >= 0, torch.tensor(0.0))
    assert_same(again, torch.tensor([value for a in actions for value in a.logprob]))


def test_greedy_takes_the_likeliest_option_of_every_field(zoo: Zoo):
    policy = Policy(zoo.load())
    (action,) = policy.act([Observation(PROMPTS[0], HUGE)], rng(), greedy=True)
    assert all(p >= np.log(0.5) - 1e-9 for p in action.logprob)


@pytest.mark.parametrize("scheme", ["word", "sum", "published"])
def test_whole_actions_of_a_huge_form_are_refused_and_the_way_out_is_named(zoo: Zoo, scheme):
    policy = Policy(zoo.load(), SCHEMES[scheme])
    with pytest.raises(ConfigError, match=r"more than 4,096. Use a method .* such as poad"):
        policy.act([Observation(PROMPTS[0], HUGE)], rng())


def test_the_actions_of_a_huge_form_have_no_list_of_probabilities(zoo: Zoo):
    with pytest.raises(ConfigError, match="form offers 1,152,921,504,606,846,976 of them"):
        Policy(zoo.load()).probabilities(Observation(PROMPTS[0], HUGE))


@pytest.mark.parametrize("prompt", [{"history": "episode"}, {"thinking": 4}])
def test_forms_go_with_history_and_thoughts(zoo: Zoo, prompt: dict[str, Any]):
    config = PromptConfig(**prompt)
    policy = Policy(zoo.load(), prompt=config)
    dialogue = policy.dialogue()
    ids = dialogue.first_prompt(PROMPTS[0])
    turns = []
    for _ in range(2):
        (action,) = policy.act([Observation(PROMPTS[0], HUGE, ids)], rng())
        turns.append(Turn(ids, action, 0.0))
        assert action.text in HUGE
        ids = dialogue.next_prompt(action, PROMPTS[0])
    batch, decision, option = policy.decisions(turns)
    again = policy.evaluate(batch).logprob[decision, option].where(decision >= 0, torch.tensor(0.0))
    assert_same(again, torch.tensor([value for t in turns for value in t.action.logprob]))


def test_equal_forms_share_a_tree_until_it_has_grown_too_large(zoo: Zoo):
    codec = zoo.load().codec
    tree = codec.trie(Form(HUGE.parts))
    assert codec.trie(HUGE) is tree
    choose, node = rng(), -1
    while tree.grown <= MAX_NODES:
        assert codec.trie(HUGE) is tree
        node = -1
        while options := tree.options(node):
            node = options[int(choose.integers(len(options)))]
    assert codec.trie(HUGE) is not tree
    assert tree.text(node) in HUGE  # those who hold it still can use it
