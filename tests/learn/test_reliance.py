"""How far credit relies on the critic inside actions: the λ that past rollouts speak for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from poad.agent import CreditSettings
from poad.credit import METHODS
from poad.learn.reliance import CODES, LAMBDAS, Reliance
from poad.learn.rows import TokenRows, lay_out
from poad.turns import Action, Turn

Streams = list[list[Turn]]
DECISIONS = 4
VOCABULARY = 3


def settings(method: str = "poad") -> CreditSettings:
    row = METHODS[method]
    return CreditSettings(row, row.rates(0.9, 0.9), by_duration=True, fitted=True)


def orders(seed: int = 0, streams: int = 16, turns: int = 8, noise: float = 1.0) -> Streams:
    """Episodes of one turn, whose action is a few fair coin flips; each that lands on 2 pays 1."""
    generator = torch.Generator().manual_seed(seed)
    flips = torch.randint(1, 3, (streams, turns, DECISIONS), generator=generator)
    luck = noise * torch.randn(streams, turns, generator=generator)
    return [
        [
            Turn(
                prompt_ids=(t + 1,),
                action=Action("", tuple(w), (True,) * DECISIONS, (-0.69,) * DECISIONS),
                reward=float(w.count(2)) + extra,
                terminated=True,
                next_prompt_ids=(9,),
            )
            for t, (w, extra) in enumerate(zip(stream, lucky, strict=True))
        ]
        for stream, lucky in zip(flips.tolist(), luck.tolist(), strict=True)
    ]


def exact(rows: TokenRows) -> Tensor:
    """[U] what the flips so far have paid, and half of those that are left."""
    return torch.tensor([w.count(2) + (DECISIONS - len(w)) / 2 for _, w in begun(rows)])


def silent(rows: TokenRows) -> Tensor:
    """[U] the same at every reading: what an action pays on average."""
    return torch.full((len(rows.positions),), DECISIONS / 2)


def wrong(rows: TokenRows) -> Tensor:
    """[U] noise of five times the spread of the exact values, and right at roots."""
    inside = torch.tensor([len(w) > 0 for _, w in begun(rows)])
    generator = torch.Generator().manual_seed(len(rows.positions))
    return silent(rows) + 5 * inside * torch.randn(len(inside), generator=generator)


def begun(rows: TokenRows) -> list[tuple[int, tuple[int, ...]]]:
    return [(prompt[0], tuple(tokens)) for prompt, tokens in rows.positions]


def judged(reliance: Reliance, streams: Streams, critic) -> Reliance:
    """The same, after one more rollout. A state tells how far the action is."""
    rows = lay_out(streams, settings())
    states = torch.eye(DECISIONS)[[min(len(w), DECISIONS - 1) for _, w in begun(rows)]]
    tokens = torch.tensor(
        [w for stream in streams for turn in stream for w in turn.action.token_ids]
    )
    score = reliance.codes[tokens] - reliance.codes[[1, 2]].mean(0)
    reliance.judge(rows, critic(rows), settings(), states, score)
    return reliance


def after(rollouts: int, critic, noise: float = 1.0) -> Reliance:
    reliance = Reliance(DECISIONS, VOCABULARY)
    for seed in range(rollouts):
        judged(reliance, orders(seed, noise=noise), critic)
    return reliance


def test_before_anything_is_known_the_turn_decides() -> None:
    assert Reliance(DECISIONS, VOCABULARY).lam == 1


def test_exact_values_decide() -> None:
    assert after(8, exact).lam == 0


def test_a_silent_critic_leaves_everything_to_the_turn_which_is_turn_level_ppo() -> None:
    reliance = after(8, silent, noise=0.3)
    assert reliance.lam == 1
    credit, metrics = reliance.applied(settings())
    assert metrics == {"lam_actor": 1.0}
    rows = lay_out(orders(99), credit)
    value = silent(rows)
    turn = rows.credit(value, settings("turn_ppo"))
    torch.testing.assert_close(rows.credit(value, credit).advantage, turn.advantage)


def test_a_wrong_critic_is_not_relied_on() -> None:
    assert after(8, wrong).lam >= 0.97


def test_what_gradients_agree_on_by_chance_hardly_passes_for_knowledge() -> None:
    """Luck alone pays, and the critic knows what never happens."""
    chosen = []
    for seed in range(20):
        reliance = Reliance(DECISIONS, VOCABULARY)
        for rollout in range(2):
            streams = orders(seed, noise=1.0)
            luck = torch.randn(16, 8, generator=torch.Generator().manual_seed(2 * seed + rollout))
            lucky = [
                [replace(turn, reward=x) for turn, x in zip(stream, some, strict=True)]
                for stream, some in zip(streams, luck.tolist(), strict=True)
            ]
            judged(reliance, lucky, exact)
        chosen.append(reliance.lam)
    assert sum(lam == 1 for lam in chosen) >= 17


def test_lambda_does_not_depend_on_the_unit_of_rewards_or_the_order_of_streams() -> None:
    plain, scaled, turned = (Reliance(DECISIONS, VOCABULARY) for _ in range(3))
    for seed in range(3):
        streams = orders(seed)
        paid = [[replace(turn, reward=8 * turn.reward) for turn in s] for s in streams]
        judged(plain, streams, lambda rows: exact(rows))
        judged(scaled, paid, lambda rows: 8 * exact(rows))
        judged(turned, streams[::-1], lambda rows: exact(rows))
    torch.testing.assert_close(scaled.along / 64, plain.along)
    torch.testing.assert_close(scaled.power / 64, plain.power)
    torch.testing.assert_close(turned.along, plain.along)


def test_gradients_are_compared_with_those_of_other_streams_and_earlier_critics() -> None:
    """By hand: every pair of choices, but those of one stream in one rollout and those of a
    critic that has learned from the other's outcome."""
    reliance = Reliance(DECISIONS, VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(3):
        advantage = torch.randn(6, len(LAMBDAS), generator=generator)
        score, states = torch.randn(6, CODES, generator=generator), torch.eye(DECISIONS)[:3]
        states = states.repeat(2, 1)
        stream = torch.tensor([0, 0, 1, 1, 2, 2])
        reliance.observe(advantage, score, states, stream)
        x = reliance.features(states)
        seen.append((advantage, score, x, stream))
    along, power = torch.zeros(len(LAMBDAS)), torch.zeros(len(LAMBDAS))
    doubt = 0.0
    for r, (a, s, x, n) in enumerate(seen):
        for q, (b, t, y, m) in enumerate(seen[r:], r):
            weight = 0.85 ** (2 * (2 - q)) * 0.7 ** (q - r)
            product = (s @ t.T) * (x @ y.T)  # [S, S]
            other = torch.ones_like(product) if q > r else (n[:, None] != m[None]).float()
            along += weight * (a.T @ (product * other) @ b[:, -1])
            if q == r:
                power += weight * (a * (product @ a)).sum(0)
    # what each stream of each rollout adds to the last of `along`
    for q, (b, t, y, m) in enumerate(seen):
        for stream in range(3):
            mine, added = m == stream, 0.0
            for r, (a, s, x, n) in enumerate(seen[: q + 1]):
                judged = (n != stream) if r == q else torch.ones_like(mine)
                product = ((s @ t.T) * (x @ y.T))[judged][:, mine]
                added += 0.7 ** (q - r) * float(a[judged, -1] @ product @ b[mine, -1])
            doubt += 0.85 ** (4 * (2 - q)) * added**2
    assert float(reliance.doubt) == pytest.approx(doubt, rel=1e-3)
    torch.testing.assert_close(reliance.along, along, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reliance.power, power, rtol=1e-4, atol=1e-4)


def test_a_single_stream_cannot_judge_its_own_rollout() -> None:
    reliance = Reliance(DECISIONS, VOCABULARY)
    judged(reliance, orders(streams=1), exact)
    torch.testing.assert_close(reliance.along, torch.zeros(len(LAMBDAS)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("state", ["gradient", "along", "power", "doubt"])
def test_the_next_lambda_is_known_from_what_a_checkpoint_holds(state: str) -> None:
    reliance = after(2, exact)
    restored = Reliance(DECISIONS, VOCABULARY)
    restored.load_state_dict(reliance.state_dict())
    for each in (reliance, restored):
        judged(each, orders(7), exact)
    assert torch.equal(getattr(restored, state), getattr(reliance, state))
    assert restored.lam == reliance.lam
