"""The laws of credit, by their numbers in the algorithm's description."""

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
    JUNK,
    TURN_METHODS,
    assert_same_credit,
    random_trajectory,
)
from tolerance import rounding
from torch import Tensor
from trajectories import Trajectory, credit_of

from poad.credit import Credit, recursion, token_credit

seeds = st.integers(0, 2**32)
rates = st.sampled_from([0.0, 0.3, 0.9, 1.0])
DOUBLE = torch.float64


def free_trajectory(lengths: list[int], rewards: list[float], gamma: float) -> Trajectory:
    """One episode of freely written actions of these lengths, values 0, terminated."""
    t, d = len(lengths), max(lengths)
    mask = torch.arange(d) < torch.tensor(lengths)[:, None]
    reward = torch.zeros(t, d, dtype=DOUBLE)
    reward[torch.arange(t), torch.tensor(lengths) - 1] = torch.tensor(rewards, dtype=DOUBLE)
    last = torch.arange(t)[None] == t - 1
    return Trajectory(
        reward=reward[None],
        value=torch.zeros(1, t, d, dtype=DOUBLE),
        mask=mask[None],
        choice=mask[None],
        discount=torch.full((1, t), gamma, dtype=DOUBLE),
        cut=last,
        bootstrap=torch.zeros(1, t, dtype=DOUBLE),
        ended=last,
    )


# The recursion


@settings(deadline=None)
@given(seed=seeds, length=st.integers(0, 70))
def test_the_doubling_scan_is_the_loop_over_time(seed: int, length: int):
    rng = torch.Generator().manual_seed(seed)
    reward, value, ahead = torch.randn(3, 2, length, generator=rng, dtype=DOUBLE)
    discount, trace = torch.rand(2, 2, length, generator=rng, dtype=DOUBLE).round(decimals=1)
    given_tensors = [x.clone() for x in (reward, value, ahead, discount, trace)]
    advantage, target = recursion(reward, value, ahead, discount, trace)
    expected, after = torch.zeros_like(reward), torch.zeros(2, dtype=DOUBLE)
    for t in reversed(range(length)):
        delta = reward[:, t] + discount[:, t] * ahead[:, t] - value[:, t]
        after = delta + discount[:, t] * trace[:, t] * after
        expected[:, t] = after
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(target, expected + value)
    for x, before in zip((reward, value, ahead, discount, trace), given_tensors, strict=True):
        assert torch.equal(x, before)


def test_the_scan_stays_exact_over_long_streams():
    ones = torch.ones(1, 8192)
    advantage, _ = recursion(ones, 0 * ones, 0 * ones, 0.999 * ones, ones)
    rate = (0.999 * ones[0, 0]).item()  # as float32 knows it
    closed = (1 - rate ** torch.arange(8192, 0, -1, dtype=DOUBLE)) / (1 - rate)
    doublings = 13
    torch.testing.assert_close(
        advantage[0].double(), closed, rtol=rounding(depth=doublings), atol=0
    )
    advantage, _ = recursion(ones, 0 * ones, 0 * ones, ones, ones)
    assert torch.equal(advantage[0], torch.arange(8192, 0, -1).float())


# Law 2


@pytest.mark.parametrize(("length", "ntpo"), [(1, 0.95), (5, 0.63), (50, 6.2e-3), (200, 1.29e-9)])
def test_law_2_an_actions_length_fades_ntpo_and_leaves_poad_alone(length: int, ntpo: float):
    trajectory = free_trajectory([length, length], [0.0, 1.0], gamma=0.95)
    first = {m: credit_of(m, trajectory, 0.95, 1.0).target[0, 0, 0].item() for m in ALL_METHODS}
    assert first["ntpo"] == pytest.approx(ntpo, rel=0.01)
    assert first["ntpo"] == pytest.approx(0.95 ** (2 * length - 1))
    for method in ("poad", "twosome", "glam", "turn_ppo"):
        assert first[method] == pytest.approx(0.95, rel=1e-12)


@settings(deadline=None)
@given(
    seed=seeds,
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    longer=st.integers(0, 5),
)
def test_law_2_first_slot_targets_shrink_by_gamma_per_extra_token_in_ntpo_only(
    seed: int, lengths: list[int], longer: int
):
    rewards = torch.randn(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    short = free_trajectory(lengths, rewards, gamma=0.9)
    long = free_trajectory([lengths[0] + longer, *lengths[1:]], rewards, gamma=0.9)
    for method, factor in (("poad", 1.0), ("ntpo", 0.9**longer)):
        before = credit_of(method, short, 0.9, 1.0).target[0, 0, 0]
        after = credit_of(method, long, 0.9, 1.0).target[0, 0, 0]
        torch.testing.assert_close(after, factor * before)


@settings(deadline=None)
@given(seed=seeds, lam=rates)
def test_with_a_full_trace_inside_poads_first_slot_has_the_action_level_advantage(seed, lam):
    trajectory = random_trajectory(seed)
    trajectory = replace(trajectory, choice=trajectory.mask)
    poad = credit_of("poad", trajectory, 0.9, lam, lam_token=1.0)
    turn = credit_of("twosome", trajectory, 0.9, lam)
    root = turn.value_mask
    torch.testing.assert_close(poad.advantage[root], turn.advantage[root])
    torch.testing.assert_close(poad.target[root], turn.target[root])


# Law 3


def with_forced_tokens(trajectory: Trajectory, seed: int) -> tuple[Trajectory, Tensor]:
    """Up to three forced tokens in every turn, and where each old position has gone.

    What the critic reads at a forced token is NaN, except at a new first token: the root is still
    V(o_t).
    """
    rng = torch.Generator().manual_seed(seed)
    n, t, d = trajectory.reward.shape
    place = torch.rand((n, t, d + 3), generator=rng).argsort(-1)[..., :d].sort(-1).values
    present = trajectory.mask.any(-1, keepdim=True)

    def moved(values: Tensor, fill: float) -> Tensor:
        grown = torch.full((n, t, d + 3), fill, dtype=values.dtype)
        return grown.scatter(-1, place, values)

    old = moved(trajectory.mask, False)
    mask = old | (present & moved(torch.ones_like(trajectory.mask), False).logical_not())
    root = trajectory.value.gather(-1, trajectory.mask.long().argmax(-1, keepdim=True))
    is_root = mask & (mask.long().cumsum(-1) == 1)
    value = torch.where(is_root & ~old, root, moved(trajectory.value, math.nan))
    grown = replace(
        trajectory,
        mask=mask,
        choice=moved(trajectory.choice, False),
        value=value,
        reward=moved(trajectory.reward, 0.0).masked_fill(~old, 0.0),
    )
    return grown, place


@settings(deadline=None)
@given(seed=seeds, where=seeds, lam=rates, lam_token=st.none() | rates)
def test_law_3_forced_tokens_change_nothing(seed, where, lam, lam_token):
    trajectory = random_trajectory(seed)
    grown, place = with_forced_tokens(trajectory, where)
    for name in ALL_METHODS:
        options: dict[str, Any] = {"lam_token": lam_token, "slots": "choices"}
        before = credit_of(name, trajectory, 0.9, lam, **options)
        after = credit_of(name, grown, 0.9, lam, **options)
        assert torch.equal(after.mask.gather(-1, place), before.mask)
        torch.testing.assert_close(after.advantage.gather(-1, place), before.advantage)
        assert before.value_mask.sum() == after.value_mask.sum()
        torch.testing.assert_close(after.target[after.value_mask], before.target[before.value_mask])


@settings(deadline=None)
@given(
    seed=seeds,
    method=st.sampled_from(ALL_METHODS),
    left=st.integers(0, 3),
    right=st.integers(0, 3),
    turn=st.integers(0, 5),
    junk=st.sampled_from(JUNK),
)
def test_law_3_padding_of_any_content_on_any_side_changes_nothing(
    seed, method, left, right, turn, junk
):
    trajectory = random_trajectory(seed, junk=0.0)
    padded = {}
    for name, values in vars(trajectory).items():
        fill = junk if values.is_floating_point() else name == "ended"
        if values.dim() == 3:
            values = torch.nn.functional.pad(values, (left, right), value=fill)
        absent = torch.full_like(values[:, :1], fill)
        padded[name] = torch.cat([values[:, :turn], absent, values[:, turn:]], 1)
    real = torch.cat([torch.arange(turn), torch.arange(turn + 1, 6)])
    before = credit_of(method, trajectory, 0.9, 0.9)
    after = credit_of(method, Trajectory(**padded), 0.9, 0.9)
    inner = [getattr(after, name)[:, real, left : left + 4] for name in vars(after)]
    assert_same_credit(Credit(*inner), before)
    for outside, inside in zip(vars(after).values(), inner, strict=True):
        assert outside.bool().sum() == inside.bool().sum()


@settings(deadline=None)
@given(seed=seeds, method=st.sampled_from(ALL_METHODS), junk=st.sampled_from(JUNK))
def test_law_3_a_turns_reward_counts_wherever_it_sits_and_values_only_at_slots(seed, method, junk):
    trajectory = random_trajectory(seed, junk=0.0)
    before = credit_of(method, trajectory, 0.9, 0.9)
    first = trajectory.mask & (trajectory.mask.long().cumsum(-1) == 1)
    whole = trajectory.reward.sum(-1, keepdim=True)
    at_slots = torch.where(before.value_mask, trajectory.value, junk)
    if method == "reinforce":
        at_slots = torch.full_like(trajectory.value, junk)
    moved = replace(trajectory, reward=torch.where(first, whole, 0.0), value=at_slots)
    assert_same_credit(credit_of(method, moved, 0.9, 0.9), before)


# Law 4


@settings(deadline=None)
@given(seed=seeds, other=seeds, lam=rates, method=st.sampled_from(ALL_METHODS))
def test_law_4_a_cut_separates_episodes(seed, other, lam, method):
    one, two = random_trajectory(seed), random_trajectory(other)
    both = Trajectory(**{k: torch.cat([v, vars(two)[k]], 1) for k, v in vars(one).items()})
    apart = [credit_of(method, x, 0.9, lam) for x in (one, two)]
    joined = [torch.cat([vars(credit)[k] for credit in apart], 1) for k in vars(apart[0])]
    assert_same_credit(credit_of(method, both, 0.9, lam), Credit(*joined))


@settings(deadline=None)
@given(seed=seeds, lam=rates, method=st.sampled_from(CRITIC_METHODS))
def test_law_4_truncation_is_termination_with_the_discounted_value_as_reward(seed, lam, method):
    truncated = random_trajectory(seed, junk=0.0)
    first = truncated.mask & (truncated.mask.long().cumsum(-1) == 1)
    beyond = (truncated.discount * truncated.bootstrap)[..., None]
    terminated = replace(
        truncated,
        reward=truncated.reward + torch.where(first, beyond, 0.0),
        bootstrap=torch.zeros_like(truncated.bootstrap),
    )
    assert_same_credit(
        credit_of(method, terminated, 0.9, lam), credit_of(method, truncated, 0.9, lam)
    )


# Law 5 (exact values in expectation: test_exact_values.py)


@settings(deadline=None)
@given(seed=seeds)
def test_law_5_the_deltas_of_a_turn_sum_to_the_action_level_delta_under_bad(seed: int):
    # With λ = 0 and λ_token = 1 the first slot's advantage is the sum of its turn's δs. All tokens
    # are choices here; where the first is forced, the sum starts from the first choice's value.
    trajectory = random_trajectory(seed, junk=0.0)
    trajectory = replace(trajectory, choice=trajectory.mask)
    credit = credit_of("poad", trajectory, 0.9, 0.0, lam_token=1.0)
    n, t, _ = trajectory.reward.shape
    for i in range(n):
        turns = [j for j in range(t) if trajectory.mask[i, j].any()]
        root = {j: int(trajectory.mask[i, j].nonzero()[0]) for j in turns}
        for k, j in enumerate(turns):
            ahead = trajectory.bootstrap[i, j]
            if not trajectory.cut[i, j]:
                ahead = trajectory.value[i, turns[k + 1], root[turns[k + 1]]]
            delta = trajectory.reward[i, j].sum() + trajectory.discount[i, j] * ahead
            delta = delta - trajectory.value[i, j, root[j]]
            torch.testing.assert_close(credit.advantage[i, j, root[j]], delta)


@settings(deadline=None)
@given(seed=seeds, turn=st.integers(0, 4), lam=rates, method=st.sampled_from(CRITIC_METHODS))
def test_law_5_offering_a_single_action_changes_no_other_turns_credit(seed, turn, lam, method):
    # Exact values are constant along the only action (nothing is decided there), so without a
    # discount or a fading trace inside it, its tokens may as well be slots or not.
    trajectory = random_trajectory(seed)
    value = trajectory.value.clone()
    first = trajectory.mask[:, turn].long().argmax(-1, keepdim=True)
    value[:, turn] = value[:, turn].gather(-1, first)
    choice = trajectory.choice.clone()
    choice[:, turn] = trajectory.mask[:, turn]
    several = replace(trajectory, value=value, choice=choice)
    single = replace(several, choice=choice.clone())
    single.choice[:, turn] = False
    options: dict[str, Any] = {"lam_token": 1.0, "gamma_token": 1.0}
    one = credit_of(method, single, 0.9, lam, **options)
    many = credit_of(method, several, 0.9, lam, **options)
    others = [j for j in range(5) if j != turn]
    torch.testing.assert_close(one.advantage[:, others], many.advantage[:, others])
    torch.testing.assert_close(one.target[:, others], many.target[:, others])
    assert not one.mask[:, turn].any()
    assert torch.equal(one.value_mask[:, turn].any(-1), trajectory.mask[:, turn].any(-1))


@settings(deadline=None)
@given(seed=seeds, method=st.sampled_from(["poad", "ntpo", "twosome", "turn_ppo"]))
def test_law_5_a_single_action_could_be_folded_into_the_turn_before(seed: int, method: str):
    # The middle turn of three has one action: with λ = 1 the outer turns' credit is that of a
    # stream where the first turn pays r + γ·r_middle and is followed by γ·γ_middle.
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    choice = mask.clone()
    choice[:, 1] = False
    reward, value, discount, _ = torch.rand(
        4, 1, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE
    )
    cut = torch.tensor([[False, False, True]])
    zero = torch.zeros(1, 3, dtype=DOUBLE)
    long = Trajectory(reward, value, mask, choice, discount[..., 0], cut, zero, cut)
    folded = reward[:, [0, 2]].clone()
    folded[:, 0, 0] += discount[:, 0, 0] * reward[:, 1].sum(-1)
    short = Trajectory(
        folded,
        value[:, [0, 2]],
        mask[:, [0, 2]],
        choice[:, [0, 2]],
        torch.stack([discount[:, 0, 0] * discount[:, 1, 0], discount[:, 2, 0]], 1),
        cut[:, [0, 2]],
        zero[:, [0, 2]],
        cut[:, [0, 2]],
    )
    options: dict[str, Any] = {"gamma_token": 1.0, "slots": "choices"}
    credit = credit_of(method, long, 0.9, 1.0, **options)
    expected = credit_of(method, short, 0.9, 1.0, **options)
    outer = [x[:, [0, 2]] for x in vars(credit).values()]
    assert_same_credit(Credit(*outer), expected)
    assert torch.equal(credit.value_mask[0, 1], torch.tensor([True, False, False, False]))


# Law 6


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 0), (2, 0, 4), (0, 3, 4), (1, 1, 1)])
@pytest.mark.parametrize("present", [True, False])
def test_law_6_nothing_gained_and_nothing_expected_is_zero_credit(method, shape, present):
    zero, turns = torch.zeros(shape), shape[:2]
    mask = torch.full(shape, present)
    trajectory = Trajectory(
        reward=zero,
        value=zero,
        mask=mask,
        choice=mask,
        discount=torch.ones(turns),
        cut=torch.ones(turns, dtype=torch.bool),
        bootstrap=torch.zeros(turns),
        ended=torch.ones(turns, dtype=torch.bool),
    )
    credit = credit_of(method, trajectory, 1.0, 1.0)
    assert torch.equal(credit.advantage, zero)
    assert torch.equal(credit.target, zero)
    assert credit.mask.any() == mask.any()


# Law 9

REWARDS = [0.2, 0.3, 1.0]
VALUES = [[0.5, 0.5, 0.6, 0.4], [0.7, 0.9, 0.8], [0.8, 0.8, 0.9, 1.0]]
WORKED = {
    # γ = .9, λ = λ_token = .95, so the trace is γλ = .855 after a turn; terminated after turn 3.
    #
    # poad, inside a turn δ = v′ − v and the trace is .95:
    # turn 3   δ = 0, .1, .1, 1 − 1 = 0
    #          A = 0                     .1 + .95·0 = .1
    #              .1 + .95·.1 = .195    0 + .95·.195 = .18525
    # turn 2   δ = .2, −.1, .3 + .9·.8 − .8 = .22
    #          A = .22 + .855·.18525 = .37838875
    #              −.1 + .95·.37838875 = .2594693125
    #              .2 + .95·.2594693125 = .446495846875
    # turn 1   δ = 0, .1, −.2, .2 + .9·.7 − .4 = .43
    #          A = .43 + .855·.446495846875 = .811753949078125
    #              −.2 + .95·.811753949078125 = .57116625162421875
    #              .1 + .95·.57116625162421875 = .6426079390430078
    #              0 + .95·.6426079390430078 = .6104775420908574
    "poad": [
        [0.6104775420908574, 0.6426079390430078, 0.57116625162421875, 0.811753949078125],
        [0.446495846875, 0.2594693125, 0.37838875],
        [0.18525, 0.195, 0.1, 0.0],
    ],
    # ntpo, inside a turn δ = .9·v′ − v and the trace is .855 too:
    # turn 3   δ = .9·.8 − .8 = −.08, .9·.9 − .8 = .01, .9·1 − .9 = 0, 0
    #          A = 0, 0, .01, −.08 + .855·.01 = −.07145
    # turn 2   δ = .9·.9 − .7 = .11, .9·.8 − .9 = −.18, .22
    #          A = .22 + .855·(−.07145) = .15891025
    #              −.18 + .855·.15891025 = −.04413173625
    #              .11 + .855·(−.04413173625) = .07226736550625
    # turn 1   δ = .9·.5 − .5 = −.05, .9·.6 − .5 = .04, .9·.4 − .6 = −.24, .43
    #          A = .43 + .855·.07226736550625 = .49178859750784375
    #              −.24 + .855·.49178859750784375 = .1804792508692064
    #              .04 + .855·.1804792508692064 = .1943097594931715
    #              −.05 + .855·.1943097594931715 = .1161348443666616
    "ntpo": [
        [0.1161348443666616, 0.1943097594931715, 0.1804792508692064, 0.49178859750784375],
        [0.07226736550625, -0.04413173625, 0.15891025],
        [-0.07145, 0.01, 0.0, 0.0],
    ],
    # turn_ppo, one slot per turn with the first value:
    # turn 3   1 − .8 = .2
    # turn 2   .3 + .9·.8 − .7 + .855·.2 = .32 + .171 = .491
    # turn 1   .2 + .9·.7 − .5 + .855·.491 = .33 + .419805 = .749805
    "turn_ppo": [[0.749805] * 4, [0.491] * 3, [0.2] * 4],
    # archer_adrl, as ntpo but after turn 1 the value of turn 2's last token, .8, after turn 2 that
    # of turn 3's last token, 1:
    # turn 3   as ntpo
    # turn 2   δ = .11, −.18, .3 + .9·1 − .8 = .4
    #          A = .4 + .855·(−.07145) = .33891025
    #              −.18 + .855·.33891025 = .10976826375
    #              .11 + .855·.10976826375 = .20385186550625
    # turn 1   δ = −.05, .04, −.24, .2 + .9·.8 − .4 = .52
    #          A = .52 + .855·.20385186550625 = .69429334500784375
    #              −.24 + .855·.69429334500784375 = .3536208099817064
    #              .04 + .855·.3536208099817064 = .342345792534359
    #              −.05 + .855·.342345792534359 = .24270565261687694
    "archer_adrl": [
        [0.24270565261687694, 0.342345792534359, 0.3536208099817064, 0.69429334500784375],
        [0.20385186550625, 0.10976826375, 0.33891025],
        [-0.07145, 0.01, 0.0, 0.0],
    ],
    # reinforce: 1, .3 + .9·1 = 1.2, .2 + .9·1.2 = 1.28
    "reinforce": [[1.28] * 4, [1.2] * 3, [1.0] * 4],
}


@pytest.mark.parametrize("method", WORKED)
def test_law_9_the_worked_example(method: str):
    trajectory = free_trajectory([4, 3, 4], REWARDS, gamma=0.9)
    value = torch.tensor([[*row, math.nan][:4] for row in VALUES], dtype=DOUBLE)[None]
    credit = credit_of(method, replace(trajectory, value=value), 0.9, 0.95, lam_token=0.95)
    expected = [a for turn in WORKED[method] for a in turn]
    assert credit.advantage[credit.mask].tolist() == pytest.approx(expected, abs=1e-12)
    baseline = value[credit.value_mask]
    targets = credit.target[credit.value_mask]
    assert (targets - baseline).tolist() == pytest.approx(
        credit.advantage[credit.value_mask].tolist(), abs=1e-12
    )


@pytest.mark.parametrize("method", WORKED)
def test_law_9_the_worked_example_as_a_conversation(method: str):
    # Turn ids per token; None is an observation or padding.
    row = [None, None, 0, 0, 0, 0, None, 1, 1, 1, None, None, None, 2, 2, 2, 2, None]
    mask = torch.tensor([[t is not None for t in row]])
    turn_ids = torch.tensor([[-1 if t is None else t for t in row]])
    value, reward = torch.full((2, 1, len(row)), math.nan, dtype=DOUBLE)
    value[mask] = torch.tensor([v for turn in VALUES for v in turn], dtype=DOUBLE)
    reward[mask] = 0
    reward[0, [5, 9, 16]] = torch.tensor(REWARDS, dtype=DOUBLE)
    credit = token_credit(
        reward, value, mask, turn_ids, gamma=0.9, lam=0.95, lam_token=0.95, method=method
    )
    expected = [a for turn in WORKED[method] for a in turn]
    assert credit.advantage[mask].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(credit.mask, mask)


def test_turn_methods_judge_all_choices_of_a_turn_alike_and_train_the_critic_at_its_root():
    trajectory = random_trajectory(11)
    roots = trajectory.mask & (trajectory.mask.long().cumsum(-1) == 1)
    for method in TURN_METHODS:
        credit = credit_of(method, trajectory, 0.9, 0.9)
        assert torch.equal(credit.mask, trajectory.choice)
        assert torch.equal(credit.value_mask, roots)
        one = credit.advantage.masked_fill(~credit.mask, -math.inf).amax(-1, keepdim=True)
        assert torch.equal(credit.advantage[credit.mask], one.expand(3, 5, 4)[credit.mask])
