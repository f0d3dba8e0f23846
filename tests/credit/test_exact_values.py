"""Law 5: a critic that is exactly right leaves no advantage in expectation.

Small random worlds, written out completely: token trees of unequal depth, forced tokens, states
with a single action, chance after the action, termination and truncation. Every possible episode is
one stream, weighted by its probability, so expectations are sums.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_credit import CRITIC_METHODS, TURN_METHODS
from trajectories import Trajectory, credit_of

GAMMA, HORIZON, DEPTH = 0.9, 3, 3
DOUBLE = torch.float64


@dataclass(eq=False)
class State:
    actions: list[Action]
    discount: float


@dataclass(eq=False)
class Action:
    tokens: tuple[int, ...]
    free: tuple[bool, ...]
    """Whether token j had an alternative."""
    prob: float
    outcomes: list[tuple[float, float, State | float]]
    """Probability, reward, and the next state or the value beyond an ending."""


def random_state(rng: random.Random, left: int) -> State:
    actions: list[Action] = []

    def grow(tokens: tuple[int, ...], free: tuple[bool, ...], prob: float) -> None:
        if tokens and (len(tokens) == DEPTH or rng.random() < 0.3):
            actions.append(Action(tokens, free, prob, random_outcomes(rng, left)))
            return
        split = rng.uniform(0.1, 0.9)
        shares = [1.0] if rng.random() < 0.5 else [split, 1 - split]
        for token, share in enumerate(shares):
            grow((*tokens, token), (*free, len(shares) > 1), prob * share)

    grow((), (), 1.0)
    return State(actions, rng.uniform(0.5, 1))


def random_outcomes(rng: random.Random, left: int) -> list[tuple[float, float, State | float]]:
    def beyond() -> State | float:
        if left > 1 and rng.random() < 0.7:
            return random_state(rng, left - 1)
        return rng.choice([0.0, rng.gauss(0, 1)])

    chance = rng.uniform(0.1, 0.9)
    shares = [1.0] if rng.random() < 0.5 else [chance, 1 - chance]
    return [(share, rng.gauss(0, 1), beyond()) for share in shares]


class ExactCritic:
    """What a method's critic should read: the fixed point of its own backup."""

    def __init__(self, slots: str, gamma_token: float, after: str) -> None:
        self.slots, self.gamma_token, self.after = slots, gamma_token, after

    def prefixes(self, action: Action) -> list[tuple[int, ...]]:
        """The prefixes of an action that are slots."""
        whole = [action.tokens[:j] for j in range(len(action.tokens))]
        free = [p for p, flag in zip(whole, action.free, strict=True) if flag]
        return {"turn": whole[:1], "tokens": whole, "choices": free or whole[:1]}[self.slots]

    def __call__(self, state: State, prefix: tuple[int, ...]) -> float:
        through = [a for a in state.actions if prefix in self.prefixes(a)]
        total = 0.0
        for action in through:
            slots = self.prefixes(action)
            steps = len(slots) - 1 - slots.index(prefix)
            back = sum(p * (r + state.discount * self.beyond(s)) for p, r, s in action.outcomes)
            total += action.prob * self.gamma_token**steps * back
        return total / sum(a.prob for a in through)

    def beyond(self, state: State | float) -> float:
        if not isinstance(state, State):
            return state
        place = {"first": 0, "last": -1}[self.after]
        return sum(a.prob * self(state, self.prefixes(a)[place]) for a in state.actions)


Turn = tuple[State, Action, float, State | float]


def episodes(state: State) -> Iterator[tuple[float, tuple[Turn, ...]]]:
    for action in state.actions:
        for chance, reward, after in action.outcomes:
            turn = (state, action, reward, after)
            rest = episodes(after) if isinstance(after, State) else [(1.0, ())]
            for prob, turns in rest:
                yield action.prob * chance * prob, (turn, *turns)


def written_out(world: State, critic: ExactCritic) -> Trajectory:
    runs = [turns for _, turns in episodes(world)]
    shape = len(runs), HORIZON, DEPTH
    reward, value = torch.full((2, *shape), math.nan, dtype=DOUBLE)
    mask, choice = torch.zeros((2, *shape), dtype=torch.bool)
    discount, bootstrap = torch.full((2, *shape[:2]), math.nan, dtype=DOUBLE)
    cut = torch.zeros(shape[:2], dtype=torch.bool)
    known: dict[tuple[State, tuple[int, ...]], float] = {}
    for n, turns in enumerate(runs):
        for t, (state, action, r, after) in enumerate(turns):
            length = len(action.tokens)
            mask[n, t, :length] = True
            choice[n, t, :length] = torch.tensor(action.free)
            reward[n, t, :length] = torch.tensor([0.0] * (length - 1) + [r], dtype=DOUBLE)
            discount[n, t] = state.discount
            for prefix in critic.prefixes(action):
                if (state, prefix) not in known:
                    known[state, prefix] = critic(state, prefix)
                value[n, t, len(prefix)] = known[state, prefix]
            if not isinstance(after, State):
                cut[n, t], bootstrap[n, t] = True, after
    return Trajectory(reward, value, mask, choice, discount, cut, bootstrap, cut)


def entropy(state: State, prefix: tuple[int, ...]) -> float:
    """Of the next token after a prefix, in bits."""
    mass: dict[int, float] = defaultdict(float)
    for action in state.actions:
        if action.tokens[: len(prefix)] == prefix:
            mass[action.tokens[len(prefix)]] += action.prob
    shares = [each / sum(mass.values()) for each in mass.values()]
    return max(0.0, -sum(share * math.log2(share) for share in shares))


def bits_of(world: State) -> torch.Tensor:
    """[runs, HORIZON, DEPTH] the entropy at each token of every episode."""
    runs = [turns for _, turns in episodes(world)]
    bits = torch.full((len(runs), HORIZON, DEPTH), math.nan, dtype=DOUBLE)
    for n, turns in enumerate(runs):
        for t, (state, action, *_) in enumerate(turns):
            for j in range(len(action.tokens)):
                bits[n, t, j] = entropy(state, action.tokens[:j])
    return bits


def expected_errors(
    world: State, method: str, critic: ExactCritic, **options: Any
) -> tuple[list[float], list[float]]:
    """Two probability-weighted sums: target − value at every slot, advantage at every choice."""
    trajectory = written_out(world, critic)
    credit = credit_of(method, trajectory, GAMMA, **options)
    measured = (
        (credit.value_mask.tolist(), (credit.target - trajectory.value).tolist()),
        (credit.mask.tolist(), credit.advantage.tolist()),
    )
    sums: tuple[dict[object, float], ...] = (defaultdict(float), defaultdict(float))
    for n, (prob, turns) in enumerate(episodes(world)):
        history: tuple[object, ...] = ()
        for t, turn in enumerate(turns):
            for total, (counts, error) in zip(sums, measured, strict=True):
                for j, flag in enumerate(counts[n][t]):
                    if flag:
                        total[history, turn[1].tokens[:j]] += prob * error[n][t][j]
            history += turn[1:]
    errors, advantages = (list(total.values()) for total in sums)
    return errors, advantages


def exact_critic(method: str, slots: str, gamma_token: float) -> ExactCritic:
    after = "last" if method == "archer_adrl" else "first"
    return ExactCritic("turn" if method in TURN_METHODS else slots, gamma_token, after)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    method=st.sampled_from(CRITIC_METHODS),
    slots=st.sampled_from(["choices", "tokens"]),
    gamma_token=st.sampled_from([1.0, 0.8]),
    lam=st.sampled_from([0.0, 0.7, 1.0]),
    lam_token=st.sampled_from([0.6, 1.0]),
    lam_actor=st.sampled_from([None, 0.0, 0.3, 1.0]),
    trace=st.sampled_from(["token", "bit"]),
)
def test_law_5_exact_values_leave_no_advantage_in_expectation(
    seed, method, slots, gamma_token, lam, lam_token, lam_actor, trace
):
    world = random_state(random.Random(seed), HORIZON)
    critic = exact_critic(method, slots, gamma_token)
    options = {"lam": lam, "lam_token": lam_token, "gamma_token": gamma_token, "slots": slots}
    options |= {"lam_actor": lam_actor, "trace": trace, "bits": bits_of(world)}
    errors, advantages = expected_errors(world, method, critic, **options)
    assert errors
    assert max(map(abs, errors)) < 1e-12
    if method not in TURN_METHODS:  # whose later choices have the turn's advantage
        assert max(map(abs, advantages), default=0.0) < 1e-12


@pytest.mark.parametrize("method", ["ntpo", "archer_adrl"])
def test_values_that_are_exact_for_poad_are_not_for_methods_with_another_backup(method: str):
    world = random_state(random.Random(1), HORIZON)
    critic = exact_critic("poad", "tokens", 1.0)
    errors, _ = expected_errors(world, "poad", critic, lam=0.9, slots="tokens")
    assert max(map(abs, errors)) < 1e-12
    errors, _ = expected_errors(world, method, critic, lam=0.9, slots="tokens")
    assert max(map(abs, errors)) > 1e-3
