"""The world of any length: longer words for the same decisions, and nothing else."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.agent import load_agent
from poad.config import from_dict
from poad.envs import make
from poad.envs.length import KEYS


def play(words: int, choices: list[int]) -> list[tuple[str, float, bool, bool]]:
    """What happens when the offered actions of these places are taken, until the end."""
    env, seen = make("poad/Length-v0", words=words), []
    _, info = env.reset(seed=0)
    for choice in choices:
        prompt, reward, over, cut, info = env.step(info["admissible_actions"][choice])
        seen.append((prompt, float(reward), over, cut))
        if over or cut:
            break
    env.close()
    return seen


@settings(deadline=None)
@given(st.integers(2, 40), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_length_changes_nothing_but_the_spelling(words: int, choices: list[int]):
    assert play(words, choices) == play(2, choices)


def test_only_the_right_bits_lead_on():
    right = [2 * first + second for first, second in KEYS]
    assert [reward for _, reward, _, _ in play(6, right)] == [0, 0, 0, 1]
    wrong = [(choice + 1) % 4 for choice in right[:1]] * 8
    assert {prompt for prompt, *_ in play(6, wrong)} == {play(2, wrong)[0][0]}


@pytest.mark.parametrize("words", [2, 8, 32, 128])
def test_every_word_is_a_token_and_the_two_choices_lie_half_an_action_apart(words: int):
    told = {"env": "poad/Length-v0", "model": {"name": "tiny-household", "device": "cpu"}}
    agent = load_agent(from_dict(told | {"env_args": {"words": words}}))
    env = make("poad/Length-v0", words=words)
    _, info = env.reset(seed=0)
    spelled = [agent.model.codec.action(text) for text in info["admissible_actions"]]
    assert {len(tokens) for tokens in spelled} == {words + 1}  # and the end of the action
    differ = {j for j in range(words + 1) if len({tokens[j] for tokens in spelled}) > 1}
    assert differ == {0, words // 2}
    env.close()


def test_the_manual_tells_how_often_chance_succeeds():
    chance = sum(comb(8, k) * 0.25**k * 0.75 ** (8 - k) for k in range(4, 9))
    manual = " ".join((type(make("poad/Length-v0").unwrapped).__doc__ or "").split())
    assert f"succeeds in {100 * chance:.0f} % of its episodes" in manual


def test_an_action_needs_room_for_its_two_words():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make("poad/Length-v0", words=1)
