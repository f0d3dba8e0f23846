"""Advantages of actions, divided among their decisions by regression."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poad.agent import resolve
from poad.config import from_dict
from poad.errors import ConfigError
from poad.learn.regression import LEAST, Regression, Remembered
from poad.learn.reliance import CODES

FIELDS, CUSTOMERS = 6, 4


class Played(NamedTuple):
    """Some turns, and what their decisions added in truth."""

    news: Remembered
    added: Tensor
    """[s]"""


def orders(
    regression: Regression, seed: int, turns: int = 128, noise: float = 1.0, pay: float = 1.0
) -> Played:
    """Forms of `FIELDS` fields with two options each, which a fair coin fills in.

    Which option pays depends on the customer, whom the root's state describes, beside a trait that
    is ten times as large and means nothing. On average over customers both options pay the same.
    """
    generator = torch.Generator().manual_seed(seed)
    customer = torch.randint(CUSTOMERS, (turns,), generator=generator)
    option = torch.randint(2, (turns, FIELDS), generator=generator)
    bits = torch.stack([customer % 2, customer // 2], dim=1)  # [turns, 2]
    wanted = bits[:, torch.arange(FIELDS) % 2]  # [turns, FIELDS]
    added = pay * ((option == wanted).double() - 0.5)
    codes = regression.codes[: 2 * FIELDS].reshape(FIELDS, 2, CODES)
    each = codes[torch.arange(FIELDS), option]  # [turns, FIELDS, R]
    score = (each - codes.mean(1)).flatten(0, 1)
    loud = 10 * torch.randn(turns, 1, generator=generator)
    root = torch.cat([2.0 * bits - 1, loud], dim=1).float()
    turn = torch.arange(turns).repeat_interleave(FIELDS)
    luck = noise * torch.randn(turns, generator=generator).double()
    whole = added.sum(1) + luck
    news = Remembered(score, torch.randn(len(turn), 3, generator=generator), turn, root, whole)
    return Played(news, added.flatten())


def fresh(turns: int = 512, rest: float = 0.1) -> Regression:
    return Regression(turns, rest, vocabulary=3 * FIELDS)


def taught(regression: Regression, rollouts: int, pay: float = 1.0) -> tuple[Played, Tensor]:
    """The last of some rollouts that were learned from, and the credit in it."""
    for seed in range(rollouts - 1):
        regression.learn(orders(regression, seed, pay=pay).news)
    last = orders(regression, rollouts, pay=pay)
    return last, regression.learn(last.news)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def test_decisions_get_what_they_added():
    regression = fresh()
    played, credit = taught(regression, 4)
    whole = played.news.advantage[played.news.turn]
    assert correlation(credit, played.added) > 0.9
    assert correlation(whole, played.added) < 0.5
    constant, root, place, rest = regression.shares.tolist()
    assert root > 5 * max(constant, place)  # what pays depends on the customer
    assert 0.1 < root / (root + rest) < 0.7  # in truth 6/4 of 6/4 + 1, and not more


def test_luck_is_nobodys_and_leaves_the_advantage_of_the_action():
    regression = fresh()
    (news, _), credit = taught(regression, 4, pay=0.0)
    assert correlation(credit, news.advantage[news.turn]) > 0.9
    assert regression.shares[:-1].sum() < 0.1


def test_the_rest_counts_whole_if_it_is_asked_to():
    """With nothing known of decisions, that is the credit of `turn_ppo`."""
    regression = fresh(rest=1.0)
    regression.shares[:-1] = LEAST
    news = orders(regression, 0, turns=32, pay=0.0).news
    before = news.advantage[news.turn]
    assert correlation(regression.learn(news), before) > 0.99


def test_certain_decisions_are_transparent():
    """Spelling that is forced has a score of 0. It changes nothing, however long it is."""
    plain, spelled = fresh(), fresh()
    news = orders(plain, 0, turns=64).news
    credit = plain.learn(news)
    longer = news._replace(
        score=torch.cat([news.score, torch.zeros_like(news.score)]),
        place=torch.cat([news.place, news.place]),
        turn=torch.cat([news.turn, news.turn]),
    )
    found = spelled.learn(longer)
    assert torch.allclose(plain.shares, spelled.shares, atol=1e-3)
    some = found[: len(credit)]
    ratio = (some * credit).sum() / (credit * credit).sum()  # the spread counts them as well
    assert torch.allclose(some, ratio * credit, atol=1e-3)
    # A certain decision gets what every decision gets of the rest.
    turn = torch.arange(len(news.advantage))
    silent = found[len(credit) :].reshape(len(turn), FIELDS)
    assert torch.allclose(silent, silent[:, :1].expand_as(silent))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    turns=st.integers(1, 40),
    pay=st.sampled_from([0.0, 0.1, 3.0]),
    noise=st.sampled_from([0.0, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    limit=st.integers(1, 60),
)
def test_credit_keeps_its_spread_and_follows_the_scale_of_rewards(
    seed: int, turns: int, pay: float, noise: float, scale: float, limit: int
):
    one, other = fresh(limit), fresh(limit)
    for each in range(3):
        news = orders(one, 10 * seed + each, turns, noise, pay).news
        credit = one.learn(news)
        scaled = other.learn(news._replace(advantage=scale * news.advantage))
        assert torch.allclose(scaled, scale * credit, rtol=1e-2, atol=1e-3 * scale)
        before = news.advantage[news.turn]
        expected = before.std(correction=0)
        assert credit.isfinite().all()
        assert torch.allclose(credit.std(correction=0), expected.to(credit), rtol=1e-3, atol=1e-6)
        kept = [len(each.advantage) for each in one.memory]
        assert kept[-1] <= limit
        assert sum(kept) < limit + turns


@pytest.mark.parametrize("turns", [1, 3])
def test_equal_advantages_leave_nothing_to_divide(turns: int):
    regression = fresh()
    news = orders(regression, 0, turns=turns, noise=0.0, pay=0.0).news
    credit = regression.learn(news._replace(advantage=torch.ones(turns, dtype=torch.float64)))
    assert torch.equal(credit, torch.ones(turns * FIELDS, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"credit": {"method": "twosome"}}, "takes the action for a single one"),
        ({"credit": {"method": "ntpo"}}, r"credit.gamma_token = 0.99"),
        ({"credit": {"method": "poad", "lam_token": 0.95}}, r"credit.lam_token = 0.95"),
        ({"credit": {"method": "poad", "lam_actor": "auto"}}, r"credit.lam_actor = auto"),
        ({"credit": {"method": "turn_ppo"}, "ppo": {"ratio": "turn"}}, "use ppo.ratio = token"),
    ],
)
def test_what_is_no_advantage_of_an_action_is_not_divided(changes: dict, said: str):
    config = from_dict({"env": "poad/TomatoSalad-v0", **changes})
    resolve(config)
    with pytest.raises(ConfigError, match=said):
        resolve(from_dict({"credit": {"regress": 64}}, config))
