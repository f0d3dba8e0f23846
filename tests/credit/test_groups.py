"""Group methods compare episodes that began alike, and what is compared is told by laws."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_credit import GROUP_METHODS, JUNK
from torch import Tensor

from poad.credit import Credit, group_credit, token_credit

seeds = st.integers(0, 2**32 - 1)
methods = st.sampled_from(GROUP_METHODS)


class Turns(NamedTuple):
    """An episode: a reward, a state and the choices of each turn's tokens."""

    rewards: list[float]
    states: list[int]
    choices: list[list[bool]]


Rows = list[list[Turns]]
"""Rows of finished episodes; the n-th of each two rows are a group."""


def random_rows(seed: int, rows: int = 4, episodes: int = 3) -> Rows:
    rng = random.Random(seed)

    def episode() -> Turns:
        length = rng.randint(1, 4)
        return Turns(
            [rng.choice((-1.0, 0.0, 0.5, 2.0)) for _ in range(length)],
            [rng.randrange(3) for _ in range(length)],
            [[rng.random() < 0.6 for _ in range(rng.randint(1, 3))] for _ in range(length)],
        )

    return [[episode() for _ in range(episodes)] for _ in range(rows)]


def tensors(rows: Rows, junk: float = 0.0, size: int = 2) -> dict[str, Any]:
    """The arguments of `token_credit`; values and whatever lies outside the mask are junk."""
    length = max(sum(len(c) for e in row for c in e.choices) for row in rows) + 1
    shape = (len(rows), length)
    floats = {name: torch.full(shape, junk, dtype=torch.float64) for name in ("reward",)}
    ints = {
        name: torch.zeros(shape, dtype=torch.int64)
        for name in ("turn_ids", "episode_ids", "group_ids", "state_ids")
    }
    bools = {name: torch.zeros(shape, dtype=torch.bool) for name in ("mask", "choice")}
    for r, row in enumerate(rows):
        column = turn = 0
        for e, episode in enumerate(row):
            for reward, state, choices in zip(*episode, strict=True):
                for j, choice in enumerate(choices):
                    floats["reward"][r, column] = reward if j + 1 == len(choices) else 0.0
                    ints["turn_ids"][r, column], ints["episode_ids"][r, column] = turn, e
                    ints["group_ids"][r, column] = r // size * 100 + e
                    ints["state_ids"][r, column] = state
                    bools["mask"][r, column], bools["choice"][r, column] = True, choice
                    column += 1
                turn += 1
        for name in ("turn_ids", "episode_ids"):  # ids of padding must not fall
            ints[name][r, column:] = 1000
    return floats | ints | bools


def credit_of(method: str, rows: Rows, gamma: float, junk: float = 0.0, **rest: Any) -> Credit:
    return group_credit(**(tensors(rows, junk) | rest), method=method, gamma=gamma)


def by_hand(method: str, rows: Rows, gamma: float, size: int = 2) -> list[list[list[float]]]:
    """The advantage of each turn of each episode of each row, by loops."""
    returns = []
    for row in rows:
        returns.append([])
        for episode in row:
            after, each = 0.0, []
            for reward in reversed(episode.rewards):
                after = reward + gamma * after
                each.insert(0, after)
            returns[-1].append(each)

    def compared(value: float, others: list[float]) -> float:
        if len(others) < 2:
            return 0.0
        away = value - statistics.fmean(others)
        return away / (statistics.stdev(others) + 1e-6)

    wholes, behind = defaultdict(list), defaultdict(list)
    for r, row in enumerate(rows):
        for e, episode in enumerate(row):
            wholes[r // size, e].append(returns[r][e][0])
            for state, value in zip(episode.states, returns[r][e], strict=True):
                behind[r // size, e, state].append(value)
    advantages = []
    for r, row in enumerate(rows):
        advantages.append([])
        for e, episode in enumerate(row):
            whole = compared(returns[r][e][0], wholes[r // size, e])
            steps = [
                compared(value, behind[r // size, e, state]) if method == "gigpo" else 0.0
                for state, value in zip(episode.states, returns[r][e], strict=True)
            ]
            advantages[-1].append([whole + step for step in steps])
    return advantages


def laid_out(rows: Rows, advantages: list[list[list[float]]], like: Tensor) -> Tensor:
    """The advantages at every choice, [N, L]."""
    found = torch.zeros_like(like)
    for r, row in enumerate(rows):
        flat = [
            advantages[r][e][t] if choice else 0.0
            for e, episode in enumerate(row)
            for t, choices in enumerate(episode.choices)
            for choice in choices
        ]
        found[r, : len(flat)] = torch.tensor(flat, dtype=like.dtype)
    return found


@given(
    seed=seeds, method=methods, gamma=st.sampled_from((1.0, 0.9, 0.0)), junk=st.sampled_from(JUNK)
)
def test_it_is_what_loops_compute_whatever_lies_elsewhere(seed, method, gamma, junk):
    rows = random_rows(seed)
    credit = credit_of(method, rows, gamma, junk)
    expected = laid_out(rows, by_hand(method, rows, gamma), credit.advantage)
    torch.testing.assert_close(credit.advantage, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(credit.mask, tensors(rows)["choice"])
    assert not credit.value_mask.any()
    assert not credit.target.any()


@given(seed=seeds, method=methods)
def test_what_all_of_a_group_earned_alike_earns_nothing(seed: int, method: str):
    rows = random_rows(seed)
    for row in rows[1::2]:  # every second row does what the one before it did
        row[:] = rows[rows.index(row) - 1]
    credit = credit_of("grpo", rows, 1.0)
    assert not credit.advantage.any()
    shifted = [[e._replace(rewards=[r + 1.0 for r in e.rewards]) for e in row] for row in rows]
    assert not credit_of("grpo", shifted, 1.0).advantage.any()


@given(seed=seeds, factor=st.floats(0.5, 100), method=methods)
def test_the_scale_of_rewards_does_not_matter(seed: int, factor: float, method: str):
    rows = random_rows(seed)
    scaled = [[e._replace(rewards=[factor * r for r in e.rewards]) for e in row] for row in rows]
    one, other = (credit_of(method, each, 0.9).advantage for each in (rows, scaled))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@given(seed=seeds, method=methods)
def test_groups_are_strangers_to_each_other(seed: int, method: str):
    rows = random_rows(seed)
    changed = [*rows[:2], *random_rows(seed + 1)[2:]]
    one, other = (credit_of(method, each, 0.9) for each in (rows, changed))
    length = min(one.advantage.shape[1], other.advantage.shape[1])
    assert torch.equal(one.advantage[:2, :length], other.advantage[:2, :length])


@given(seed=seeds)
def test_without_a_state_twice_steps_add_nothing(seed: int):
    rows = random_rows(seed)
    number = 0
    for row in rows:
        for e, episode in enumerate(row):
            states = list(range(number, number + len(episode.states)))
            row[e], number = episode._replace(states=states), number + len(states)
    credits = [credit_of(method, rows, 0.9).advantage for method in GROUP_METHODS]
    assert torch.equal(*credits)


@given(seed=seeds, method=methods)
def test_an_episode_that_goes_on_takes_no_part(seed: int, method: str):
    rows = random_rows(seed, rows=4, episodes=2)
    ended = torch.tensor([False, True, True, True])
    credit = credit_of(method, rows, 0.9, ended=ended)
    shorter = [rows[0][:1], *rows[1:]]
    without = credit_of(method, shorter, 0.9)
    length = sum(len(c) for c in rows[0][0].choices)
    assert torch.equal(credit.advantage[0, :length], without.advantage[0, :length])
    assert not credit.mask[0, length:].any()
    same = min(credit.advantage.shape[1], without.advantage.shape[1])
    assert torch.equal(credit.advantage[1:, :same], without.advantage[1:, :same])


def test_what_cannot_be_compared_is_told():
    given_ = tensors(random_rows(0))
    with pytest.raises(ValueError, match="gigpo compares turns behind equal prompts; give state_"):
        group_credit(**given_ | dict[str, Any](state_ids=None), method="gigpo", gamma=1.0)
    with pytest.raises(ValueError, match="reinforce judges each episode by itself"):
        group_credit(**given_, method="reinforce", gamma=1.0)
    small = dict[str, Any](group_ids=torch.zeros(1, 1).long())
    with pytest.raises(ValueError, match="group_ids has shape"):
        group_credit(**given_ | small, gamma=1.0)
    with pytest.raises(TypeError, match="group_ids has dtype"):
        group_credit(**given_ | dict[str, Any](group_ids=given_["reward"]), gamma=1.0)
    for name in ("group_ids", "state_ids"):
        del given_[name]
    with pytest.raises(ValueError, match=r"grpo compares episodes; call poad.credit.group_credit"):
        token_credit(value=given_["reward"], **given_, method="grpo", gamma=1.0, lam=1.0)
