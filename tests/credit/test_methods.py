from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_credit import (
    ALL_METHODS,
    CRITIC_METHODS,
    GROUP_METHODS,
    JUNK,
    TURN_METHODS,
    assert_same_credit,
    naive_credit,
    random_bits,
    random_trajectory,
    textbook_gae,
)
from tolerance import rounding
from torch import Tensor
from trajectories import Trajectory, credit_of

from poad.credit import METHODS, Credit, Method, find_method, token_credit
from poad.errors import ConfigError

rates = st.sampled_from([0.0, 0.3, 0.9, 1.0])
seeds = st.integers(0, 2**32)
methods = st.sampled_from(ALL_METHODS)


@settings(deadline=None, max_examples=300)
@given(
    seed=seeds,
    n=st.integers(1, 3),
    t=st.integers(1, 6),
    d=st.integers(1, 5),
    junk=st.sampled_from(JUNK),
    method=methods,
    gamma=rates,
    lam=rates,
    lam_token=st.none() | rates,
    gamma_token=st.none() | rates,
    slots=st.sampled_from([None, "choices", "tokens"]),
    lam_actor=st.none() | rates,
    trace=st.sampled_from(["token", "bit"]),
    beta=rates,
)
def test_every_method_is_the_naive_double_sum(
    seed, n, t, d, junk, method, gamma, lam, lam_token, gamma_token, slots, lam_actor, trace, beta
):
    trajectory = random_trajectory(seed, n, t, d, junk=junk)
    options = {"lam_token": lam_token, "gamma_token": gamma_token, "slots": slots}
    options |= {"lam_actor": lam_actor, "trace": trace, "beta": beta}
    options["bits"] = random_bits(trajectory, seed, junk)
    found = credit_of(method, trajectory, gamma, lam, **options)
    assert_same_credit(found, naive_credit(trajectory, method, gamma, lam, **options))


@settings(deadline=None)
@given(seed=seeds, gamma=rates, lam=rates, method=methods)
def test_law_1_with_one_token_per_action_every_method_is_textbook_gae(seed, gamma, lam, method):
    rng = torch.Generator().manual_seed(seed)
    reward, value, bootstrap = torch.randn(3, 1, 8, generator=rng, dtype=torch.float64)
    cut = torch.rand(1, 8, generator=rng) < 0.3
    cut[:, -1] = True
    if method == "reinforce":
        value, bootstrap, lam = torch.zeros_like(value), torch.zeros_like(bootstrap), 1.0
    trajectory = Trajectory(
        reward=reward[..., None],
        value=value[..., None],
        mask=torch.ones(1, 8, 1, dtype=torch.bool),
        choice=torch.ones(1, 8, 1, dtype=torch.bool),
        discount=torch.full_like(reward, gamma),
        cut=cut,
        bootstrap=bootstrap,
        ended=cut,
    )
    credit = credit_of(method, trajectory, gamma, lam, lam_token=0.5, gamma_token=0.5)
    r, v, b, c = (x[0].tolist() for x in (reward, value, bootstrap, cut))
    delta = [r[i] + gamma * (b[i] if c[i] else v[i + 1]) - v[i] for i in range(8)]
    gae = textbook_gae(delta, [0.0 if x else gamma * lam for x in c])
    expected = torch.tensor(gae, dtype=torch.float64)
    torch.testing.assert_close(credit.advantage.flatten(), expected)
    if method in CRITIC_METHODS:
        torch.testing.assert_close(credit.target.flatten(), expected + value[0])


@given(seed=seeds, gamma=rates, lam=rates, lam_token=rates)
@settings(deadline=None)
def test_ntpo_without_a_discount_inside_is_poad_with_all_tokens_as_slots(
    seed, gamma, lam, lam_token
):
    trajectory = random_trajectory(seed)
    ntpo = credit_of("ntpo", trajectory, gamma, lam, lam_token=lam_token, gamma_token=1.0)
    poad = credit_of("poad", trajectory, gamma, lam, lam_token=lam_token, slots="tokens")
    assert_same_credit(ntpo, poad, tolerance=0)


def test_ntpo_discounts_inside_an_action_by_gamma_unless_told_otherwise():
    trajectory = random_trajectory(0)
    ntpo = METHODS["ntpo"]
    default = credit_of(ntpo, trajectory, 0.8, 0.9)
    assert_same_credit(default, credit_of(ntpo, trajectory, 0.8, 0.9, gamma_token=0.8), 0)
    other = credit_of(ntpo, trajectory, 0.8, 0.9, gamma_token=0.7)
    assert not torch.allclose(default.target, other.target)


def test_glam_and_twosome_give_the_same_credit_and_differ_in_how_they_act():
    trajectory = random_trajectory(1)
    twosome, glam = METHODS["twosome"], METHODS["glam"]
    assert_same_credit(
        credit_of(twosome, trajectory, 0.9, 0.9), credit_of(glam, trajectory, 0.9, 0.9), 0
    )
    assert (twosome.score, glam.score) == ("word", "sum")


@given(seed=seeds, lam=rates)
@settings(deadline=None)
def test_reinforce_leaves_unfinished_episodes_out_and_looks_at_no_value(seed, lam):
    trajectory = random_trajectory(seed)
    credit = credit_of("reinforce", trajectory, 0.9, lam)
    n, t, _ = trajectory.reward.shape
    present = trajectory.mask.any(-1)
    for i in range(n):
        finished = False
        for j in reversed(range(t)):
            if present[i, j] and trajectory.cut[i, j]:
                finished = bool(trajectory.ended[i, j])
            expected = trajectory.choice[i, j] & finished
            assert torch.equal(credit.mask[i, j], expected)
    assert not credit.value_mask.any()
    nowhere = torch.full_like(trajectory.value, math.nan)
    blind = replace(trajectory, value=nowhere, bootstrap=nowhere[..., 0])
    assert_same_credit(credit_of("reinforce", blind, 0.9, lam), credit, 0)


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_values_is_kept(method: str, dtype: torch.dtype):
    trajectory = random_trajectory(5, dtype=dtype)
    credit = credit_of(method, trajectory, 0.9, 0.9)
    assert credit.advantage.dtype == credit.target.dtype == dtype
    # Half precision rounds the inputs and the result once, and nothing in between.
    doubled = {k: v.double() for k, v in vars(trajectory).items() if v.is_floating_point()}
    exact = credit_of(method, replace(trajectory, **doubled), 0.9, 0.9)
    mixed = credit_of(method, replace(trajectory, value=doubled["value"]), 0.9, 0.9)
    assert_same_credit(mixed, exact, tolerance=0)
    inside = torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(
        credit.advantage.double(),
        exact.advantage,
        rtol=torch.finfo(dtype).eps,
        atol=rounding(depth=trajectory.value[0].numel(), magnitude=5.0, dtype=inside),
    )


@pytest.mark.parametrize("method", ALL_METHODS)
def test_no_gradient_flows_through_credit(method: str):
    trajectory = random_trajectory(6, junk=0.0)
    trajectory = replace(trajectory, value=trajectory.value.requires_grad_())
    credit = credit_of(method, trajectory, 0.9, 0.9)
    assert not credit.advantage.requires_grad
    assert not credit.target.requires_grad


def test_the_table_agrees_with_its_keys_and_every_row_has_one_line():
    assert tuple(METHODS) == (*ALL_METHODS, *GROUP_METHODS)
    for name, row in METHODS.items():
        assert row.name == name
        assert "\n" not in row.summary
    turns = [*TURN_METHODS, *GROUP_METHODS]
    assert [m for m, row in METHODS.items() if row.decision == "turn"] == turns
    free = [m for m, row in METHODS.items() if not row.uses_critic]
    assert free == ["reinforce", *GROUP_METHODS]
    compared = [m for m, row in METHODS.items() if row.compared != "none"]
    assert compared == list(GROUP_METHODS)


def test_an_unknown_method_is_refused_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"'paod'\. Did you mean 'poad'.*archer_adrl"):
        find_method("paod")
    with pytest.raises(ConfigError, match=r"Known methods: poad, .*gigpo\. Name .*module:NAME"):
        find_method("zzz")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with a method of its own, and with a name that is none."""
    (tmp_path / "methods_of_mine.py").write_text(
        "from poad.credit import Method\n"
        "TD0 = Method(name='td0', summary='Mine.')\n"
        "def one_step(): ...\n"
    )
    (tmp_path / "broken_methods.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "methods_of_mine"
    sys.modules.pop("methods_of_mine", None)


def test_a_method_of_ones_own_is_found_by_its_module(module: str):
    assert find_method(f"{module}:TD0").name == "td0"


@pytest.mark.parametrize(
    ("method", "explained"),
    [
        ("no_such_module:TD0", "Cannot import .*'no_such_module'.*directory that holds the module"),
        ("broken_methods:TD0", "Cannot import .*ZeroDivisionError: division by zero"),
        ("methods_of_mine:TD1", "has no 'TD1'. Did you mean 'TD0'.*Methods there: TD0"),
        ("methods_of_mine:one_step", "is a function, not a poad.credit.Method"),
        ("methods_of_mine:", "Methods there: TD0"),
        (":TD0", "Cannot import"),
    ],
)
def test_what_is_no_method_of_ones_own_is_explained(module: str, method: str, explained: str):
    with pytest.raises(ConfigError, match=explained):
        find_method(method)


@pytest.mark.parametrize("name", ["gamma", "lam", "lam_token", "gamma_token"])
def test_a_rate_outside_the_unit_interval_is_refused(name: str):
    options: dict[str, Any] = {"gamma": 0.9, "lam": 0.9, name: 1.5}
    with pytest.raises(ValueError, match=f"{name} is 1.5"):
        credit_of("poad", random_trajectory(0), **options)


def test_unknown_slots_are_refused():
    with pytest.raises(ValueError, match="'words'; there are choices, tokens"):
        credit_of("twosome", random_trajectory(0), 0.9, 0.9, slots="words")  # pyright: ignore


def test_a_method_of_ones_own_is_a_row_with_a_function():
    def one_step(reward: Tensor, value: Tensor, ahead: Tensor, discount: Tensor, trace: Tensor):
        target = reward + discount * ahead
        return target - value, target

    mine = Method(name="td0", summary="One-step errors.", estimator=one_step)
    trajectory = random_trajectory(2, junk=0.0)
    expected = credit_of("poad", trajectory, 0.9, 0.0, lam_token=0.0)
    trajectory = replace(trajectory, value=trajectory.value.requires_grad_())
    credit = credit_of(mine, trajectory, 0.9, 0.7)
    assert_same_credit(credit, expected)
    assert not credit.target.requires_grad
    assert find_method(mine) is mine


# token_credit: the same, for rows of conversation


def conversation(trajectory: Trajectory, seed: int, junk: float) -> dict[str, Tensor]:
    """The trajectory as rows of tokens, observations and padding of random lengths between them."""
    rng = torch.Generator().manual_seed(seed)

    def gap() -> int:
        return int(torch.randint(0, 4, (), generator=rng))

    rows = []
    for n, stream in enumerate(trajectory.mask):
        row: list[tuple[int, int, int] | None] = [None] * gap()
        episode = 0
        for t, real in enumerate(stream):
            row += [(t, int(j), episode) for j in real.nonzero()]
            row += [None] * gap()
            episode += bool(real.any() and trajectory.cut[n, t])
        rows.append(row)
    length = max(map(len, rows))
    shape = len(rows), length
    found = {
        "reward": torch.full(shape, junk, dtype=torch.float64),
        "value": torch.full(shape, junk, dtype=torch.float64),
        "discount": torch.full(shape, junk, dtype=torch.float64),
        "bootstrap": torch.full(shape, junk, dtype=torch.float64),
        "mask": torch.zeros(shape, dtype=torch.bool),
        "choice": torch.zeros(shape, dtype=torch.bool),
        "ended": torch.zeros(shape, dtype=torch.bool),
        "turn_ids": torch.randint(-9, 99, shape, generator=rng),
        "episode_ids": torch.randint(-9, 99, shape, generator=rng),
    }
    for n, row in enumerate(rows):
        for place, token in enumerate(row):
            if token is None:
                continue
            t, j, episode = token
            for name in ("reward", "value", "mask", "choice"):
                found[name][n, place] = getattr(trajectory, name)[n, t, j]
            for name in ("discount", "bootstrap", "ended"):
                found[name][n, place] = getattr(trajectory, name)[n, t]
            found["turn_ids"][n, place] = t
            found["episode_ids"][n, place] = episode
    return found


def on_tokens(credit: Credit, mask: Tensor) -> Credit:
    """The credit of the real tokens, one row, in time order."""
    return Credit(
        credit.advantage[mask], credit.target[mask], credit.mask[mask], credit.value_mask[mask]
    )


@settings(deadline=None, max_examples=200)
@given(
    seed=seeds,
    layout=seeds,
    junk=st.sampled_from(JUNK),
    method=methods,
    lam=rates,
    lam_token=st.none() | rates,
    slots=st.sampled_from([None, "choices", "tokens"]),
)
def test_token_credit_is_the_credit_of_the_trajectory_whatever_lies_between(
    seed, layout, junk, method, lam, lam_token, slots
):
    trajectory = random_trajectory(seed)
    tensors = conversation(trajectory, layout, junk)
    options = {"lam_token": lam_token, "slots": slots}
    found = token_credit(**tensors, gamma=0.9, lam=lam, method=method, **options)
    expected = credit_of(method, trajectory, 0.9, lam, **options)
    assert_same_credit(
        on_tokens(found, tensors["mask"]), on_tokens(expected, trajectory.mask), 1e-12
    )
    assert not (found.mask | found.value_mask)[~tensors["mask"]].any()
    assert not found.advantage[~found.mask].any()
    assert not found.target[~found.value_mask].any()


def test_token_credit_defaults_to_whole_episodes_of_free_writing():
    # One row, γ = .5, λ = 1: observation, an action of two tokens, observation, an action of one.
    mask = torch.tensor([[False, True, True, False, True]])
    reward = torch.tensor([[9.0, 0.0, 1.0, 9.0, 4.0]])
    value = torch.tensor([[9.0, 1.0, 2.0, 9.0, 3.0]])
    turn_ids = torch.tensor([[7, 0, 0, 0, 1]])
    credit = token_credit(reward, value, mask, turn_ids, gamma=0.5, lam=1.0)
    # Return of the first action 1 + .5·4 = 3, of the second 4; the advantage subtracts the values.
    assert credit.target.tolist() == [[0, 3, 3, 0, 4]]
    assert credit.advantage.tolist() == [[0, 2, 1, 0, 1]]
    assert torch.equal(credit.mask, mask)
    # With 8 beyond the end: 4 + .5·8 = 8, and 1 + .5·8 = 5.
    beyond: dict[str, Any] = {"bootstrap": torch.tensor([8.0]), "ended": torch.tensor([False])}
    credit = token_credit(reward, value, mask, turn_ids, gamma=0.5, lam=1.0, **beyond)
    assert credit.target.tolist() == [[0, 5, 5, 0, 8]]
    # Two episodes instead, turn ids starting over: nothing of the second reaches the first.
    packed: dict[str, Any] = {"turn_ids": -turn_ids, "episode_ids": turn_ids}
    credit = token_credit(reward, value, mask, gamma=0.5, lam=1.0, **packed)
    assert credit.target.tolist() == [[0, 1, 1, 0, 4]]
    # A bootstrap for the row belongs to its last episode: 4 + .5·8 = 8. The first one terminated.
    credit = token_credit(reward, value, mask, gamma=0.5, lam=1.0, **packed, **beyond)
    assert credit.target.tolist() == [[0, 1, 1, 0, 8]]
    credit = token_credit(
        reward, value, mask, gamma=0.5, lam=1.0, method="reinforce", **packed, **beyond
    )
    assert credit.mask.tolist() == [[False, True, True, False, False]]
    # Critic-free credit waits for the end of an episode.
    credit = token_credit(
        reward, value, mask, turn_ids, gamma=0.5, lam=1.0, method="reinforce", **beyond
    )
    assert not credit.mask.any()


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (2, 3)])
def test_law_6_rows_without_an_action_have_no_credit_and_no_error(method, shape):
    empty = torch.full(shape, math.nan)
    none = torch.zeros(shape, dtype=torch.bool)
    credit = token_credit(empty, empty, none, none.long(), gamma=0.9, lam=0.9, method=method)
    for field in (credit.advantage, credit.target, credit.mask, credit.value_mask):
        assert field.shape == shape
        assert not field.any()
