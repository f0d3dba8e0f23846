"""The signal of token credit: the closed form is what `poad.credit` does to sampled turns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poad.credit import token_credit
from poad.theory.signal import DRAWN_LAM, TABLE, TABLE_LAM, CoinFlips, tabulate, trace_out

rates = st.sampled_from([0.0, 0.4, 0.9, 1.0])


def sampled_credit(
    flips: CoinFlips, turns: int, seed: int, noise: float, **rates: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Play turns: which token was likely [N, n], what it earned, errors, and advantages."""
    rng, n = np.random.default_rng(seed), flips.tokens
    likely = rng.random((turns, n)) < flips.probability
    earned = np.where(likely, 1.0, -1.0) * flips.decides
    errors = rng.normal(size=(turns, n))
    value = np.cumsum(earned, 1) - earned + noise * flips.spread * errors
    reward = np.zeros((turns, n))
    reward[:, -1] = earned.sum(1)
    credit = token_credit(
        torch.from_numpy(reward),
        torch.from_numpy(value),
        torch.ones(turns, n, dtype=torch.bool),
        torch.zeros(turns, n, dtype=torch.int64),
        gamma=1.0,
        lam=1.0,
        bits=torch.from_numpy(flips.bits).expand(turns, n),
        **rates,
    )
    return likely, earned, errors, credit.advantage.numpy()


sizes = st.integers(2, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@settings(deadline=None)
@given(
    size=sizes,
    seed=st.integers(0, 2**32),
    lam=rates,
    beta=rates,
    noise=st.sampled_from([0.0, 0.7]),
    trace=st.sampled_from(["token", "bit"]),
)
def test_advantages_are_those_of_token_credit(size, seed, lam, beta, noise, trace) -> None:
    """Turn by turn, as a linear map of flips and errors."""
    flips = CoinFlips(*size)
    rates: dict[str, Any] = {"lam_actor": lam, "beta": beta, "trace": trace}
    likely, _, errors, found = sampled_credit(flips, 5, seed, noise, **rates)
    by_flip, by_error = flips.advantages(lam, noise, trace, beta)
    outcomes = np.where(likely, 1.0, -1.0)
    np.testing.assert_allclose(outcomes @ by_flip.T + errors @ by_error.T, found, atol=1e-9)


def sampled_signal(flips: CoinFlips, turns: int, noise: float, **rates: Any) -> float:
    """The signal-to-noise ratio of sampled gradients by all logits, two for each token."""
    likely, _, _, advantage = sampled_credit(flips, turns, 1, noise, **rates)
    score = np.stack([likely - flips.probability, flips.probability - likely])
    gradient = score * advantage  # [2, N, n]
    true = np.stack([flips.decides, -flips.decides]) / 2  # [2, n], up to its length
    mean = (gradient.mean(1) * true).sum() / np.sqrt((true**2).sum())
    return float(mean**2 / gradient.var(1).sum())


@pytest.mark.parametrize(
    ("noise", "rates"),
    [
        (0.0, {"lam_token": 1.0}),
        (0.0, {"lam_token": 0.95}),
        (0.5, {"lam_token": 0.5}),
        (1.0, {"lam_token": 1.0}),
        (0.5, {"lam_actor": 0.5, "trace": "bit"}),
        (1.0, {"lam_actor": 0.8, "beta": 0.5}),
        (0.5, {"lam_actor": 1.0, "beta": 0.0}),
    ],
)
def test_the_closed_form_is_what_samples_show(noise: float, rates: dict[str, Any]) -> None:
    flips = CoinFlips(16, 4)
    lam = rates.get("lam_actor", rates.get("lam_token", 1.0))
    rest = {name: rates[name] for name in ("trace", "beta") if name in rates}
    found = sampled_signal(flips, 60_000, noise, **rates)
    assert found == pytest.approx(flips.signal(lam, noise, **rest), rel=0.03)


def test_turn_level_ppo_is_what_everything_is_relative_to() -> None:
    for noise in (0.0, 1.0):
        flips = CoinFlips(16, 4)
        turn = sampled_signal(flips, 60_000, noise, method="turn_ppo")
        assert turn == pytest.approx(flips.signal(1.0, noise, beta=0.0), rel=0.03)
        assert flips.gain(1.0, noise, beta=0.0) == 1


@pytest.mark.parametrize(
    ("tokens", "decisions", "noise", "gains"),
    [
        # found once by sampling, on their own account
        (2, 2, 0.0, (1.99, 2.2, 8)),
        (32, 2, 0.0, (1.96, 7.1, 197)),
        (32, 8, 0.0, (2.05, 5.4, 151)),
        (128, 8, 0.0, (2.03, 17, 483)),
        (32, 8, 0.5, (1.86, 3.6, 6.3)),
        (32, 8, 1.0, (1.45, 2.0, 2.1)),
    ],
)
def test_the_gains_are_those_that_sampling_found(
    tokens: int, decisions: int, noise: float, gains: tuple[float, ...]
) -> None:
    flips = CoinFlips(tokens, decisions)
    found = [flips.gain(lam, noise) for lam in (1.0, 0.95, 0.5)]
    assert found == pytest.approx(gains, rel=0.07)


@pytest.mark.parametrize("tokens", [2, 5, 12])
def test_an_exact_baseline_doubles_the_signal_where_every_token_decides(tokens: int) -> None:
    """At λ = 1 only the baseline differs, and it halves the variance at most."""
    assert CoinFlips(tokens, tokens).gain(1.0) == pytest.approx(2)


def test_one_choice_an_action_leaves_nothing_to_gain() -> None:
    """There POAD and turn-level PPO are the same method."""
    flips = CoinFlips(8, 1, likely=1 - 1e-9)
    first = flips.advantages(1.0)[0][0]
    turn = flips.advantages(1.0, beta=0.0)[0][0]
    np.testing.assert_allclose(first, turn)


@settings(deadline=None)
@given(size=sizes, noise=st.sampled_from([0.0, 0.5]), trace=st.sampled_from(["token", "bit"]))
def test_exact_values_gain_more_the_less_waits_for_the_end(size, noise, trace) -> None:
    flips = CoinFlips(*size)
    gains = [flips.gain(lam, 0.0, trace) for lam in (1.0, 0.9, 0.6, 0.3)]
    assert gains == sorted(gains)
    assert flips.gain(0.9, noise, trace) <= flips.gain(0.9, 0.0, trace) * (1 + 1e-9)


def test_by_the_bit_nearly_forced_tokens_do_not_count() -> None:
    """What the first token's advantage takes from the last decision, whatever lies between."""
    reached = {
        (trace, tokens): CoinFlips(tokens, 8, 1 - 1e-6).advantages(0.9, 0.0, trace)[0][0, -1]
        for trace in ("token", "bit")
        for tokens in (8, 128)
    }
    assert reached["bit", 8] == pytest.approx(0.9**7)
    assert reached["bit", 128] == pytest.approx(0.9**7, rel=1e-3)
    assert reached["token", 8] == pytest.approx(0.9**7)
    assert reached["token", 128] == pytest.approx(0.9**127)


def test_the_rows_and_curves_are_complete_and_finite() -> None:
    rows = tabulate()
    assert [(r.tokens, r.decisions, r.noise) for r in rows[::2]] == list(TABLE)
    assert {row.trace for row in rows} == {"token", "bit"}
    for row in (*rows, *trace_out()):
        assert row.lam == list(TABLE_LAM if row in rows else DRAWN_LAM)
        assert len(row.gain) == len(row.lam)
        assert all(math.isfinite(gain) and gain > 0 for gain in row.gain)


@pytest.mark.parametrize(("tokens", "decisions"), [(1, 1), (4, 0), (4, 5)])
def test_turns_that_cannot_be_are_refused(tokens: int, decisions: int) -> None:
    with pytest.raises(ValueError, match=f"{decisions} of {tokens} tokens cannot decide"):
        CoinFlips(tokens, decisions)
