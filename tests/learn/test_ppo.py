"""The learner: its loss and gradient are the textbook's, and it keeps within its bounds."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive_credit import ALL_METHODS
from textbook_ppo import Streams, Textbook
from tiny_models import Zoo, counted, next_token_logits
from tiny_worlds import settings
from tolerance import EXACT, drift, float32
from torch import Tensor

from poad.agent.build import Agent, load_agent
from poad.config import Config
from poad.envs.registry import make
from poad.errors import ConfigError, DivergenceError, ModelError
from poad.learn import ppo
from poad.learn.experience import gather
from poad.learn.ppo import PPO
from poad.learn.rollout import Collector
from poad.lm import LanguageModel, Packed
from poad.turns import Rollout, Turn

pytestmark = pytest.mark.usefixtures("float64")

TOKEN_METHODS = ("poad", "ntpo", "turn_ppo", "archer_adrl", "reinforce")
# No step is held back: gradients are compared as they are.
# The textbook's critic reads hidden states and nothing else.
PLAIN = {"standardize": False, "root": False, "codes": 0}
WIDE_OPEN = {"kl_stop": None, "drift_stop": None, "max_grad_norm": 1e9, "minibatches": 1}


def build(config: Config) -> tuple[Agent, PPO, Collector]:
    agent = load_agent(config)
    config = agent.config
    learner = PPO(agent)
    worlds = Collector(
        lambda: make(config.env, **config.env_args), agent.policy, config.streams, config.seed
    )
    return agent, learner, worlds


def parameters(agent: Agent) -> list[torch.nn.Parameter]:
    return [*agent.model.parameters(), *agent.critic.parameters()]


def weights(agent: Agent) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in parameters(agent)])


def gradient(agent: Agent) -> Tensor:
    """All gradients in a row; zero where none came."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters(agent)]
    )


@torch.no_grad()
def push(agent: Agent, seed: int) -> None:
    """Move all weights a little, so that ratios leave 1 and values 0, far enough to be clipped."""
    generator = torch.Generator().manual_seed(seed)
    for p in agent.model.parameters():
        p.add_(torch.randn(p.shape, generator=generator) * 0.03)
    for p in agent.critic.parameters():
        p.add_(torch.randn(p.shape, generator=generator) * 0.1)


def instead_of_steps(
    learner: PPO, monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]
) -> list[int]:
    """Call `do(k)` where the k-th gradient step would have been; the list grows with them."""
    steps: list[int] = []

    def step(*_: Any, **__: Any) -> None:
        do(len(steps))
        steps.append(len(steps))

    monkeypatch.setattr(learner.optimizer, "step", step)
    return steps


def assert_close(found: Tensor, expected: Tensor) -> None:
    """By the distance of the vectors, relative to their length."""
    assert expected.norm() > 1e-3
    assert float((found - expected).norm() / expected.norm()) <= EXACT


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Warm, because whole-action scores are all but certain there.
    **{
        f"{m}, sometimes no choice": (
            "Corridor",
            {"credit": {"method": m}, "acting": {"temperature": 5.0}},
        )
        for m in ALL_METHODS
    },
    **{f"{m}, free": ("Journal", {"credit": {"method": m}}) for m in ("poad", "reinforce")},
    **{f"{m}, prefixes": ("Prefixes", {"credit": {"method": m}}) for m in ("poad", "turn_ppo")},
    "published": ("Lottery", {"credit": {"method": "ntpo"}, "acting": {"scheme": "published"}}),
    "every token a slot": ("Alike", {"credit": {"slots": "tokens", "lam_token": 1.0}}),
    "forced roots": ("Alike", {}),
    "scores per token": ("Prefixes", {"credit": {"method": "glam"}, "acting": {"score": "token"}}),
    "lukewarm, end counts": (
        "Prefixes",
        {"credit": {"method": "twosome"}, "acting": {"score_end": True, "temperature": 1.7}},
    ),
    "lukewarm": ("Novel", {"acting": {"temperature": 1.7}}),
    "shared body": ("Alike", {"critic": {"body": "shared", "clip": None}}),
    "shared body, scores": (
        "Corridor",
        {
            "credit": {"method": "glam"},
            "critic": {"body": "shared"},
            "acting": {"temperature": 5.0},
        },
    ),
    "shared body, free": ("Diary", {"critic": {"body": "shared"}}),
    "by the turn": ("Chain", {"credit": {"discount": "turn", "gamma": 0.8}}),
    "offers and free writing": ("Mixed", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_textbooks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: where the update begins, and behind a step that clips ratios and values.

    A critic on frozen features has a learner of its own, see test_value.py.
    """
    world, changes = CASES[case]
    config = settings(world, **changes, streams=2, horizon=6)
    shared = config.critic.body == "shared"
    config = replace(config, critic=replace(config.critic, **PLAIN))
    config = replace(
        config, ppo=replace(config.ppo, **WIDE_OPEN, entropy=0.3, entropy_free=0.3, clip=0.005)
    )
    agent, learner, worlds = build(config)
    rollout = worlds.collect(config.horizon, np.random.default_rng(1))
    push(agent, 1)
    textbook = Textbook(agent)
    streams = rollout.streams
    if agent.config.credit.method == "reinforce":
        streams = ended_turns(streams)
    before = textbook.trajectory(streams)
    found: list[tuple[Tensor, Tensor]] = []
    losses: list[float] = []

    def compare(step: int) -> None:
        mine = gradient(agent)
        agent.model.module.zero_grad()
        agent.critic.zero_grad()
        loss = textbook.policy_loss(streams, before)
        if shared:
            loss = loss + config.critic.coefficient * textbook.value_loss(streams, before)
        loss.backward()
        losses.append(loss.item())
        found.append((mine, gradient(agent)))
        push(agent, step + 2)

    steps = instead_of_steps(learner, monkeypatch, compare)
    metrics = learner.update(rollout)
    assert len(steps) == metrics["passes"] == 2
    for mine, expected in found:
        assert_close(mine, expected)
    loss = metrics["policy_loss"] - config.ppo.entropy * metrics["entropy"]
    if shared:
        loss += config.critic.coefficient * metrics["value_loss"]
    assert loss == pytest.approx(sum(losses) / 2, rel=EXACT, abs=EXACT)
    assert metrics["clip_fraction"] > 0


@pytest.mark.parametrize(("world", "free"), [("Diary", True), ("Chain", False)])
def test_offered_and_free_decisions_have_their_own_entropy_weight(
    world: str, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over one rollout: the other weight changes no gradient, the own one does."""

    def learned(**weights: float) -> Tensor:
        config = settings(world, streams=2, horizon=6)
        config = replace(config, ppo=replace(config.ppo, **(WIDE_OPEN | {"epochs": 1}), **weights))
        agent, learner, worlds = build(config)
        rollout = worlds.collect(config.horizon, np.random.default_rng(1))
        found: list[Tensor] = []
        instead_of_steps(learner, monkeypatch, lambda _: found.append(gradient(agent)))
        learner.update(rollout)
        return found[0]

    none = learned(entropy=0.0, entropy_free=0.0)
    among, anything = learned(entropy=0.3), learned(entropy=0.0, entropy_free=0.3)
    own, other = (anything, among) if free else (among, anything)
    assert_close(other, none)
    assert (own - none).norm() > 1e-3 * none.norm()


def ended_turns(streams: Streams) -> Streams:
    ends = [
        max([i + 1 for i, turn in enumerate(s) if turn.terminated or turn.truncated], default=0)
        for s in streams
    ]
    return [s[:end] for s, end in zip(streams, ends, strict=True)]


# --- minibatches, micro-batches, passes ---


@pytest.mark.parametrize("body", ["frozen", "shared"])
@pytest.mark.parametrize(
    ("world", "method"),
    [("Novel", "poad"), ("Journal", "poad"), ("Novel", "twosome"), ("Novel", "turn_ppo")],
)
def test_parts_add_up_to_the_whole(
    world: str, method: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minibatches average to the whole batch; micro-batches change nothing but memory."""
    gradients = []
    for minibatches, tokens in ((1, 16_384), (3, 16_384), (1, 1)):
        config = settings(world, credit={"method": method}, critic={"body": body}, horizon=6)
        config = replace(
            config,
            ppo=replace(
                config.ppo,
                **WIDE_OPEN | {"minibatches": minibatches},
                micro_batch_tokens=tokens,
                epochs=1,
            ),
        )
        agent, learner, worlds = build(config)
        rollout = worlds.collect(config.horizon, np.random.default_rng(1))
        push(agent, 1)
        parts: list[Tensor] = []
        instead_of_steps(learner, monkeypatch, lambda _, a=agent, p=parts: p.append(gradient(a)))
        sizes = counted(agent.model)
        learner.update(rollout)
        assert len(parts) == minibatches
        texts = [(*t.prompt_ids, *t.action.token_ids) for t in rollout.turns]
        longest = max(map(len, [*texts, *(t.next_prompt_ids for t in rollout.turns)]))
        assert tokens > 1 or max(sizes) <= 2 * longest  # a single row is not divided
        gradients.append(torch.stack(parts).mean(0))
    for other in gradients[1:]:
        assert_close(other, gradients[0])


def updated(changes: dict[str, Any], *, world: str = "Novel", **ppo: Any) -> dict[str, Any]:
    """One update from a fresh start: what it said, how far it went, and in how many steps."""
    config = settings(world, **changes, ppo={"epochs": 4, "minibatches": 2} | ppo)
    agent, learner, worlds = build(config)
    rollout = worlds.collect(config.horizon, np.random.default_rng(1))
    before, count = weights(agent), 0
    step = learner.optimizer.step

    def counted() -> None:
        nonlocal count
        count += 1
        step()

    learner.optimizer.step = counted  # pyright: ignore[reportAttributeAccessIssue]
    metrics = learner.update(rollout)
    return {"metrics": metrics, "moved": weights(agent) - before, "steps": count}


def test_passes_stop_when_the_policy_has_moved_enough() -> None:
    free = updated({}, kl_stop=None)
    assert (free["steps"], free["metrics"]["passes"]) == (8, 4)
    wide = updated({}, kl_stop=1e9)
    assert torch.equal(free["moved"], wide["moved"])
    # The first minibatch is where sampling was; the second sees what the first step did.
    assert free["metrics"]["kl"] > 1e-6
    tight = updated({}, kl_stop=1e-7, lr=1e-3)
    assert (tight["steps"], tight["metrics"]["passes"]) == (1, 1)
    assert tight["metrics"]["kl"] > 1e-7


def test_learning_rates_fall_with_progress() -> None:
    for anneal, share in ((True, 0.25), (False, 1.0)):
        config = settings("Chain", ppo={"anneal": anneal, "lr": 1e-3}, critic={"lr": 1e-2})
        _, learner, worlds = build(config)
        learner.update(worlds.collect(4, np.random.default_rng(1)), progress=0.75)
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * share)
        assert learner.values is not None  # a critic with passes of its own is not annealed
        assert learner.values.optimizer.param_groups[0]["lr"] == 1e-2


def test_a_critic_on_the_policys_body_follows_its_learning_rate() -> None:
    changes: dict[str, Any] = {"ppo": {"lr": 1e-3}, "critic": {"lr": 1e-2, "body": "shared"}}
    _, learner, worlds = build(settings("Chain", **changes))
    learner.update(worlds.collect(4, np.random.default_rng(1)), progress=0.75)
    rates = [group["lr"] for group in learner.optimizer.param_groups]
    assert rates == pytest.approx([1e-3 / 4, 1e-2 / 4])


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("Novel", ppo={"max_grad_norm": 1e-3, "minibatches": 1})
    agent, learner, worlds = build(config)
    rollout = worlds.collect(5, np.random.default_rng(1))
    norms: list[float] = []

    def measure(_: int) -> None:
        groups = (agent.model.parameters(), agent.critic.parameters())
        for group in groups:
            grads = [p.grad for p in group if p.grad is not None]
            norms.append(math.sqrt(sum(float((g**2).sum()) for g in grads)))

    instead_of_steps(learner, monkeypatch, measure)
    metrics = learner.update(rollout)
    assert metrics["grad_norm"] > 1e-2  # as it was before clipping
    assert all(norm <= 1e-3 * 1.001 for norm in norms)


@pytest.mark.parametrize("method", ["poad", "reinforce"])
@pytest.mark.parametrize("reward", [1e30, -1e30, math.inf, math.nan])
def test_a_reward_too_large_to_learn_from_is_blamed_itself(reward: float, method: str) -> None:
    agent, learner, worlds = build(settings("Novel", credit={"method": method}))
    rollout = worlds.collect(5, np.random.default_rng(1))
    before = weights(agent)
    large = edited(rollout, lambda i, turn: replace(turn, reward=reward) if i == 3 else turn)
    blamed = re.escape(f"reward of {reward:g} for the action {large.turns[3].action.text!r}")
    with pytest.raises(DivergenceError, match=blamed):
        learner.update(large)
    assert torch.equal(weights(agent), before)


@pytest.mark.parametrize("critic", [True, False])
def test_what_is_no_number_first_is_named_and_nothing_moves(critic: bool) -> None:
    agent, learner, worlds = build(settings("Novel"))
    rollout = worlds.collect(5, np.random.default_rng(1))
    before = weights(agent)
    if critic:  # rewards are small, so it must be the critic
        agent.critic.layers[-1].bias.data.fill_(1e30)  # pyright: ignore
        says = r"critic diverged: it reads values of up to 1e\+30"
    else:
        weight = agent.model.parameters()[-1]
        weight.register_hook(lambda gradient: gradient * math.nan)
        says = r"losses are finite, but the gradient of \S+ is not.*smaller ppo\.lr"
        with pytest.warns(
            UserWarning, match="gradient step was skipped: the losses are finite, but"
        ):
            metrics = learner.update(rollout)
        assert metrics["skipped"] == 4
        assert all(map(math.isfinite, (metrics["value_loss"], metrics["critic_grad_norm"])))
    with pytest.raises(DivergenceError, match=says):
        learner.update(rollout)
    policy = [p.flatten() for p in agent.model.parameters()]
    assert torch.equal(torch.cat(policy), before[: sum(map(len, policy))])


def test_a_step_without_a_number_costs_only_itself() -> None:
    """The other minibatch is learned from, and is what the metrics measure."""
    agent, learner, worlds = build(settings("Novel", ppo={"epochs": 1, "minibatches": 2}))
    rollout = worlds.collect(5, np.random.default_rng(1))
    before, calls = weights(agent), []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(True)
        return gradient * (math.nan if len(calls) == 1 else 1.0)

    hook = agent.model.parameters()[-1].register_hook(spoil)
    with pytest.warns(UserWarning, match="step was skipped"):
        metrics = learner.update(rollout)
    hook.remove()
    assert metrics["skipped"] == 1
    assert math.isfinite(metrics["grad_norm"])
    after = weights(agent)
    assert after.isfinite().all()
    assert not torch.equal(after, before)
    for _ in range(2):  # one accident in an update is forgiven by a clean one
        rollout = worlds.collect(5, np.random.default_rng(1))
        assert learner.update(rollout)["skipped"] == 0
    assert learner.skips.count == 0


@pytest.mark.parametrize("body", ["frozen", "shared"])
def test_a_pass_that_does_not_fit_into_memory_is_halved_and_so_are_all_that_follow(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("Novel", streams=8, critic={"body": body}, ppo={"kl_reference": 0.1})

    def learned() -> tuple[dict[str, float], Tensor, Agent]:
        agent, learner, worlds = build(config)
        rollout = worlds.collect(12, np.random.default_rng(1))
        return learner.update(rollout), weights(agent), agent

    expected, moved, _ = learned()
    read, most = LanguageModel.read, 200

    def small(model: LanguageModel, packed: Packed) -> Tensor:
        if packed.tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return read(model, packed)

    monkeypatch.setattr(LanguageModel, "read", small)
    with pytest.warns(UserWarning, match=r"memory in a pass of up to 16,384 tokens.*at most 256,"):
        found, weighed, agent = learned()
    assert agent.model.passes.tokens == 256
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)
    assert torch.allclose(weighed, moved, atol=1e-5)

    most = sys.maxsize  # while the model is loaded
    agent, learner, worlds = build(config)
    rollout = worlds.collect(3, np.random.default_rng(1))
    most = 10
    with pytest.raises(ModelError, match=r"even in passes of 64 tokens.*gradient_checkpointing"):
        learner.update(rollout)


# --- sampling and learning agree ---


@pytest.mark.parametrize("scheme", ["trie", "published", "score"])
@pytest.mark.parametrize("world", ["Prefixes", "Corridor", "poad/TomatoSalad-v0"])
def test_before_the_first_step_the_ratio_is_one(world: str, scheme: str) -> None:
    method = "turn_ppo"  # the one that goes with every scheme
    for recompute in (False, True):
        config = settings(
            world,
            credit={"method": method},
            acting={"scheme": scheme},
            horizon=12,
            ppo={"recompute_logprob": recompute, "epochs": 1, "micro_batch_tokens": 300},
        )
        _, learner, worlds = build(config)
        metrics = learner.update(worlds.collect(config.horizon, np.random.default_rng(2)))
        assert metrics["logprob_drift"] <= EXACT


@pytest.mark.parametrize("scheme", ["trie", "published", "score"])
def test_before_the_first_step_the_ratio_is_one_in_float32_up_to_rounding(scheme: str) -> None:
    with float32():
        config = settings("Prefixes", credit={"method": "turn_ppo"}, acting={"scheme": scheme})
        agent, learner, worlds = build(config)
        assert agent.model.module.dtype is torch.float32
        metrics = learner.update(worlds.collect(12, np.random.default_rng(2)))
    assert metrics["logprob_drift"] <= drift()


def test_recomputing_takes_the_ratio_from_the_policy_as_it_stands() -> None:
    """After the weights moved behind the sampler's back, the drift shows and the ratio is 1."""
    found = {}
    for recompute in (False, True):
        config = settings(
            "Novel",
            ppo={"recompute_logprob": recompute, "minibatches": 1, "drift_stop": None},
        )
        config = replace(config, ppo=replace(config.ppo, epochs=1, kl_stop=None))
        agent, learner, worlds = build(config)
        rollout = worlds.collect(5, np.random.default_rng(2))
        push(agent, 1)
        found[recompute] = learner.update(rollout)
    assert found[True]["logprob_drift"] == pytest.approx(found[False]["logprob_drift"], rel=EXACT)
    assert found[True]["logprob_drift"] > 0.05
    assert found[False]["kl"] > 1e-4
    assert found[True]["kl"] < EXACT


# --- what carries no credit moves nothing ---


def edited(rollout: Rollout, change: Callable[[int, Any], Any]) -> Rollout:
    """The rollout with each turn replaced by `change(number, turn)`."""
    numbered = iter(range(len(rollout.turns)))
    streams = tuple(
        tuple(change(next(numbered), turn) for turn in stream) for stream in rollout.streams
    )
    return replace(rollout, streams=streams)


def test_the_floor_keeps_noise_from_being_blown_up() -> None:
    grad_norm = {}
    for floor in (0.1, 1e-9):
        config = settings("Novel", ppo={"std_floor": floor, "entropy": 0.0})
        _, learner, worlds = build(config)
        rollout = worlds.collect(5, np.random.default_rng(1))
        noise = edited(rollout, lambda i, turn: replace(turn, reward=1e-6 * (-1) ** i))
        grad_norm[floor] = learner.update(noise)["grad_norm"]
    assert grad_norm[0.1] < 1e-3 < 1e-1 < grad_norm[1e-9]


@pytest.mark.parametrize("method", ALL_METHODS)
def test_no_reward_and_no_value_moves_nothing(method: str) -> None:
    config = settings("Prefixes", credit={"method": method}, ppo={"entropy": 0.0})
    agent, learner, worlds = build(config)
    rollout = worlds.collect(6, np.random.default_rng(1))
    before = weights(agent)
    metrics = learner.update(edited(rollout, lambda _, turn: replace(turn, reward=0.0)))
    assert all(map(math.isfinite, metrics.values()))
    assert torch.equal(weights(agent), before)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_rollout_without_any_choice_does_no_harm(method: str) -> None:
    agent, learner, worlds = build(settings("Rail", credit={"method": method}))
    generator, before = np.random.default_rng(1), weights(agent)
    for _ in range(2):
        metrics = learner.update(worlds.collect(4, generator))
        assert not any(map(math.isnan, metrics.values()))
    assert torch.equal(weights(agent), before)


def test_turns_without_choice_teach_the_critic_only() -> None:
    """Beside one real choice of no consequence, all gradient is the critic's."""
    agent, learner, worlds = build(settings("Corridor", ppo={"entropy": 0.0}))
    rollout = worlds.collect(5, np.random.default_rng(1))
    single = [turn for turn in rollout.turns if not any(turn.action.choice)]
    choosing = next(turn for turn in rollout.turns if any(turn.action.choice))
    streams = (
        (*(replace(turn, reward=1.0, terminated=True) for turn in single),),
        (replace(choosing, reward=0.0, terminated=True),),
        (),
    )
    before, critic = weights(agent), sum(p.numel() for p in agent.critic.parameters())
    learner.update(Rollout(streams, ()))
    moved = weights(agent) != before
    assert not moved[:-critic].any()
    assert moved[-critic:].any()


def test_a_forced_root_learns_because_a_bootstrap_reads_it() -> None:
    """All actions begin alike, so the choice is at a later token; the root must not stay behind."""
    config = settings(
        "Alike",
        critic={"hidden": [256], "epochs": 20, "minibatches": 1},
        credit={"gamma": 0.5, "lam": 0.0},
        ppo={"kl_stop": None},
    )
    agent, learner, worlds = build(config)
    generator = np.random.default_rng(1)
    for _ in range(12):
        learner.update(worlds.collect(5, generator))
    roots = {turn.prompt_ids: turn.reward for turn in worlds.collect(2, generator).turns}
    assert sorted(roots.values()) == [-1.0, 1.0]
    for prompt, reward in roots.items():
        (value,) = agent.values([(prompt, ())])
        assert value * reward > 0.4  # on the way to 1 - 1/2 + 1/4 - … = 2/3


def test_frozen_features_stay_what_they_were() -> None:
    agent, learner, worlds = build(settings("Novel", ppo={"lr": 1e-2, "kl_stop": None}))
    rollout = worlds.collect(5, np.random.default_rng(1))
    positions = [(turn.prompt_ids, turn.action.token_ids[:1]) for turn in rollout.turns[:3]]
    assert agent.features is not None
    before, values = agent.features(positions), agent.values(positions)
    trained = {name: p.clone() for name, p in agent.model.module.named_parameters()}
    learner.update(rollout)
    assert torch.equal(agent.features(positions), before)
    assert agent.values(positions) != values
    moved = [n for n, p in agent.model.module.named_parameters() if not torch.equal(p, trained[n])]
    assert len(moved) == len(trained)


# --- reinforce waits for the end of an episode ---


def test_reinforce_uses_every_turn_once_and_only_when_its_episode_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings("Chain", credit={"method": "reinforce"}, streams=3, horizon=4)
    _, learner, worlds = build(config)
    used: list[list[Any]] = [[] for _ in range(3)]

    def spy(streams: Streams, stale: Any, *rest: Any) -> Any:
        for mine, stream in zip(used, streams, strict=True):
            mine += stream
            assert not stream or stream[-1].terminated or stream[-1].truncated
        return gather(streams, stale, *rest)

    monkeypatch.setattr(ppo, "gather", spy)
    generator = np.random.default_rng(4)
    acted: list[list[Any]] = [[] for _ in range(3)]
    waited = False
    for _ in range(6):
        rollout = worlds.collect(config.horizon, generator)
        for mine, stream in zip(acted, rollout.streams, strict=True):
            mine += stream
        metrics = learner.update(rollout)
        assert not any(map(math.isnan, metrics.values()))
        waited |= any(learner.waiting.turns)
        assert [u + list(w) for u, w in zip(used, learner.waiting.turns, strict=True)] == acted
    assert waited
    assert sum(map(len, used)) > 40


def test_before_any_episode_is_over_reinforce_learns_nothing() -> None:
    agent, learner, worlds = build(settings("Alike", credit={"method": "reinforce"}))
    before = weights(agent)
    assert learner.update(worlds.collect(5, np.random.default_rng(1))) == {}
    assert torch.equal(weights(agent), before)
    assert sum(map(len, learner.waiting.turns)) == 15


def test_drift_is_measured_on_what_this_policy_sampled() -> None:
    """Turns that waited were sampled by an older policy; that is no drift of the sampler."""
    config = settings("Journal", credit={"method": "reinforce"}, horizon=2)
    agent, learner, worlds = build(config)
    generator = np.random.default_rng(1)
    assert learner.update(worlds.collect(2, generator)) == {}
    push(agent, 1)
    assert learner.update(worlds.collect(2, generator))["logprob_drift"] <= EXACT


# --- every method, everywhere it can go ---


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_learns_in_the_kitchen(method: str, tuning: str) -> None:
    config = settings(
        "poad/TomatoSalad-v0",
        credit={"method": method},
        model={"name": "auto", "tuning": tuning},
        env_args={"max_steps": 30},
        horizon=12,
    )
    assert_learns(config)


@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_token_methods_learn_from_free_writing(method: str) -> None:
    assert_learns(settings("Diary", credit={"method": method}))


def assert_learns(config: Config) -> None:
    agent, learner, worlds = build(config)
    before = weights(agent)
    metrics = learner.update(worlds.collect(config.horizon, np.random.default_rng(0)))
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["passes"] >= 1
    assert metrics["logprob_drift"] <= EXACT
    now = weights(agent)
    assert now.isfinite().all()
    assert not torch.equal(now, before)


@pytest.mark.parametrize("method", ["twosome", "glam"])
def test_whole_actions_must_be_offered(method: str) -> None:
    """The learner's own check; `Trainer` already makes it where the first turn shows the need."""
    _, learner, worlds = build(settings("Mixed", credit={"method": method}))
    rollout = worlds.collect(5, np.random.default_rng(1))
    with pytest.raises(ConfigError, match=f"{method} .*write freely.*poad"):
        learner.update(rollout)


# --- sampler and learner apart, and the untrained model ---


def shift(rollout: Rollout, by: float) -> Rollout:
    """The rollout as a sampler would record it whose log-probabilities are off by a constant."""

    def moved(turn: Turn) -> Turn:
        logprob = tuple(
            value + by if choice else value
            for value, choice in zip(turn.action.logprob, turn.action.choice, strict=True)
        )
        return replace(turn, action=replace(turn.action, logprob=logprob))

    return replace(rollout, streams=tuple(tuple(map(moved, turns)) for turns in rollout.streams))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_sampler_that_computes_something_else_stops_the_training(recompute: bool) -> None:
    config = settings("Novel", ppo={"drift_stop": 0.2, "recompute_logprob": recompute})
    for by, stops in ((0.15, False), (-0.25, True)):
        agent, learner, worlds = build(config)
        before = weights(agent)
        rollout = shift(worlds.collect(4, np.random.default_rng(2)), by)
        if stops:
            with pytest.raises(DivergenceError, match=r"differ by 0\.25 .*drift_stop allows 0\.2"):
                learner.update(rollout)
            assert torch.equal(weights(agent), before)
        else:
            metrics = learner.update(rollout)
            assert metrics["logprob_drift_mean"] == pytest.approx(0.15, abs=EXACT)
            assert metrics["logprob_drift"] == pytest.approx(0.15, abs=EXACT)
            assert not torch.equal(weights(agent), before)


@pytest.mark.parametrize(
    ("by", "weight"), [(-0.3, 1.2), (-0.1, math.exp(0.1)), (0.4, math.exp(-0.4))]
)
def test_another_sampler_is_corrected_for_up_to_the_cap(
    by: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A term weighs what the learner's probability is over the sampler's, and 1.2 at most."""
    found = []
    for cap, moved in ((None, 0.0), (1.2, by)):
        ppo = {"recompute_logprob": True, "importance_cap": cap, "drift_stop": None}
        ppo |= {"entropy": 0.0, "entropy_free": 0.0, "epochs": 1, "minibatches": 1}
        config = settings("Novel", ppo=ppo | {"max_grad_norm": 1e9})
        agent, learner, worlds = build(config)
        rollout = shift(worlds.collect(4, np.random.default_rng(2)), moved)
        instead_of_steps(learner, monkeypatch, lambda _, agent=agent: found.append(policy(agent)))
        learner.update(rollout)
    plain, corrected = found
    torch.testing.assert_close(corrected, weight * plain, rtol=EXACT, atol=EXACT)


def policy(agent: Agent) -> Tensor:
    """The gradient of the policy's weights."""
    return torch.cat([p.grad.flatten() for p in agent.model.parameters() if p.grad is not None])


def divergence(agent: Agent, home: Agent, turn: Turn) -> list[Tensor]:
    """KL(policy ‖ untrained model) at each choice of a turn, from whole rows, by its definition."""
    action, found = turn.action, []
    for j, choice in enumerate(action.choice):
        if not choice:
            continue
        row = (*turn.prompt_ids, *action.token_ids[:j])
        now, before = (next_token_logits(one.model, *row) for one in (agent, home))
        if action.trie is not None:
            trie = action.trie
            siblings = trie.options(trie.parent(action.nodes[j]))
            admissible = [trie.token(child) for child in siblings]
            now, before = now[admissible], before[admissible]
        p, q = now.softmax(-1), before.softmax(-1).detach()
        found.append((p * (p / q).log()).sum())
    return found


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("world", ["Novel", "Diary", "Mixed"])
def test_the_penalty_and_its_gradient_are_the_divergence_from_the_untrained_model(
    world: str, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, metrics = [], []
    for weight in (1e-12, 0.7):
        ppo = WIDE_OPEN | {"kl_reference": weight, "epochs": 1, "micro_batch_tokens": 60}
        agent, learner, worlds = build(settings(world, ppo=ppo, model={"tuning": tuning}))
        home = load_agent(agent.config)
        push(agent, 1)
        rollout = worlds.collect(6, np.random.default_rng(3))
        instead_of_steps(learner, monkeypatch, lambda _, agent=agent: found.append(policy(agent)))
        metrics.append(learner.update(rollout)["kl_reference"])
        agent.model.module.zero_grad()
        each = [kl for turn in rollout.turns for kl in divergence(agent, home, turn)]
        expected = torch.stack(each).mean()
        expected.backward()
        assert metrics[-1] == pytest.approx(expected.item(), rel=1e-7)
        assert metrics[-1] > 1e-4
    # rtol leaves room for the rounding of the surrogate, which is far larger and cancels here
    torch.testing.assert_close(found[1] - found[0], 0.7 * policy(agent), rtol=1e-6, atol=1e-8)


def test_at_home_there_is_no_penalty() -> None:
    ppo = {"kl_reference": 0.1, "epochs": 1, "minibatches": 1, "kl_stop": None}
    _, learner, worlds = build(settings("Novel", ppo=ppo))
    rollout = worlds.collect(6, np.random.default_rng(2))
    assert learner.update(rollout)["kl_reference"] == pytest.approx(0, abs=EXACT)


def test_the_penalty_pulls_back_to_the_untrained_model() -> None:
    """Where nothing else is to be learned, a strong penalty brings the policy home."""
    away = []
    for weight in (0.0, 10.0):
        ppo = {"kl_reference": weight, "entropy": 0.0, "entropy_free": 0.0, "epochs": 4}
        ppo |= {"lr": 3e-3, "kl_stop": None, "anneal": False, "std_floor": 1e6, "clip": 1e6}
        agent, learner, worlds = build(settings("Novel", ppo=ppo))
        home = load_agent(agent.config)
        push(agent, 1)
        for k in range(6):
            learner.update(worlds.collect(6, np.random.default_rng(k)))
        rollout = worlds.collect(12, np.random.default_rng(9))
        batch, decision, option = agent.policy.decisions(rollout.turns)
        mine = decision >= 0
        with torch.no_grad():
            now, before = (
                one.policy.evaluate(batch).logprob[decision[mine], option[mine]]
                for one in (agent, home)
            )
        away.append(float((now - before).abs().mean()))
    assert away[1] < 0.5 * away[0]


def test_what_is_recomputed_drops_the_same(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout and gradient checkpointing go together: the backward pass sees the same layers."""
    found: list[Tensor] = []
    for recompute in (False, True):
        model = {"name": str(zoo.path()), "tuning": "lora", "lora_dropout": 0.5}
        model |= {"gradient_checkpointing": recompute}
        agent, learner, worlds = build(settings("Novel", model=model, ppo={"epochs": 1}))
        rollout = worlds.collect(4, np.random.default_rng(2))
        push(agent, 1)  # adapters begin at zero, where nothing dropped shows
        learner.ppo = replace(learner.ppo, drift_stop=None, minibatches=1)
        instead_of_steps(learner, monkeypatch, lambda _, agent=agent: found.append(policy(agent)))
        learner.update(rollout)
    assert found[0].norm() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=EXACT, atol=EXACT)


# --- one ratio for the whole action ---


@pytest.mark.parametrize("world", ["Novel", "Prefixes", "Chain"])
@pytest.mark.parametrize("minibatches", [1, 3])
def test_one_ratio_an_action_is_the_product_of_its_tokens(
    world: str, minibatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the textbook's over actions, whose probability is the product over choices."""
    ppo = WIDE_OPEN | {"ratio": "turn", "epochs": 1, "entropy": 0.0, "entropy_free": 0.0}
    ppo |= {"minibatches": minibatches}
    config = settings(world, credit={"method": "turn_ppo"}, ppo=ppo, horizon=8)
    agent, learner, worlds = build(replace(config, critic=replace(config.critic, **PLAIN)))
    rollout = worlds.collect(8, np.random.default_rng(2))
    push(agent, 1)
    gathered = gather(rollout.streams, [0] * len(rollout.streams), agent, learner.returns)
    found: list[Tensor] = []
    instead_of_steps(learner, monkeypatch, lambda _: found.append(policy(agent)))
    learner.update(rollout)
    assert len(found) == minibatches or world != "Novel"

    turns = [turn for turn in rollout.turns if any(turn.action.choice)]
    assert gathered is not None
    terms = gathered.policy
    judged = {int(t): float(a) for t, a in zip(terms.turn, terms.advantage, strict=True)}
    advantage = torch.tensor([judged[t] for t in sorted(judged)])
    assert len(advantage) == len(turns)
    for p in agent.model.parameters():
        p.grad = None
    batch, decision, option = agent.policy.decisions(turns)
    logprob = agent.policy.evaluate(batch).logprob[decision, option]
    each = torch.where(decision >= 0, logprob, torch.zeros(()))
    lengths = [len(turn.action.token_ids) for turn in turns]
    new = torch.stack([tokens.sum() for tokens in each.split(lengths)])
    old = torch.tensor([sum(turn.action.logprob) for turn in turns])
    ratio = (new - old).exp()
    clip = config.ppo.clip
    worth = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    (-worth.mean()).backward()
    expected = policy(agent)
    assert expected.norm() > 0
    torch.testing.assert_close(sum(found) / len(found), expected, rtol=EXACT, atol=EXACT)


MEASURES = ("entropy", "kl", "clip_fraction", "kl_after", "kl_reference")
"""What an update says about the policy, for each unit of its loss."""


def measured(world: str, ratio: str, **ppo: Any) -> tuple[dict[str, float], Agent, Rollout]:
    """One pass of a policy that has left the one that sampled; no step is made."""
    ppo = WIDE_OPEN | {"epochs": 1, "clip": 0.02, "kl_limit": 1e9, "kl_reference": 0.1} | ppo
    config = settings(world, credit={"method": "turn_ppo"}, ppo=ppo | {"ratio": ratio}, horizon=8)
    agent, learner, worlds = build(config)
    rollout = worlds.collect(8, np.random.default_rng(2))
    push(agent, 1)
    learner.optimizer.step = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    metrics = learner.update(rollout)
    return {name: metrics[name] for name in MEASURES}, agent, rollout


@pytest.mark.parametrize("world", ["Novel", "Journal"])
def test_one_ratio_an_action_measures_everything_by_the_action(world: str) -> None:
    """Entropy and divergences are sums over an action's decisions, and means over actions."""
    found, agent, rollout = measured(world, "turn")
    turns = [turn for turn in rollout.turns if any(turn.action.choice)]
    batch, decision, option = agent.policy.decisions(turns)
    with torch.no_grad():
        new = agent.policy.evaluate(batch)
    lengths = [len(turn.action.token_ids) for turn in turns]
    entropy, kl, clipped = [], [], []
    for turn, here, taken in zip(
        turns, decision.split(lengths), option.split(lengths), strict=True
    ):
        mine = here >= 0
        assert mine.tolist() == list(turn.action.choice)
        entropy.append(float(new.entropy[here[mine]].sum()))
        moved = float(new.logprob[here[mine], taken[mine]].sum()) - sum(turn.action.logprob)
        kl.append(math.expm1(moved) - moved)
        clipped.append(abs(math.expm1(moved)) > 0.02)
    assert max(sum(turn.action.choice) for turn in turns) > 1
    assert found["entropy"] == pytest.approx(sum(entropy) / len(turns), rel=EXACT)
    assert found["kl"] == pytest.approx(sum(kl) / len(turns), rel=1e-6)
    assert found["kl_after"] == pytest.approx(found["kl"], rel=1e-6)
    assert found["clip_fraction"] == pytest.approx(sum(clipped) / len(turns), rel=EXACT)
    assert found["clip_fraction"] > 0
    # by the decision, a mean over more terms
    other, _, _ = measured(world, "token")
    share = len(turns) / sum(sum(turn.action.choice) for turn in turns)
    for name in ("entropy", "kl_reference"):
        assert other[name] == pytest.approx(share * found[name], rel=1e-6)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_where_an_action_is_one_decision_both_kinds_of_ratio_say_the_same(minibatches: int) -> None:
    found, _, rollout = measured("Chain", "turn", minibatches=minibatches)
    assert {sum(turn.action.choice) for turn in rollout.turns} == {1}
    other, _, _ = measured("Chain", "token", minibatches=minibatches)
    assert found == pytest.approx(other, rel=1e-6)


def test_one_ratio_an_action_wants_one_advantage() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.ratio = turn.*poad.*turn_ppo"):
        load_agent(settings("Chain", ppo={"ratio": "turn"}))
