"""The critic's own learner: its gradient is the textbook's, and its passes are its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from textbook_ppo import Textbook
from tiny_worlds import settings
from tolerance import EXACT
from torch import Tensor

from poad.agent import Critic
from poad.agent.build import Agent, load_agent
from poad.config import Config, CriticConfig
from poad.envs.registry import make
from poad.errors import ConfigError, DivergenceError
from poad.learn.experience import Experience, ValueTerms
from poad.learn.meters import LEARNED
from poad.learn.ppo import PPO
from poad.learn.resume import restore_snapshot, take_snapshot
from poad.learn.rollout import Collector
from poad.learn.steps import draws
from poad.learn.train import Trainer
from poad.learn.value import Readings, ValueLearner

pytestmark = pytest.mark.usefixtures("float64")

# The textbook's critic reads hidden states and nothing else, and learns from one rollout at once.
PLAIN: dict[str, Any] = {
    "standardize": False,
    "root": False,
    "codes": 0,
    "clip": None,
    "replay": 1,
    "epochs": 1,
    "minibatches": 1,
}
OPEN: dict[str, Any] = {"kl_stop": None, "drift_stop": None, "max_grad_norm": 1e9}


def build(config: Config) -> tuple[Agent, PPO, Collector]:
    agent = load_agent(config)
    config = agent.config
    worlds = Collector(
        lambda: make(config.env, **config.env_args), agent.policy, config.streams, config.seed
    )
    return agent, PPO(agent), worlds


def gradient(critic: Critic) -> Tensor:
    return torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None])


@torch.no_grad()
def have_opinions(critic: Critic, seed: int = 1) -> None:
    """An untrained critic reads 0 everywhere; this one has something to unlearn."""
    generator = torch.Generator().manual_seed(seed)
    for p in critic.parameters():
        p.add_(torch.randn(p.shape, generator=generator) * 0.1)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{m}, sometimes no choice": (
            "Corridor",
            {"credit": {"method": m}, "acting": {"temperature": 5.0}},
        )
        for m in ("poad", "ntpo", "twosome", "turn_ppo", "archer_adrl")
    },
    "free": ("Journal", {}),
    "prefixes, turn level": ("Prefixes", {"credit": {"method": "turn_ppo"}}),
    "prefixes": ("Prefixes", {"credit": {"lam_token": 0.7}}),
    "every token a slot": ("Alike", {"credit": {"slots": "tokens"}}),
    "forced roots": ("Alike", {}),
    "by the turn": ("Chain", {"credit": {"discount": "turn", "gamma": 0.8}}),
    "offers and free writing": ("Mixed", {}),
    # What advantages take from the critic is none of the critic's business.
    "advantages of another kind": (
        "Prefixes",
        {"credit": {"beta": 0.5, "lam_actor": "auto", "trace": "bit"}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_gradient_is_the_textbooks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world, changes = CASES[case]
    config = settings(world, **changes, streams=2, horizon=6, critic=PLAIN, ppo=OPEN)
    agent, learner, worlds = build(config)
    rollout = worlds.collect(config.horizon, np.random.default_rng(1))
    have_opinions(agent.critic)
    textbook = Textbook(agent)
    before = textbook.trajectory(rollout.streams)
    assert learner.values is not None
    found: list[Tensor] = []
    monkeypatch.setattr(
        learner.values.optimizer, "step", lambda: found.append(gradient(agent.critic))
    )
    metrics = learner.update(rollout)
    agent.critic.zero_grad()
    loss = textbook.value_loss(rollout.streams, before)
    loss.backward()
    expected = gradient(agent.critic)
    (mine,) = found
    assert expected.norm() > 1e-3
    assert float((mine - expected).norm() / expected.norm()) <= EXACT
    # Targets at one reading differ, and what they differ by cannot be learned: it is left out.
    assert 0 < metrics["value_loss"] <= loss.item() * (1 + EXACT)
    assert metrics["critic_grad_norm"] == pytest.approx(float(expected.norm()), rel=EXACT)


# --- rollouts made up for the purpose: W terms at U readings ---

WIDTH = 3


def experience_of(
    reading: Sequence[int], root: Sequence[int], seed: int, readings: int = 8
) -> Experience:
    """A rollout of random features and targets; the learner looks at nothing else of it."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(readings, WIDTH, generator=generator)
    target, old = torch.randn(2, len(reading), generator=generator)
    at, above = torch.tensor(reading).long(), torch.tensor(root).long()
    value = ValueTerms(at, target, old, (at != above).long(), above)
    nothing: Any = None
    positions = [((1,), ())] * readings
    return Experience(nothing, positions, features, nothing, value, {})


def critic_and_learner(seed: int = 0, **changes: Any) -> tuple[Critic, ValueLearner]:
    critic = Critic(WIDTH, (4,), seed=seed)
    have_opinions(critic)
    config = CriticConfig(**PLAIN | changes)
    return critic, ValueLearner(critic, config, max_grad_norm=1e9, seed=seed)


ROOTS = st.lists(st.integers(0, 3), min_size=1, max_size=6)
terms = st.tuples(ROOTS, st.lists(st.tuples(st.integers(4, 7), st.integers(0, 3)), max_size=9))
"""Readings at roots 0 to 3, and (reading, root) inside actions at 4 to 7; both may repeat."""


def unpacked(terms: tuple[list[int], list[tuple[int, int]]]) -> tuple[list[int], list[int]]:
    roots, inner = terms
    return [*roots, *(at for at, _ in inner)], [*roots, *(above for _, above in inner)]


@given(terms=terms, seed=st.integers(0, 2**32))
@examples(deadline=None, max_examples=40)
def test_terms_at_one_reading_are_merged_and_the_gradient_is_that_of_each(
    terms: tuple[list[int], list[tuple[int, int]]], seed: int
) -> None:
    experience = experience_of(*unpacked(terms), seed)
    critic, _ = critic_and_learner(seed % 7)
    value, features = experience.value, experience.features
    assert features is not None
    each = value.weight * (critic(features)[value.reading] - value.target) ** 2
    each.sum().backward()
    apart = gradient(critic)
    critic.zero_grad()
    merged = Readings.of(experience)
    assert len(merged.target) == len(set(value.reading.tolist()))
    (merged.weight * (critic(merged.features) - merged.target) ** 2).sum().backward()
    torch.testing.assert_close(gradient(critic), apart, rtol=1e-9, atol=1e-12)


@given(terms=terms, seed=st.integers(0, 2**32))
@examples(deadline=None, max_examples=40)
def test_roots_weigh_the_same_however_much_is_read_inside_actions(
    terms: tuple[list[int], list[tuple[int, int]]], seed: int
) -> None:
    roots, inner = terms
    weight = experience_of(*unpacked(terms), seed).value.weight
    alone = experience_of(roots, roots, seed).value.weight
    assert torch.equal(weight[: len(roots)], alone)
    assert float(alone.sum()) == pytest.approx(1.0)
    assert float(weight[len(roots) :].sum()) == pytest.approx(1.0 if inner else 0.0)


def test_a_reading_that_nothing_is_learned_from_is_left_out() -> None:
    """What is read after the last turn only serves to bootstrap."""
    merged = Readings.of(experience_of([0, 5], [0, 0], seed=1))
    assert len(merged.features) == len(merged.target) == len(merged.weight) == 2


def test_the_newest_rollouts_are_remembered_and_no_others() -> None:
    _, learner = critic_and_learner(replay=3)
    seen = []
    for k in range(6):
        experience = experience_of([0, 1, 2], [0, 1, 2], seed=k)
        seen.append(Readings.of(experience))
        learner.fit(experience)
        kept = seen[-3:]
        assert len(learner.memory) == len(kept)
        for found, expected in zip(learner.memory, kept, strict=True):
            for mine, theirs in zip(found, expected, strict=True):
                assert torch.equal(mine, theirs)


@pytest.mark.parametrize("sizes", [(4, 4), (6, 3), (3, 1)])
def test_every_rollout_weighs_the_same_and_minibatches_are_shares(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one round through the memory, the mean gradient is that of the mean over rollouts."""
    critic, learner = critic_and_learner(replay=2)
    found: list[Tensor] = []
    monkeypatch.setattr(learner.optimizer, "step", lambda: found.append(gradient(critic)))
    whole = []
    for k, size in enumerate(sizes):
        learner.config = replace(learner.config, epochs=sum(sizes) // size)
        experience = experience_of(range(size), [0] * size, seed=k)
        found.clear()
        learner.fit(experience)
        value, features = experience.value, experience.features
        assert features is not None
        critic.zero_grad()
        each = value.weight * (critic(features)[value.reading] - value.target) ** 2
        (each.sum() / 2).backward()
        whole.append(gradient(critic))
    assert len(found) == sum(sizes) // sizes[1]  # minibatches of the newest rollout's size
    expected = torch.stack(whole).mean(0)
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=1e-9, atol=1e-12)


def test_a_method_without_a_critic_leaves_it_alone() -> None:
    critic, learner = critic_and_learner()
    before = [p.clone() for p in critic.parameters()]
    assert learner.fit(experience_of([], [], seed=1)) == (0.0, 0.0)
    assert not learner.memory
    assert all(map(torch.equal, before, critic.parameters()))


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 2), (2, 5)])
def test_the_cost_is_that_of_the_newest_rollout(epochs: int, minibatches: int) -> None:
    """An epoch draws as many readings as that has; the rest of the last minibatch comes on top."""
    critic, learner = critic_and_learner(epochs=epochs, minibatches=minibatches, replay=4)
    drawn: list[int] = []
    critic.register_forward_pre_hook(lambda _, given: drawn.append(len(given[0])))
    for k in range(5):
        drawn.clear()
        learner.fit(experience_of([0, 1, 2, 4, 5], [0, 1, 2, 0, 1], seed=k))
        steps = epochs * minibatches
        assert len(drawn) == steps
        assert sum(drawn) <= steps * math.ceil(5 / minibatches)
        if not k:  # afterwards a minibatch may end where everything has been drawn
            assert sum(drawn) >= 5 * epochs or minibatches > 1


def test_the_loss_falls_on_what_is_remembered() -> None:
    _, learner = critic_and_learner(epochs=200, replay=2, lr=1e-2)
    first = learner.fit(experience_of([0, 1, 4], [0, 1, 0], seed=1))
    again = learner.fit(experience_of([2, 3, 5], [2, 3, 2], seed=1))
    assert again.value_loss < first.value_loss


def test_gradients_that_are_no_numbers_are_skipped_and_then_stop_the_training() -> None:
    critic, learner = critic_and_learner(epochs=4, minibatches=1)
    experience = experience_of([0, 1], [0, 1], seed=1)
    experience.value.target[0] = math.nan
    before = [p.clone() for p in critic.parameters()]
    with pytest.warns(UserWarning, match="step was skipped: value_loss is nan"):
        learner.fit(experience)
    with pytest.raises(DivergenceError, match=r"5 steps were skipped.*critic\.lr"):
        learner.fit(experience)
    assert all(map(torch.equal, before, critic.parameters()))


@given(count=st.integers(1, 30), size=st.integers(1, 40), seed=st.integers(0, 2**32))
@examples(deadline=None)
def test_nothing_is_drawn_again_before_all_others_were(count: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    some = list(itertools.islice(draws(count, size, generator), 3 * count))
    assert all(1 <= len(each) <= size for each in some)
    flat = torch.cat(some).tolist()
    rounds = [flat[i : i + count] for i in range(0, len(flat) - count + 1, count)]
    assert len(rounds) >= 3
    for each in rounds:
        assert sorted(each) == list(range(count))


# --- passes of its own ---


def counted(learner: PPO) -> dict[str, int]:
    """Count the steps of both optimizers from now on."""
    assert learner.values is not None
    counts = {"policy": 0, "critic": 0}
    for name, optimizer in (("policy", learner.optimizer), ("critic", learner.values.optimizer)):

        def step(name: str = name, real: Any = optimizer.step) -> None:
            counts[name] += 1
            real()

        optimizer.step = step  # pyright: ignore[reportAttributeAccessIssue]
    return counts


def test_the_policys_kl_stop_does_not_end_the_critics_passes() -> None:
    ppo = {"epochs": 4, "minibatches": 2, "kl_stop": 1e-9, "lr": 1e-3}
    critic = {"epochs": 3, "minibatches": 2}
    config = settings("Novel", ppo=ppo, critic=critic)
    _, learner, worlds = build(config)
    counts = counted(learner)
    metrics = learner.update(worlds.collect(config.horizon, np.random.default_rng(1)))
    assert metrics["passes"] == 1
    assert counts == {"policy": 1, "critic": 6}


def test_the_critics_rate_is_not_annealed() -> None:
    """At the very end of a run the policy stands still, and the critic goes on as at first."""
    moved = []
    for progress in (0.0, 1.0):
        agent, learner, worlds = build(settings("Novel", critic={"epochs": 2}))
        before = [p.clone() for p in agent.model.parameters()]
        values = [p.clone() for p in agent.critic.parameters()]
        learner.update(worlds.collect(5, np.random.default_rng(1)), progress=progress)
        still = all(map(torch.equal, before, agent.model.parameters()))
        assert still == (progress == 1.0)
        moved.append([p - old for p, old in zip(agent.critic.parameters(), values, strict=True)])
    assert all(map(torch.equal, *moved))
    assert any(bool(step.any()) for step in moved[0])


def test_what_an_update_measures_is_written() -> None:
    ppo = {"kl_limit": 1.0, "kl_reference": 0.1, "recompute_logprob": True}
    credit = {"lam_actor": "auto", "trace": "bit"}
    _, learner, worlds = build(settings("Prefixes", ppo=ppo, credit=credit))
    metrics = learner.update(worlds.collect(20, np.random.default_rng(1)))
    assert {"lam_actor", "critic_grad_norm", "kept"} <= metrics.keys() <= set(LEARNED)


# --- warm-up ---


def weights(modules: Sequence[torch.nn.Parameter] | Any) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in modules])


def advance(trainer: Trainer) -> tuple[bool, bool, dict[str, float]]:
    """One iteration: whether the policy moved, whether the critic moved, and the metrics."""
    agent = trainer.agent
    before = weights(agent.model.parameters()), weights(agent.critic.parameters())
    rollout = trainer.collector.collect(trainer.config.horizon, trainer.generator)
    metrics = trainer.learner.update(rollout)
    after = weights(agent.model.parameters()), weights(agent.critic.parameters())
    policy, critic = (not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return policy, critic, metrics


def test_in_the_warm_up_only_the_critic_learns_and_a_resumed_run_counts_on() -> None:
    config = settings("Novel", critic={"warmup": 3}, ppo={"anneal": False})
    trainer = Trainer(config)
    for _ in range(2):
        policy, critic, metrics = advance(trainer)
        assert (policy, critic) == (False, True)
        assert metrics["passes"] == 0
        assert all(map(math.isfinite, metrics.values()))
    tensors, state = take_snapshot(
        trainer.agent, trainer.learner, trainer.collector, trainer.generator
    )
    resumed = Trainer(config)
    restore_snapshot(
        tensors, state, resumed.agent, resumed.learner, resumed.collector, resumed.generator
    )
    assert advance(resumed)[:2] == (False, True)
    assert advance(resumed)[:2] == (True, True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"critic": {"body": "shared", "warmup": 2}}, r"critic\.body = shared"),
        ({"credit": {"method": "reinforce"}, "critic": {"warmup": 1}}, "reinforce has no critic"),
    ],
)
def test_a_warm_up_in_which_nothing_would_learn_is_refused(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=rf"critic\.warmup = .*{why}.*critic\.warmup = 0"):
        load_agent(settings("Chain", **changes))
    assert load_agent(settings("Chain", **replace_warmup(changes)))


def replace_warmup(changes: dict[str, Any]) -> dict[str, Any]:
    return changes | {"critic": changes["critic"] | {"warmup": 0}}
