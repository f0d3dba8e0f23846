"""How right the critic is, place by place, and how far credit relies on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from poad.agent import CreditSettings
from poad.credit import METHODS
from poad.learn.accuracy import accuracy, rely
from poad.learn.experience import ValueTerms, pick_value_terms
from poad.learn.rows import TokenRows, lay_out
from poad.turns import Action, Turn

Streams = list[list[Turn]]


def credit_settings(method: str) -> CreditSettings:
    row = METHODS[method]
    return CreditSettings(row, row.rates(0.9, 0.9), by_duration=True)


def test_accuracy_is_measured_place_by_place() -> None:
    place = torch.tensor([0, 0, 1, 1, 3])
    value = torch.tensor([1.0, 2.0, 0.5, 0.5, 4.0])
    target = torch.tensor([1.0, 2.0, 0.0, 2.0, 3.0])
    root = torch.tensor([0, 1, 0, 1, 1])
    found = accuracy(ValueTerms(torch.arange(5), target, value, place, root, torch.zeros(5).long()))
    assert found == pytest.approx(
        {
            "explained_variance_root": 1.0,
            "value_bias_root": 0.0,
            "explained_variance_second": 0.0,  # a constant explains nothing
            "value_bias_second": -0.5,
            "explained_variance_last": 0.0,  # of one reading there is nothing to explain
            "value_bias_last": 1.0,
        }
    )


# --- credit relies on the critic as far as it has earned ---

DECISIONS = 4


def orders(streams: int, turns: int = 8, seed: int = 0) -> Streams:
    """Episodes of one turn, whose action is a few coin flips; each that lands on 2 pays 1."""
    flips = torch.randint(
        1, 3, (streams, turns, DECISIONS), generator=torch.Generator().manual_seed(seed)
    )
    return [
        [
            Turn(
                prompt_ids=(t + 1,),
                action=Action("", tuple(w), (True,) * DECISIONS, (-0.69,) * DECISIONS),
                reward=float(w.count(2)),
                terminated=True,
                next_prompt_ids=(9,),
            )
            for t, w in enumerate(stream)
        ]
        for stream in flips.tolist()
    ]


def exact_values(rows: TokenRows) -> torch.Tensor:
    """[U] what the flips so far have paid, and half of those that are left."""
    return torch.tensor(
        [list(w).count(2) + (DECISIONS - len(w)) / 2 for _, w in rows.positions],
        dtype=torch.float64,
    )


def inner_noise(rows: TokenRows, std: float) -> torch.Tensor:
    """[U] noise at every reading inside an action, and none at roots."""
    noise = torch.randn(len(rows.positions), generator=torch.Generator().manual_seed(3)).double()
    inside = torch.tensor([len(w) > 0 for _, w in rows.positions])
    return std * noise * inside


def fitted(
    streams: Streams,
    *,
    exact: bool = True,
    noise: float = 0.0,
    ask: bool = True,
    method: str = "poad",
) -> tuple[torch.Tensor, dict[str, float]]:
    """λ inside actions that credit is computed with in the end, and the metrics."""
    settings = replace(credit_settings(method), fitted=ask)
    rows = lay_out(streams, settings)
    value = inner_noise(rows, noise)
    value += exact_values(rows) if exact else DECISIONS / 2
    found, metrics = relied(rows, value, settings)
    return torch.as_tensor(found.rates.lam_actor), metrics


def relied(
    rows: TokenRows, value: torch.Tensor, settings: CreditSettings
) -> tuple[CreditSettings, dict[str, float]]:
    terms = pick_value_terms(rows, rows.credit(value, settings), value)
    return rely(settings, terms, value, len(rows.mask))


def test_beta_is_1_for_exact_values_0_for_noise_and_their_share_in_between() -> None:
    streams = orders(streams=60)
    _, exact = fitted(streams)
    _, noise = fitted(streams, exact=False, noise=1.0)
    # Deviations of exact values from the root's have a variance of j/4 before token j: 1/2 in the
    # mean over j = 1, 2, 3. So noise of that variance makes β a half.
    _, mixed = fitted(streams, noise=0.5**0.5)
    assert exact["beta"] == pytest.approx(1, abs=0.06)
    assert noise["beta"] == pytest.approx(0, abs=0.06)
    assert mixed["beta"] == pytest.approx(0.5, abs=0.12)


def test_the_actors_lambda_falls_as_beta_rises() -> None:
    lam, metrics = fitted(orders(streams=60), noise=0.7)
    assert metrics["beta"] == pytest.approx(1 - float(lam.mean()))
    assert 0.3 < metrics["beta"] < 0.7


def test_no_advantage_depends_on_its_own_outcome_through_beta() -> None:
    """Streams alternate between the halves, and what one half earns moves only the other's β."""
    streams = orders(streams=10)
    before = 1 - fitted(streams, noise=0.5)[0]
    for half in (0, 1):
        other = [
            [replace(turn, reward=-turn.reward) for turn in stream] if n % 2 == half else stream
            for n, stream in enumerate(streams)
        ]
        after = 1 - fitted(other, noise=0.5)[0]
        assert torch.equal(after[half::2], before[half::2])
        assert (after[1 - half :: 2] == 0).all()  # what the critic said was wrong
        assert (before > 0).all()


def test_of_a_single_stream_nothing_is_known_about_the_other_half() -> None:
    lam, metrics = fitted(orders(streams=1))
    assert metrics == {"beta": 0.0}
    assert lam.tolist() == [1.0]


def test_nothing_is_fitted_unless_it_is_asked_for_or_matters() -> None:
    streams = orders(streams=4)
    for lam, metrics in (fitted(streams, ask=False), fitted(streams, method="turn_ppo")):
        assert metrics == {}
        assert lam == 1


def test_with_no_share_of_the_inner_values_it_is_turn_level_ppo() -> None:
    settings = credit_settings("poad")
    rows = lay_out(orders(streams=1), settings)
    value = inner_noise(rows, 2.0) + exact_values(rows)
    judged = rows.credit(value, replace(settings, rates=settings.rates._replace(beta=0.0)))
    turn = rows.credit(value, credit_settings("turn_ppo"))
    torch.testing.assert_close(judged.advantage, turn.advantage)
