"""Laws of what advantages take from the critic inside actions: β, λ of the actor, and bits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_credit import (
    ALL_METHODS,
    CRITIC_METHODS,
    TURN_METHODS,
    assert_same_credit,
    random_bits,
    random_trajectory,
)
from torch import Tensor
from trajectories import Trajectory, credit_of, token_tensors

from poad.credit import token_credit

seeds = st.integers(0, 2**32)
rates = st.sampled_from([0.0, 0.3, 0.9, 1.0])
slot_rules = st.sampled_from(["choices", "tokens"])
traces = st.sampled_from(["token", "bit"])
TOKEN_METHODS = tuple(method for method in CRITIC_METHODS if method not in TURN_METHODS)
GAMMA = 0.9


def first_tokens(trajectory: Trajectory) -> Tensor:
    """[N, T, D] bool: the root of each turn."""
    return trajectory.mask & (trajectory.mask.long().cumsum(-1) == 1)


def root_values(trajectory: Trajectory) -> Tensor:
    """[N, T, 1] the value at each turn's root; 0 for an absent turn."""
    at_root = trajectory.value.masked_fill(~first_tokens(trajectory), 0)
    return at_root.sum(-1, keepdim=True)


# Between turn-level PPO and POAD


@settings(deadline=None, max_examples=60)
@given(seed=seeds, lam=rates, slots=slot_rules, trace=traces)
def test_without_inner_values_and_with_a_full_trace_poad_is_turn_level_ppo(seed, lam, slots, trace):
    trajectory = random_trajectory(seed)
    options: dict[str, Any] = {"slots": slots, "lam_token": 1.0, "beta": 0.0, "trace": trace}
    bits = random_bits(trajectory, seed)
    poad = credit_of("poad", trajectory, GAMMA, lam, **options, bits=bits)
    turn = credit_of("turn_ppo", trajectory, GAMMA, lam)
    assert torch.equal(poad.mask, turn.mask)
    torch.testing.assert_close(poad.advantage, turn.advantage, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(seed=seeds, lam=rates, slots=slot_rules)
def test_with_a_full_trace_inside_poad_is_turn_level_ppo_with_another_baseline(seed, lam, slots):
    """A_poad[j] = A_turn + V(o) − V(o, w_<j). Nothing is bootstrapped inside an action.

    A turn follows from the value of the next turn's first slot. So the critic must read V(o) there,
    as it does if the first token is a choice. With λ = 1 after turns even that cancels.
    """
    trajectory = random_trajectory(seed)
    root = root_values(trajectory)
    if lam < 1:
        first_choice = trajectory.choice & (trajectory.choice.long().cumsum(-1) == 1)
        value = torch.where(first_choice, root, trajectory.value)
        trajectory = replace(trajectory, value=value)
    poad = credit_of("poad", trajectory, GAMMA, lam, lam_token=1.0, slots=slots)
    turn = credit_of("turn_ppo", trajectory, GAMMA, lam)
    expected = turn.advantage + root - trajectory.value
    assert torch.equal(poad.mask, turn.mask)
    torch.testing.assert_close(
        poad.advantage[poad.mask], expected[poad.mask], rtol=1e-12, atol=1e-12
    )


@settings(deadline=None)
@given(seed=seeds, lam=rates, beta=rates)
def test_at_a_full_trace_beta_goes_straight_from_one_to_the_other(seed, lam, beta):
    trajectory = random_trajectory(seed)
    none, some, whole = (
        credit_of("poad", trajectory, GAMMA, lam, lam_token=1.0, beta=share, slots="tokens")
        for share in (0.0, beta, 1.0)
    )
    expected = torch.lerp(none.advantage, whole.advantage, beta)
    torch.testing.assert_close(some.advantage, expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(
    seed=seeds,
    method=st.sampled_from(ALL_METHODS),
    lam=rates,
    lam_token=st.none() | rates,
    slots=slot_rules,
)
def test_the_published_recursion_is_a_beta_of_1_and_one_trace_for_all(
    seed, method, lam, lam_token, slots
):
    trajectory = random_trajectory(seed)
    options: dict[str, Any] = {"lam_token": lam_token, "slots": slots}
    plain = credit_of(method, trajectory, GAMMA, lam, **options)
    same = lam_token
    if same is None:
        same = lam if method in ("ntpo", "archer_adrl") else 1.0
    rows = torch.ones(len(trajectory.reward), dtype=torch.float64)
    for given_rates in (
        {"beta": 1.0, "lam_actor": same, "trace": "token"},
        {"beta": rows, "lam_actor": same * rows},
    ):
        assert_same_credit(
            credit_of(method, trajectory, GAMMA, lam, **options, **given_rates), plain, 0
        )


# Advantages only


@settings(deadline=None)
@given(
    seed=seeds,
    method=st.sampled_from(ALL_METHODS),
    lam=rates,
    lam_token=st.none() | rates,
    slots=slot_rules,
    beta=rates,
    lam_actor=st.none() | rates,
    trace=traces,
)
def test_the_critics_targets_do_not_depend_on_what_advantages_take(
    seed, method, lam, lam_token, slots, beta, lam_actor, trace
):
    trajectory = random_trajectory(seed)
    options: dict[str, Any] = {"lam_token": lam_token, "slots": slots}
    plain = credit_of(method, trajectory, GAMMA, lam, **options)
    bits = random_bits(trajectory, seed)
    options |= {"beta": beta, "lam_actor": lam_actor, "trace": trace, "bits": bits}
    found = credit_of(method, trajectory, GAMMA, lam, **options)
    assert torch.equal(found.target, plain.target)
    assert torch.equal(found.value_mask, plain.value_mask)
    assert torch.equal(found.mask, plain.mask)
    if method in TURN_METHODS or method == "reinforce":
        assert torch.equal(found.advantage, plain.advantage)


@settings(deadline=None)
@given(seed=seeds, method=st.sampled_from(TOKEN_METHODS), trace=traces, lam=rates)
def test_a_rate_for_each_row_is_that_rate_for_that_row(seed, method, trace, lam):
    trajectory = random_trajectory(seed, n=4)
    bits = random_bits(trajectory, seed)
    rng = torch.Generator().manual_seed(seed)
    beta, inside = torch.rand(2, 4, generator=rng, dtype=torch.float64)
    whole = credit_of(
        method, trajectory, GAMMA, lam, beta=beta, lam_actor=inside, trace=trace, bits=bits
    )
    for n in range(4):
        row = Trajectory(**{name: each[n : n + 1] for name, each in vars(trajectory).items()})
        alone = credit_of(
            method,
            row,
            GAMMA,
            lam,
            beta=float(beta[n]),
            lam_actor=float(inside[n]),
            trace=trace,
            bits=bits[n : n + 1],
        )
        for name, values in vars(alone).items():
            torch.testing.assert_close(vars(whole)[name][n : n + 1], values, rtol=1e-12, atol=1e-12)


# A decision that is made already


def with_one_more(
    trajectory: Trajectory, bits: Tensor, entropy: float, value: float, seed: int
) -> tuple[Trajectory, Tensor, Tensor]:
    """Each turn with one more choice behind its root, where the critic reads `value`.

    Returns the trajectory, its bits, and where each old token has gone.
    """
    n, t, d = trajectory.mask.shape
    rng = torch.Generator().manual_seed(seed)
    start = trajectory.mask.long().argmax(-1, keepdim=True)  # the root; 0 for an absent turn
    at = start + 1 + (torch.rand((n, t, 1), generator=rng) * (d - start)).long()  # start + 1 to d
    old = torch.arange(d).expand(n, t, d)
    place = old + (old >= at)
    present = trajectory.mask.any(-1, keepdim=True)

    def moved(values: Tensor, fill: float) -> Tensor:
        grown = torch.full((n, t, d + 1), fill, dtype=values.dtype)
        return grown.scatter(-1, place, values)

    new = torch.zeros((n, t, d + 1), dtype=torch.bool).scatter(-1, at, present)
    grown = replace(
        trajectory,
        mask=moved(trajectory.mask, False) | new,
        choice=moved(trajectory.choice, False) | new,
        value=moved(trajectory.value, math.nan).masked_fill(new, value),
        reward=moved(trajectory.reward, math.nan).masked_fill(new, 0.0),
    )
    return grown, moved(bits, math.nan).masked_fill(new, entropy), place


def moved_by(
    seed: int, entropy: float, value: float, lam: float, slots: str = "tokens", **options: Any
) -> float:
    """The largest change of an old advantage if each turn gets one more decision."""
    trajectory = random_trajectory(seed)
    bits = random_bits(trajectory, seed)
    grown, more_bits, place = with_one_more(trajectory, bits, entropy, value, seed)
    before = credit_of("poad", trajectory, GAMMA, lam, slots=slots, bits=bits, **options)
    after = credit_of("poad", grown, GAMMA, lam, slots=slots, bits=more_bits, **options)
    assert torch.equal(after.mask.gather(-1, place), before.mask)
    assert after.mask.sum() > before.mask.sum() or not trajectory.mask.any()
    return float((after.advantage.gather(-1, place) - before.advantage).abs().max())


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    lam=rates,
    lam_actor=rates,
    beta=rates,
    value=st.sampled_from([0.0, -3.0, 1e3]),
)
def test_by_the_bit_a_decision_that_is_made_already_is_transparent(
    seed, lam, lam_actor, beta, value
):
    """Anywhere behind the root, and whatever the critic reads there."""
    options: dict[str, Any] = {"lam_actor": lam_actor, "beta": beta, "trace": "bit"}
    assert moved_by(seed, 0.0, value, lam, **options) < 1e-10


def test_by_the_bit_a_decision_that_is_nearly_made_changes_hardly_anything() -> None:
    for seed in range(20):
        by_bit = moved_by(seed, 1e-6, 2.0, 0.9, lam_actor=0.5, trace="bit")
        by_token = moved_by(seed, 1e-6, 2.0, 0.9, lam_actor=0.5, trace="token")
        assert 0 < by_bit < 1e-5
        assert by_token > 0.01


def test_at_the_root_it_is_a_new_root_for_the_turns_before() -> None:
    """They follow from what is read there. The turn itself and later ones do not notice."""
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    without = mask.clone()
    without[0, 1, 0] = False
    cut = torch.tensor([[False, False, True]])
    rng = torch.Generator().manual_seed(1)
    value, bits = torch.rand(2, 1, 3, 3, generator=rng, dtype=torch.float64)
    bits[0, 1, 0] = 0.0
    zero = torch.zeros(1, 3, dtype=torch.float64)

    def advantages(mask: Tensor, first: float, lam: float) -> Tensor:
        value[0, 1, 0] = first
        trajectory = Trajectory(value**2, value, mask, mask, 1 + zero, cut, zero, cut)
        # the reward of a token that may be left out is 0
        trajectory.reward[0, 1, 0] = 0.0
        options: dict[str, Any] = {"lam_actor": 0.5, "trace": "bit", "bits": bits}
        return credit_of("poad", trajectory, 1.0, lam, **options).advantage[0]

    same = float(value[0, 1, 1])
    for lam, first, earlier_too in ((0.5, 9.0, False), (0.5, same, False), (0.0, same, True)):
        before, after = advantages(without, first, lam), advantages(mask, first, lam)
        torch.testing.assert_close(after[1, 1:], before[1, 1:])
        torch.testing.assert_close(after[2], before[2])
        assert torch.allclose(after[0], before[0]) == earlier_too


# Refusals


def refused(message: str, **options: Any) -> None:
    trajectory = random_trajectory(0)
    with pytest.raises(ValueError, match=message):
        token_credit(**token_tensors(trajectory), gamma=GAMMA, lam=GAMMA, **options)


@pytest.mark.parametrize("name", ["beta", "lam_actor"])
def test_rates_that_cannot_be_are_refused(name: str) -> None:
    for bad in (-0.1, 1.5, math.nan, math.inf):
        refused(rf"{name} is {bad}; it must lie in \[0, 1\]", **{name: bad})
        refused(rf"{name} is {bad}; it must lie", **{name: torch.tensor([0.5, bad, 0.5]).double()})


@pytest.mark.parametrize("name", ["beta", "lam_actor"])
@pytest.mark.parametrize("method", ["poad", "turn_ppo"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 1), (3, 20)])
def test_rates_that_do_not_go_with_the_rows_are_refused(name: str, method: str, shape: Any) -> None:
    message = rf"{name} has shape .*; give a number, or one for each row: \(3,\)"
    refused(message, method=method, **{name: torch.full(shape, 0.5)})


def test_bits_that_cannot_be_are_refused_where_there_is_a_token() -> None:
    trajectory = random_trajectory(0)
    flat = trajectory.mask.reshape(3, -1)
    row, place = (int(each) for each in flat.nonzero()[5])
    good = random_bits(trajectory, 0, junk=math.nan).reshape(flat.shape)
    for bad in (-1e-9, math.nan, -math.inf):
        bits = good.clone()
        bits[row, place] = bad
        refused(rf"bits is negative or NaN at \({row}, {place}\)", trace="bit", bits=bits)
    refused(r"bits has shape \(3, 2\); expected \(3, 20\)", trace="bit", bits=good[:, :2])
    refused('trace = "bit" needs `bits`', trace="bit")
    refused("Unknown trace 'word'; there are token, bit", trace="word")
