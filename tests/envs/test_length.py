"""The world of any length: longer words for the same decisions, and nothing else."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.agent.build import load_agent
from poad.agent.policy import Observation
from poad.config import from_dict
from poad.envs.length import KEYS, ROOMS
from poad.envs.registry import make


def offer(words: int) -> tuple[str, ...]:
    """What is offered in the kitchen."""
    return make("poad/Length-v0", words=words).reset(seed=0)[1]["admissible_actions"]


def play(
    words: int, choices: list[int], offered: bool = True
) -> list[tuple[str, float, bool, bool]]:
    """The room, and what happens when the actions of these places are taken, until the end."""
    env, seen = make("poad/Length-v0", words=words, offered=offered), []
    told = make("poad/Length-v0", words=words)
    env.reset(seed=0)
    _, offer = told.reset(seed=0)
    for choice in choices:
        action = offer["admissible_actions"][choice]
        *_, offer = told.step(action)
        prompt, reward, over, cut, info = env.step(action)
        assert ("admissible_actions" in info) is offered
        assert "invalid_action" not in info
        seen.append((prompt.split()[-1], float(reward), over, cut))
        if over or cut:
            break
    env.close()
    return seen


@settings(deadline=None)
@given(st.integers(2, 40), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_length_changes_nothing_but_the_spelling(words: int, choices: list[int]):
    assert play(words, choices) == play(2, choices)


@settings(deadline=None)
@given(st.integers(2, 40), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_written_freely_an_action_does_the_same_as_when_it_is_offered(
    words: int, choices: list[int]
):
    assert play(words, choices, offered=False) == play(words, choices)


def test_a_room_and_numbers_fill_the_rest():
    assert offer(8)[1] == "milk two three kitchen clothes six seven eight"
    assert offer(1119)[0].split()[-2:] == [
        "onethousandonehundredeighteen",
        "onethousandonehundrednineteen",
    ]
    for words in (31, 128, 1200):
        for action in offer(words):
            assert len(set(action.split())) == len(action.split()) == words


def test_only_the_right_bits_lead_on():
    right = [2 * first + second for first, second in KEYS]
    assert [reward for _, reward, _, _ in play(6, right)] == [0, 0, 0, 1]
    wrong = [(choice + 1) % 4 for choice in right[:1]] * 8
    assert {prompt for prompt, *_ in play(6, wrong)} == {play(2, wrong)[0][0]}


@pytest.mark.parametrize("words", [2, 8, 32, 128])
def test_every_word_is_a_token_and_the_two_choices_are_half_an_action_apart(words: int):
    told = {"env": "poad/Length-v0", "model": {"device": "cpu"}}
    agent = load_agent(from_dict(told | {"env_args": {"words": words}}))
    env = make("poad/Length-v0", words=words)
    _, info = env.reset(seed=0)
    spelled = [agent.model.codec.action(text) for text in info["admissible_actions"]]
    assert {len(tokens) for tokens in spelled} == {words + 1}  # and the end of the action
    differ = {j for j in range(words + 1) if len({tokens[j] for tokens in spelled}) > 1}
    assert differ == {0, words // 2}
    env.close()


@pytest.mark.parametrize("words", [2, 8, 32, 128])
def test_the_untrained_model_spells_actions_and_prefers_none(words: int):
    told = {"env": "poad/Length-v0", "model": {"device": "cpu"}}
    told |= {"acting": {"max_action_tokens": words + 2}}
    agent = load_agent(from_dict(told | {"env_args": {"words": words, "offered": False}}))
    prompt, info = make("poad/Length-v0", words=words, offered=False).reset(seed=0)
    assert "admissible_actions" not in info
    seen = [Observation(prompt, None)] * 400
    texts = [action.text for action in agent.policy.act(seen, np.random.default_rng(0))]
    counts = [  # it is not always sure of the room
        sum(texts.count(action.replace("kitchen", room)) for room in ROOMS)
        if words > 3
        else texts.count(action)
        for action in offer(words)
    ]
    assert sum(counts) >= 310
    assert min(counts) >= 0.15 * sum(counts)


def test_the_manual_states_how_often_a_random_agent_succeeds():
    chance = sum(comb(8, k) * 0.25**k * 0.75 ** (8 - k) for k in range(4, 9))
    manual = " ".join((type(make("poad/Length-v0").unwrapped).__doc__ or "").split())
    assert f"succeeds in {100 * chance:.0f} % of its episodes" in manual


def test_an_action_has_at_least_two_words():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make("poad/Length-v0", words=1)
